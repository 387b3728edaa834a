"""Whether each number in the book's prose is one that its page shows: `python tools/check_numbers.py [PAGE ...]`.

A number counts if it has two digits or more, a unit, or a factor ("4 times"). It is placed if its sentence carries a
citation or a link to a source, or if the page, or a chapter that the sentence links to, has it in a compared output, in
the code that the tests run, in a drawing of `book/figures` (which the tests redraw from the package), or in a formula.
For a number with a unit or a factor, of the code only assertions count. A rounded number is placed by a more exact one:
9.2 GB by 9,210,691,584. A formula between plain numbers has to be true.

`book/numbers.yaml` lists what is allowed on a page beyond that, each with its reason.
"""

import argparse
import ast
import functools
import math
import operator
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import NamedTuple

import nbformat
import yaml

from execute_notebooks import ROOT, chapters
from prose import CITED, Number, linked_chapters, numbers_in, plain, sentences_of

ALLOWED = ROOT / "book" / "numbers.yaml"
MOST_ALLOWED = 5  # on a page
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
UNCHECKED = {"nbval-ignore-output", "nbval-skip"}
_EVIDENCE = re.compile(r"(?<![\w.])\d{1,3}(?:,\d{3})+(?:\.\d+)?|(?<![A-Za-z_.])\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class Missing(NamedTuple):
    """A number that its page does not show."""

    number: str
    sentence: str


@dataclass(frozen=True)
class Page:
    """What is said, sentence by sentence, and the numbers that back it."""

    sentences: list[str]
    shown: set[float]  # in outputs, assertions, formulas and drawings
    settings: set[float]  # elsewhere in the code
    false_formulas: list[str]

    def backing(self, number: Number) -> set[float]:
        """What may place a number: for one with a unit or a factor no mere settings."""
        return self.shown if number.measured else self.shown | self.settings

    def missing(self) -> Iterator[Missing]:
        """The numbers without a place, in reading order."""
        for sentence in self.sentences:
            if CITED not in sentence:
                pages = [self, *map(read_chapter, linked_chapters(sentence))]
                for number in numbers_in(sentence):
                    if not any(placed(number, page.backing(number)) for page in pages):
                        yield Missing(number.text, " ".join(sentence.split()))


def placed(number: Number, evidence: set[float]) -> bool:
    """Whether some number of the page is this one or, where it is not a plain count, rounds to it."""
    count = number.step >= 1 and not number.measured
    return number.value in evidence or any(
        abs(shown / scale - number.value) <= number.step / 2 * (1 + 1e-9)
        for shown in evidence
        if not count
        for scale in number.scales
        if shown != int(shown) or scale != 1
    )


def syntax_tree(source: str) -> ast.Module:
    """A cell without what only IPython reads."""
    return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE))


def evidence_of_code(tree: ast.AST) -> Iterator[float]:
    """The numbers in code, those in its texts left out, and what plain arithmetic makes of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.BinOp | ast.UnaryOp) and (value := _folded(node)) is not None:
            yield abs(float(value))


def _folded(node: ast.AST) -> float | None:
    """The value of constants and operators alone."""
    if isinstance(node, ast.Constant):
        return node.value if type(node.value) in {int, float} else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _folded(node.operand)
        return None if value is None else -value
    if not isinstance(node, ast.BinOp) or type(node.op) not in OPERATORS:
        return None
    left, right = _folded(node.left), _folded(node.right)
    if left is None or right is None or (isinstance(node.op, ast.Pow) and abs(right) > 64):
        return None
    try:
        return OPERATORS[type(node.op)](left, right)
    except ArithmeticError:
        return None


def evidence_of_text(text: str) -> Iterator[float]:
    """Each number in an output."""
    values = (float(match[0].replace(",", "")) for match in _EVIDENCE.finditer(text))
    return (value for value in values if math.isfinite(value))


def output_text(output: nbformat.NotebookNode) -> str:
    """What an output says in letters; a chart's ticks and a widget's state are not evidence."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    if "image/svg+xml" in data or "application/vnd.jupyter.widget-view+json" in data:
        return ""
    html = unescape(re.sub(r"<[^>]+>", " ", "".join(data.get("text/html", ""))))
    return html + "\n" + "".join(data.get("text/plain", "")) + "".join(data.get("text/markdown", ""))


def drawing_text(markdown: str, folder: Path) -> str:
    """The letters of the drawings that a page shows."""
    texts = []
    for name in re.findall(r"figures/[\w-]+\.svg", markdown):
        texts += re.findall(r"<text.*?</text>", (folder / name).read_text(encoding="utf-8"), re.DOTALL)
    return "\n".join(unescape(re.sub(r"<[^>]+>", "", words)) for words in texts)


