"""Each number in the prose is one that its page shows, and the check that says so sees those that are not."""

import sys

import nbformat
import pytest

from check_numbers import allowed, false_formulas, main, problems, read_page
from execute_notebooks import ROOT, chapters
from prose import numbers_in

PAGES = [*chapters(), *(ROOT / "book" / f"{name}.md" for name in ("index", "notation", "glossary")), ROOT / "README.md"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_each_number_in_the_prose_is_shown_on_its_page(path):
    assert problems(path, allowed().get(path.stem, {})) == []


def test_each_exception_belongs_to_a_page_and_has_a_reason():
    assert set(allowed()) <= {path.stem for path in PAGES}
    assert all(len(reason.split()) > 3 for page in allowed().values() for reason in page.values())


def page_of(tmp_path, prose, code="", output="", tags=()):
    """A notebook with one cell of prose and one of code."""
    cell = nbformat.v4.new_code_cell(code, metadata={"tags": list(tags)})
    if output:
        cell.outputs = [nbformat.v4.new_output("stream", text=output)]
    path = tmp_path / "page.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(prose), cell]), path)
    return read_page(path)


def missing(*arguments, **options):
    return [number for number, _ in page_of(*arguments, **options).missing()]


PLANTED = [
    ("It takes 576 numbers.", ["576"]),
    ("It takes 3.5 of them.", ["3.5"]),
    ("It is 16 times faster.", ["16 times"]),
    ("It is 4x faster.", ["4x"]),
    ("It is three times faster.", ["three times"]),
    ("All ten agree.", ["ten"]),
    ("Twenty-five lines do it.", ["Twenty-five"]),
    ("A hundred thousand words of it.", ["A hundred"]),
    ("It reads 131,072 tokens in 7 ms.", ["131,072", "7 ms"]),
    ("Half of it, or 43%.", ["43%"]),
    ("From 15 to 20 kB.", ["15", "20 kB"]),
    ("A fifth of $1.874$ is lost.", ["1.874"]),
    ("| a | b |\n|---|---|\n| x | 243 |\n", ["243"]),
    (":::{admonition} Takeaways\n- It holds 98 GB.\n:::", ["98 GB"]),
    ("```{glossary}\nwarp\n  Of 32 threads.\n```", ["32"]),
    ("## Why 71?\n", ["71"]),
]


@pytest.mark.parametrize(("prose", "expected"), PLANTED, ids=[prose[:24] for prose, _ in PLANTED])
def test_a_planted_number_is_found(tmp_path, prose, expected):
    assert missing(tmp_path, prose, code="x = 1") == expected


@pytest.mark.parametrize(
    "prose",
    [
        "Three heads of DeepSeek-V3, Llama 3.1 405B and an H100 in bf16, in 2026, on Triton 3.7.1, as Table 12.",
        "It is 16 times faster {cite:p}`deepseekv2`.",
        "It is [16 times faster](https://example.org/).",
        "> It is 16 times faster.\n",
        "The call `f(576)` and the 16-bit format.",
        "```\n576\n```\n",
    ],
)
def test_names_sources_quotations_and_listings_need_no_place(tmp_path, prose):
    assert missing(tmp_path, prose) == []


def test_a_citation_speaks_for_its_own_sentence_alone(tmp_path):
    assert missing(tmp_path, "It is 16 times faster {cite:p}`deepseekv2`. It takes 98 GB.") == ["98 GB"]


def test_what_the_page_shows_places_a_number(tmp_path):
    assert missing(tmp_path, "It takes 9.2 GB.", output="9,210,691,584 bytes") == []
    assert missing(tmp_path, "It takes 9.3 GB.", output="9,210,691,584 bytes") == ["9.3 GB"]
    assert missing(tmp_path, "It is 17 times faster.", output="17.31") == []
    assert missing(tmp_path, "43% of it.", output="0.434") == []
    assert missing(tmp_path, "Two of 16,384 tokens.", code="tokens = 128 * 128") == []
    assert missing(tmp_path, "It is $d = 512 + 64$, so 576.") == ["576"]
    assert missing(tmp_path, "It is $d = 512 + 64 = 576$, so 576.") == []


def test_an_unknown_page_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_numbers.py", "nowhere"])
    with pytest.raises(SystemExit):
        main()
    assert "PAGE is 'nowhere'; expected a chapter, such as one-token-at-a-time, or a file" in capsys.readouterr().err


def test_a_setting_is_not_a_result(tmp_path):
    assert missing(tmp_path, "It is 16 times faster.", code="heads = 16") == ["16 times"]
    assert missing(tmp_path, "It is 16 times faster.", code="assert a == 16 * b") == []
    assert missing(tmp_path, "With 16 heads.", code="heads = 16") == []


def test_a_count_is_not_rounded(tmp_path):
    assert missing(tmp_path, "With 17 heads.", output="17.31") == ["17"]


def test_texts_comments_charts_and_unchecked_outputs_back_nothing(tmp_path):
    assert missing(tmp_path, "With 17 heads.", code='x = "17"  # 17') == ["17"]
    assert missing(tmp_path, "With 17 heads.", output="17", tags=["nbval-ignore-output"]) == ["17"]
    cell = nbformat.v4.new_code_cell("x")
    cell.outputs = [
        nbformat.v4.new_output("display_data", data={"image/svg+xml": "<text>17</text>", "text/plain": "17"})
    ]
    path = tmp_path / "chart.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("With 17 heads."), cell]), path)
    assert [number for number, _ in read_page(path).missing()] == ["17"]


def test_a_linked_chapter_backs_the_sentence_with_the_link(tmp_path):
    link = "[The full layer](the-full-layer.ipynb)"
    assert missing(tmp_path, f"{link} keeps 576 numbers. It keeps 577, or 32,768.") == ["577", "32,768"]


def test_a_drawing_backs_what_is_written_in_it():
    page = read_page(ROOT / "book" / "the-full-layer.ipynb")
    assert 32768 in page.shown


@pytest.mark.parametrize(
    ("formula", "false"),
    [
        (r"2 \cdot 128 \cdot 128 = 32{,}768", []),
        (r"2 \cdot 128 \cdot 128 = 32{,}769", [r"2 \cdot 128 \cdot 128 = 32{,}769"]),
        (r"n = 512 + 64 = 575", ["512 + 64 = 575"]),
        (r"\frac{9216}{512} \approx 18", []),
        (r"\frac{9216}{500} \approx 18.4", []),
        (r"\frac{9216}{500} \approx 18.5", [r"\frac{9216}{500} \approx 18.5"]),
        (r"2^{10} = 1024", []),
        (r"a = b = 3", []),
    ],
)
def test_arithmetic_in_formulas_is_checked(formula, false):
    assert list(false_formulas(formula)) == false


def test_an_exception_that_is_not_needed_is_an_error(tmp_path):
    page_of(tmp_path, "With 17 heads.")
    path = tmp_path / "page.ipynb"
    assert problems(path, {"17": "the number of heads in a picture"}) == []
    assert problems(path, {}) == ["'17' in: With 17 heads."]
    assert "allows '18', which the page does not need" in problems(path, {"17": "a", "18": "b"})[0]


def test_a_number_is_read_with_its_unit():
    number = next(numbers_in("about 9.2 GB in all"))
    assert (number.value, number.step, number.scales, number.measured) == (9.2, pytest.approx(0.1), (1.0, 1e9), True)
