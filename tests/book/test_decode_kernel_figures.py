"""The pictures of the decode kernel show the chapter's own problem."""

import math
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import nbformat
import pytest

BOOK = Path(__file__).resolve().parents[2] / "book"
TEXT, RECT = "{http://www.w3.org/2000/svg}text", "{http://www.w3.org/2000/svg}rect"


@pytest.fixture(scope="module")
def chapter():
    """The chapter's code and what it printed."""
    cells = [c for c in nbformat.read(BOOK / "the-decode-kernel.ipynb", as_version=4).cells if c.cell_type == "code"]
    printed = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    return "\n".join(cell.source for cell in cells), printed


@pytest.fixture(scope="module")
def sizes(chapter):
    """The sizes that the chapter's code sets."""
    found = {}
    for names, values in re.findall(r"^([A-Z_]+(?:, [A-Z_]+)*) = (\d+(?:, \d+)*)$", chapter[0], re.MULTILINE):
        found |= dict(zip(names.split(", "), map(int, values.split(", ")), strict=True))
    return found


def drawn(name):
    """The texts of a figure and the boxes of one colour, ``boxes(filled or not, kind)``."""
    svg = ElementTree.parse(BOOK / "figures" / name).getroot()
    words = ["".join(text.itertext()) for text in svg.iter(TEXT)]

    def boxes(filled, kind):
        wanted = "fill" if filled else "stroke"
        return [r for r in svg.iter(RECT) if re.match(rf"{wanted}:var\(--mla-{kind},", r.get("style", ""))]

    return words, boxes


def test_the_drawing_program_uses_the_chapters_sizes(sizes, monkeypatch):
    monkeypatch.syspath_prepend(str(BOOK / "figures"))
    import decode_kernel

    assert (sizes["C"], sizes["R"]) == (decode_kernel.LATENT, decode_kernel.ROPE)
    for name in ("HEADS", "TOKENS", "SPLITS", "S_Q"):
        assert getattr(decode_kernel, name) == sizes[name], name
    sys.modules.pop("decode_kernel")


def test_the_grid_has_a_program_for_each_block_and_split(sizes):
    words, boxes = drawn("program-grid.svg")
    blocks = math.ceil(sizes["HEADS"] / 16)
    assert words.count("program") == blocks * sizes["SPLITS"]
    counts = [int(each.split()[0]) for each in words if re.fullmatch(r"\d+ tokens", each)]
    assert sum(counts) == sizes["TOKENS"]
    assert len(boxes(True, "query")) == sizes["HEADS"]


def test_the_block_table_is_that_of_the_chapters_problem(chapter, sizes):
    words, boxes = drawn("block-table.svg")
    pages, of = re.search(r"pages \[(.*?)\] of (\d+)", chapter[1]).groups()
    assert f"pool: {of} pages of 32 rows" in words
    label = ElementTree.parse(BOOK / "figures" / "block-table.svg").getroot().get("aria-label")
    assert f"pages {pages};" in label
    filled = [float(box.get("width")) for box in boxes(True, "key")]
    assert sum(filled) / max(filled) == pytest.approx(sizes["TOKENS"] / 32, abs=1e-3)


def test_a_row_sees_the_keys_up_to_its_own_token(sizes):
    _, boxes = drawn("decode-rows.svg")
    keys = {float(box.get("width")) for box in boxes(True, "neutral") if float(box.get("x")) > 100}
    assert len(keys) == 1  # the box of the legend stands further left, and is of another width
    rows = Counter(float(box.get("y")) for box in boxes(False, "neutral") if float(box.get("x")) > 100)
    masked = [count for _, count in sorted(rows.items())]
    assert masked == [unseen for unseen in range(sizes["S_Q"] - 1, 0, -1) for _ in range(3)]


def test_the_merged_result_is_that_of_both_sums():
    words, _ = drawn("decode-merge.svg")
    label = ElementTree.parse(BOOK / "figures" / "decode-merge.svg").getroot().get("aria-label")
    first, second = map(int, re.search(r"log-sum-exp of (\d) .* split 1 has (\d)", label).groups())
    assert words.count(str(first)) == words.count(str(second)) == 1
    assert f"{math.log2(2**first + 2**second):.2f}" in words
    assert any(each.endswith(f"/ {1 + 2.0 ** (second - first):g}") for each in words)