def false_formulas(formula: str) -> Iterator[str]:
    """The equations between plain numbers that do not hold, to the digits that they show."""
    for line in re.split(r"\\\\|&|\\quad|,\s", formula):
        sides = re.split(r"(=|\\approx)", line)
        for left, sign, right in zip(sides[::2], sides[1::2], sides[2::2], strict=False):
            a, b = _computed(left), _computed(right)
            if a is not None and b is not None and abs(a - b) > max(map(_slack, (left, right), (sign, sign))):
                yield f"{left.strip()} {sign} {right.strip()}"


def _numeric(side: str) -> str:
    """A side as Python writes it."""
    side = re.sub(r"(?<=\d)(?:\{,\}|\\,)(?=\d{3})", "", side)
    side = re.sub(r"\\[td]?frac\{([\d.+ -]+)\}\{([\d.+ -]+)\}", r"((\1)/(\2))", side)
    side = re.sub(r"\\(?:cdot|times)", "*", re.sub(r"\^\{?(-?\d+)\}?", r"**\1", side))
    return re.sub(r"\\(?:left|right|[,;:! ])|\\text\{[^}]*\}", "", side).strip(" .")


def _computed(side: str) -> float | None:
    """A side's value; None if it has letters."""
    side = _numeric(side)
    if not re.fullmatch(r"[\d.+*/() -]*\d[\d.+*/() -]*", side):
        return None
    try:
        return _folded(ast.parse(side, mode="eval").body)
    except SyntaxError:
        return None


def _slack(side: str, sign: str) -> float:
    """How far a side may be off: half a step of its last digit if it is a rounded number."""
    number = re.fullmatch(r"\d+(?:\.(\d+))?", _numeric(side))
    if number is None or (sign == "=" and not number[1]):
        return 1e-9
    return 10.0 ** -len(number[1] or "") / 2 * (1 + 1e-9)


def read_page(path: Path) -> Page:
    """A notebook or a Markdown file."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
    else:
        text = path.read_text(encoding="utf-8")
        if path.name == "README.md":  # its table is made from the results, and compared with them
            text = re.sub(r"^\|.*\n", "", text, flags=re.MULTILINE)
        cells = [nbformat.v4.new_markdown_cell(text)]
    sentences, formulas, shown, settings = [], [], set(), set()
    for cell in cells:
        if cell.cell_type == "markdown":
            sentences += list(sentences_of(cell.source, formulas))
            shown |= set(evidence_of_text(drawing_text(cell.source, path.parent)))
        elif not UNCHECKED & set(cell.metadata.get("tags", [])):
            tree = syntax_tree(cell.source)
            settings |= set(evidence_of_code(tree))
            shown |= {
                value for node in ast.walk(tree) if isinstance(node, ast.Assert) for value in evidence_of_code(node)
            }
            shown |= {value for output in cell.outputs for value in evidence_of_text(output_text(output))}
    shown |= {value for formula in formulas for value in evidence_of_text(plain(formula))}
    return Page(sentences, shown, settings, [found for formula in formulas for found in false_formulas(formula)])


@functools.cache
def read_chapter(name: str) -> Page:
    """A chapter by the name of its file."""
    return read_page(ROOT / "book" / f"{name}.ipynb")


def allowed() -> dict[str, dict[str, str]]:
    """For each page the numbers that need no place, with the reason."""
    return yaml.safe_load(ALLOWED.read_text(encoding="utf-8")) or {}


def problems(path: Path, exceptions: dict[str, str]) -> list[str]:
    """What is wrong with a page, in words: numbers without a place, exceptions without a use, false formulas."""
    page = read_page(path)
    missing = list(page.missing())
    found = [f"{number!r} in: {sentence}" for number, sentence in missing if number not in exceptions]
    unused = set(exceptions) - {number for number, _ in missing}
    found += [f"{ALLOWED.name} allows {number!r}, which the page does not need" for number in sorted(unused)]
    if len(exceptions) > MOST_ALLOWED:
        found.append(f"{ALLOWED.name} allows {len(exceptions)} numbers; expected at most {MOST_ALLOWED}")
    return found + [f"does not hold: {formula}" for formula in page.false_formulas]


def main() -> None:
    """Print what is wrong with the pages; exit code 1 if there is something."""
    parser = argparse.ArgumentParser(description="Find numbers in the prose that their page does not show.")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="chapters or files; all chapters if none is named")
    by_name = {path.stem: path for path in chapters()}
    pages = [by_name.get(name, Path(name)) for name in parser.parse_args().pages] or list(by_name.values())
    for path in pages:
        if not path.is_file():
            parser.error(f"PAGE is '{path}'; expected a chapter, such as {next(iter(by_name))}, or a file")
    exceptions, count = allowed(), 0
    for path in pages:
        for line in problems(path, exceptions.get(path.stem, {})):
            print(f"{path.name}: {line}")
            count += 1
    sys.exit(1 if count else 0)


if __name__ == "__main__":
    main()
