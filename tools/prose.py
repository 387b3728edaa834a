"""The numbers in Markdown prose, sentence by sentence."""

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.myst_role import myst_role_plugin

from mla_edu.registry import get_gpu, get_model, list_gpus, list_models

NO_PROSE = {"bibliography", "code-block", "glue", "include", "math", "saved-widget", "toctree"}  # directives
CITED, OPAQUE, LINK = "\u2020", "\u25a1", "\u2021"  # a source; code, a formula or a reference; around a chapter's path
SCALES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
WORD_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
SMALL = {"m": 1e-3, "µ": 1e-6, "n": 1e-9}
ONES = dict(zip("one two three four five six seven eight nine".split(), range(1, 10), strict=True))  # noqa: SIM905
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))  # noqa: SIM905
WORDS = ONES | dict(zip(TEENS.split(), range(10, 20), strict=True)) | TENS
WORDS |= {f"{tens}-{one}": TENS[tens] + ONES[one] for tens in TENS for one in ONES}

_UNIT = (
    r"%|per cent\b|(?:[kMGTP]i?)?B(?:/s)?\b|bytes?\b|[kMGTP]?FLOPs?(?:/(?:s|byte))?\b|[mµn]?s\b|seconds?\b|minutes?\b"
    r"|hours?\b|nats?\b|bits?\b|[kM]?Hz\b|W\b|thousand\b|million\b|billion\b|trillion\b|k\b|M\b"
)
_FACTOR = r"times\b|-?fold\b|x\b|×"
_LABELLED = (
    r"[Tt]able|[Ff]igure|[Ss]ections?|[Aa]ppendix|[Ee]quations?|[Ee]q\.|[Pp]ages?|[Ss]teps?|[Ii]ssues?|PR|layers?"
    r"|CC BY|Python|PyTorch|torch|Triton|transformers|CUDA|NumPy"
)
_LABEL = re.compile(rf"\b(?:{_LABELLED}) \(?\d[\d.]*(?:(?:,| and| to|–|-) ?\d[\d.]*)*\b")
_DIGITS = re.compile(
    rf"(?<![\w.,#])(?<![A-Za-z]-)(?P<number>\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d+(?:\.\d+)?)(?:e(?P<power>[+-]?\d+))?"
    rf"(?:(?:[  ]?-?(?P<unit>{_UNIT}))|(?:[  ]?(?P<factor>{_FACTOR})))?(?![\w]|[.,]\d)"
)
_SPELT = re.compile(
    rf"\b(?P<word>{'|'.join(sorted(WORDS, key=len, reverse=True))}|an?)"
    rf"(?: (?P<scale>hundred|thousand|million|billion))?\b(?:[ -]?(?P<factor>times\b|fold\b))?(?!-)",
    re.IGNORECASE,
)
_YEAR = re.compile(r"(?:19|20)\d\d")
_BARE = re.compile(r"[\d.,{}\\ ~%]*\d[\d.,{}\\ ~%]*")


class Number(NamedTuple):
    """A number as the prose has it."""

    text: str
    value: float
    step: float  # of its last digit
    scales: tuple[float, ...]  # what one of its unit may be in the page's own numbers
    measured: bool  # has a unit or a factor: then a setting in the code is not enough


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").enable("table")
    return parser.use(dollarmath_plugin).use(colon_fence_plugin).use(myst_role_plugin)


def sentences_of(markdown: str, formulas: list[str]) -> Iterator[str]:
    """The sentences of a text, without listings and quotations; what stands between dollars joins ``formulas``."""
    quoted, row = 0, None
    for token in _parser().parse(re.sub(r"^\(.*\)=$|^:[\w-]+:.*$", "", markdown, flags=re.MULTILINE)):
        quoted += (token.type == "blockquote_open") - (token.type == "blockquote_close")
        directive = re.match(r"\{([\w-]+)\}", token.info.strip()) if token.type in {"colon_fence", "fence"} else None
        if directive and directive[1] not in NO_PROSE:
            yield from sentences_of(token.content, formulas)
            if title := token.info.partition("}")[2].strip():
                yield title
        elif token.type == "math_block":
            formulas.append(token.content)
        elif token.type == "tr_open":
            row = []
        elif token.type == "tr_close":
            yield " | ".join(row or [])
            row = None
        elif token.type == "inline" and not quoted:
            words = _words(token.children or [], formulas)
            if row is None:
                yield from re.split(rf"(?<=[.!?])[*_\")”]*\s+(?=[A-Z*_\"“(\d{OPAQUE}{CITED}{LINK}])", words)
            else:
                row.append(words)


