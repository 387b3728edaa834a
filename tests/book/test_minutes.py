"""How long chapters take: 200 words or 20 lines of code in a minute, to the next five; not what is folded."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book" / "_ext"))

from minutes import minutes  # noqa: E402


def notebook(*cells):
    """A notebook of cells, each a kind, a text and tags."""
    return {"cells": [{"cell_type": k, "source": [t], "metadata": {"tags": list(tags)}} for k, t, *tags in cells]}


@pytest.mark.parametrize(
    ("words", "lines", "expected"),
    [(2000, 0, 10), (0, 200, 10), (1000, 100, 10), (2400, 0, 10), (2600, 0, 15), (10, 1, 5)],
)
def test_words_and_lines_take_their_time(words, lines, expected):
    cells = ("markdown", "word " * words), ("code", "line\n\n" * lines)
    assert minutes(notebook(*cells)) == expected


def test_what_is_folded_takes_none():
    hidden = ("code", "line\n" * 1000, "hide-input")
    opening = ("markdown", "one\n\n:::{solution-start} ex-x\n:class: dropdown\n:::\n\n" + "word " * 5000)
    closing = ("markdown", "word " * 5000 + "\n:::{solution-end}\n:::\n\n" + "word " * 2000)
    assert minutes(notebook(hidden, opening, ("code", "line\n" * 1000), closing)) == 10


def test_each_card_says_how_long_its_chapter_takes(html):
    page = (html / "book" / "index.html").read_text(encoding="utf-8")
    cards = re.findall(r'href="([\w-]+)\.html"(?:(?!</p>).)*<span class="mla-minutes">(\d+)&nbsp;min</span></p>', page)
    chapters = [path.stem for path in (ROOT / "book").glob("*.ipynb")]
    assert sorted(name for name, _ in cards) == sorted(chapters)
    for name, said in cards:
        source = json.loads((ROOT / "book" / f"{name}.ipynb").read_text(encoding="utf-8"))
        assert said == f"{minutes(source)}", name
