"""The symbols of formulas: `python tools/symbols.py` lists those of the chapters, with the pages that use them.

A symbol is a letter with those of its scripts that belong to its name: $d_c$ and $W^{UK}$ are symbols, $c_t$ is $c$
with an index. What is a name and what an index follows from the table of indices in book/notation.md.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import nbformat

from execute_notebooks import ROOT, chapters
from prose import sentences_of

NOTATION = ROOT / "book" / "notation.md"
GREEK = {
    *(
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "varepsilon",
        "zeta",
        "eta",
        "theta",
        "kappa",
        "lambda",
        "mu",
        "nu",
    ),
    *("xi", "pi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega", "ell"),
    *("Delta", "Gamma", "Lambda", "Omega", "Phi", "Psi", "Sigma", "Theta"),
}
_WORDS = re.compile(r"\\(?:text|mathrm|operatorname|mathit|texttt|begin|end)\{[^}]*\}")
_SYMBOL = re.compile(r"\\([A-Za-z]+)|([A-Za-z])")
_LABEL = re.compile(r"[A-Z]+")


def _group(text: str, start: int) -> tuple[str, int]:
    """The group, command or letter that begins at ``start``, and where it ends."""
    if text[start] == "\\":
        match = re.compile(r"\\[A-Za-z]+|\\.").match(text, start)
        assert match
        return match[0], match.end()
    if text[start] != "{":
        return text[start], start + 1
    depth = 0
    for end in range(start, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[start + 1 : end], end + 1
    raise ValueError(f"a brace is not closed in the formula {text!r}")


def _scripts(text: str, start: int) -> tuple[str, str, str, int]:
    """Superscript, subscript and primes of the symbol that ends at ``start``, and where they end."""
    above = below = primes = ""
    while match := re.compile(r"\s*([_^'])\s*").match(text, start):
        start = match.end()
        if match[1] == "'":
            primes += "'"
        elif match[1] == "^":
            above, start = _group(text, start)
        else:
            below, start = _group(text, start)
    return above, below, primes, start


def symbols_in(formula: str, indices: frozenset[str]) -> Iterator[str]:
    """The symbols of a formula, those in scripts too, each as LaTeX with the scripts that belong to its name."""
    text, start = _WORDS.sub(" ", formula), 0
    while match := _SYMBOL.search(text, start):
        start = match.end()
        if match[1] and match[1] not in GREEK:
            continue
        above, below, primes, start = _scripts(text, start)
        labels = [part for part in re.split(r"\\[a-z]+|[\\,\s]", above) if part]
        name = match[0] + primes
        if labels and all(map(_LABEL.fullmatch, labels)):
            name += f"^{{{labels[0]}}}"
        else:
            yield from symbols_in(above, indices)
        letters = {m[0] for m in _SYMBOL.finditer(below)}
        if re.fullmatch(r"[A-Za-z]+", below) and not letters <= indices:
            name = f"{match[0]}_{below}{name[len(match[0]) :]}"
        else:
            yield from symbols_in(below, indices)
        yield name


class Row(NamedTuple):
    """A symbol in the table of notation."""

    symbol: str
    page: str | None  # the one chapter that uses it; None for all


def notation() -> tuple[list[Row], frozenset[str]]:
    """The rows of book/notation.md, and which letters are indices."""
    sections = re.split(r"^## ", NOTATION.read_text(encoding="utf-8"), flags=re.MULTILINE)
    by_title = {title: body for title, _, body in (section.partition("\n") for section in sections)}
    indices = frozenset(re.findall(r"\$([A-Za-z])\$ *\|", by_title["Indices"]))
    rows = []
    for title, body in by_title.items():
        for line in re.findall(r"^\|.*\|$", body, re.MULTILINE):
            page = re.search(r"\(([\w-]+)\.ipynb\)", line) if title == "On one page" else None
            named = next((cell for cell in line.split("|") if "$" in cell), "")
            for formula in re.findall(r"\$([^$/]+)\$", named):
                found = [
                    symbol for symbol in symbols_in(formula, indices) if title == "Indices" or symbol not in indices
                ]
                rows += [Row(symbol, page and page[1]) for symbol in found]
    return rows, indices


def uses() -> dict[str, set[str]]:
    """For each symbol the chapters in whose formulas it stands."""
    _, indices = notation()
    found = defaultdict(set)
    for path in chapters():
        formulas: list[str] = []
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                list(sentences_of(cell.source, formulas))
        for formula in formulas:
            for symbol in symbols_in(formula, indices):
                found[symbol].add(path.stem)
    return dict(found)


if __name__ == "__main__":
    for name, pages in sorted(uses().items()):
        print(f"{name:16} {', '.join(sorted(pages))}")