def _words(tokens: list[Token], formulas: list[str]) -> str:
    """A line as it is read: sources and opaque pieces by their signs."""
    words = ""
    for token in tokens:
        if token.type == "text":
            words += token.content
        elif token.type in {"softbreak", "hardbreak"}:
            words += " "
        elif token.type == "math_inline":
            bare = _BARE.fullmatch(token.content)
            words += plain(token.content) if bare else OPAQUE
            if not bare:
                formulas.append(token.content)
        elif token.type == "link_open":
            target = str(token.attrs.get("href", ""))
            words += CITED if target.startswith("http") else f"{LINK}{target}{LINK}" if ".ipynb" in target else ""
        elif token.type == "myst_role":
            words += CITED if token.meta["name"].startswith("cite") else OPAQUE
        elif token.type in {"code_inline", "html_inline", "image"}:
            words += OPAQUE
    return words


def plain(formula: str) -> str:
    """A formula's numbers as prose writes them."""
    formula = re.sub(r"(?<=\d)(?:\{,\}|\\,|\\ |~)(?=\d{3})", ",", formula)
    return re.sub(r"[{}]", "", formula).replace(r"\%", "%")


@functools.cache
def _names() -> re.Pattern[str]:
    """Models, GPUs and versions: numbers in them are letters."""
    models = [get_model(name) for name in list_models()]
    names = {model.title for model in models} | {get_gpu(name).title for name in list_gpus()}
    families = {name.split()[0].split("-")[0] for name in names}
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    return re.compile(
        "|".join([*longest_first, rf"\b(?:{'|'.join(map(re.escape, families))})[ -]\d[\w.]*(?: [\d.]+[BM]\b)?"])
    )


def linked_chapters(sentence: str) -> list[str]:
    """The chapters that a sentence links to, by the names of their files."""
    return re.findall(rf"([\w-]+)\.ipynb[^{LINK}]*{LINK}", sentence)


def numbers_in(sentence: str) -> Iterator[Number]:
    """The numbers of a sentence that have to be placed."""
    sentence = re.sub(f"{LINK}.*?{LINK}", "", sentence)
    sentence = _LABEL.sub(OPAQUE, _names().sub(OPAQUE, sentence))
    for match in _DIGITS.finditer(sentence):
        digits, unit, factor = match["number"].replace(",", ""), match["unit"] or "", match["factor"]
        if unit in {"bit", "bits"} and "-" in match[0]:
            continue  # "16-bit" is the name of a format
        if _YEAR.fullmatch(match["number"]) and not (unit or factor):
            continue
        if len(digits.replace(".", "")) > 1 or unit or factor or match["power"]:
            power = 10.0 ** int(match["power"] or 0)
            decimals = len(digits.partition(".")[2])
            yield Number(match[0], float(digits) * power, 10.0**-decimals * power, _scales(unit), bool(unit or factor))
    for match in _SPELT.finditer(sentence):
        word, scale, factor = match["word"].lower(), match["scale"], match["factor"]
        if (word in {"a", "an"} and not scale) or (WORDS.get(word, 1) < 10 and not (scale or factor)):
            continue
        size = {"hundred": 100, None: 1}.get(scale.lower() if scale else None) or WORD_SCALES[scale.lower()]
        yield Number(match[0], WORDS.get(word, 1) * size, size, (1.0,), bool(factor))


def _scales(unit: str) -> tuple[float, ...]:
    if unit in WORD_SCALES:
        return (1.0, WORD_SCALES[unit])
    if unit in {"%", "per cent"}:
        return (1.0, 0.01)
    if unit == "k":
        return (1.0, 1000.0, 1024.0)
    prefix = re.match(r"[kMGTP]i?(?=B|FLOP|$)|[mµn](?=s)", unit)
    return (1.0, (SCALES | SMALL)[prefix[0]]) if prefix else (1.0,)
