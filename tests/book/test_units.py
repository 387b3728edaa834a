"""A number and its unit stay on one line, a model's name too; and what pages show has the signs of prose."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book" / "_ext"))

from units import join, keep_whole  # noqa: E402


@pytest.mark.parametrize("text", ["5.0 MB", "1 B", "4.8 TB/s", "989 TFLOP/s", "12 ms", "3 µs,", "20 min.", "60 MiB"])
def test_a_unit_is_joined_to_its_number(text):
    assert join(f"about {text} more") == f"about {text.replace(' ', chr(0xA0))} more"


@pytest.mark.parametrize(
    "text", ["80 of 80", "below 1e-05", "Table 9", "Figure 3", "head 1", "group 1", "4 GPUs", "RTX 40", "5.0\nMB"]
)
def test_a_number_is_joined_to_what_it_belongs_to(text):
    assert join(f"in {text} more") == "in {} more".format("\xa0".join(text.split()))


@pytest.mark.parametrize("text", ["5 Bytes", "3 models", "a B", "2 mins", "4 minutes", "1 section", "7 sB"])
def test_other_words_are_not(text):
    assert join(text) == text


def test_a_count_is_joined_to_what_it_counts():
    assert join("on 8 × H100, 2 × 64 and two × of it") == "on 8\xa0×\xa0H100, 2\xa0×\xa064 and two × of it"
    cells = '<table><td>256{}KiB</td></table><div class="mla-ruling"><p>8{}H100</p></div>'
    assert keep_whole(cells.format(" ", " × ")) == cells.format("\xa0", "\xa0×\xa0")


def test_a_short_number_and_a_name_in_a_table_keep_their_hyphens():
    cells = (
        '<table class="mla-table"><td id="a-1">≤ {}</td><th>({}),</th><td>mla-48+16-unrotated up-down</td></table>{}'
    )
    whole = [f'<span class="mla-unbroken">{number}</span>' for number in ("1e-12", "DeepSeek-V3.2-Exp")]
    assert keep_whole(cells.format("1e-12", "DeepSeek-V3.2-Exp", "1e-12")) == cells.format(*whole, "1e-12")


@pytest.mark.parametrize(
    "part", ["<table><td>{}</td></table>", '<figure class="mla-figure" a="it\'s"><b>{}</b></figure>']
)
def test_cells_and_pictures_have_the_signs_of_prose(part):
    plain = 'the models\' &quot;own&quot;, MHA&#x27;s "5-10" (-0.05 to -3), 1e-5, GQA-8'
    signs = "the models’ “own”, MHA’s “5-10” (−0.05 to −3), 1e-5, GQA-8"
    assert keep_whole(part.format(plain)) == part.format(signs)
    for tag in ("code", "annotation"):
        code = part.format(f"<{tag}>d_c' = -1</{tag}>")
        assert keep_whole(code) == code


def test_a_long_name_of_code_in_a_table_may_break_between_its_words():
    cells = "<table><td><code>[batch, {}]</code></td></table>"
    assert keep_whole(cells.format("qk_rope_head_dim")) == cells.format("qk_<wbr/>rope_<wbr/>head_<wbr/>dim")
    assert keep_whole(cells.format("hidden_size")) == cells.format("hidden_size")


def test_a_difference_of_names_has_an_unbroken_minus():
    cells = "<table><th>{}</th><td>worse - less</td></table>"
    assert keep_whole(cells.format("GQA - MHA")) == cells.format("GQA\xa0−\xa0MHA")


@pytest.mark.parametrize("page", sorted((ROOT / "book").glob("*.ipynb")), ids=lambda page: page.stem)
def test_a_percent_sign_stands_at_its_number(page):
    assert not re.findall(r"\d[ \u00a0]%(?!\w)", page.read_text(encoding="utf-8"))


def test_no_unit_of_the_landing_page_can_be_cut_off(html):
    page = (html / "book" / "index.html").read_text(encoding="utf-8")
    prose = re.sub(r"<(script|style|svg|pre)\b.*?</\1>|<[^>]+>", " ", page.partition("<article")[2], flags=re.S)
    assert "5.0\N{NO-BREAK SPACE}MB" in prose
    assert not re.findall(r"\d (?:[kMGT]?B|[nµm]?s|min)\b", prose)
