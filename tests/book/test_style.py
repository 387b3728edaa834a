import re
from xml.etree import ElementTree

import pytest
import torch

from mla_edu.book import KEY, NEUTRAL, environment, figure, show, table
from mla_edu.book.figures import _STYLE


def drawing(nudge=0, alt='work "with" & without'):
    fig, ax = figure()
    ax.plot([1, 2, 3 + nudge], [1, 4, 9], "o-", label="with <cache>")
    ax.set_title("title")
    ax.legend()
    return show(fig, alt).svg


def test_a_figure_is_the_same_bytes_every_time():
    assert drawing() == drawing()


def test_a_figure_tells_what_it_shows_to_those_who_do_not_see_it():
    root = ElementTree.fromstring(drawing())
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'work "with" & without'


def test_all_text_of_a_figure_takes_the_colour_of_the_page():
    styles = re.findall(r'<text style="([^"]*)"', drawing())
    assert len(styles) > 8
    assert all("fill: currentColor" in style for style in styles)


def test_a_figure_takes_the_colours_of_the_page_and_has_its_own_elsewhere():
    colours = re.findall(r"(?:fill|stroke): ([^;\"]*#\w{6}[^;\"]*)", drawing())
    assert set(colours) == {f"var(--mla-key, {KEY})", f"var(--mla-neutral, {NEUTRAL})"}
    assert set(re.findall(r"font-family: ([^;\"]*)", drawing())) == {
        "var(--pst-font-family-base, system-ui, sans-serif)"
    }


def test_a_logarithmic_axis_has_no_small_letters_below_a_million():
    fig, ax = figure()
    ax.loglog([1, 10**5], [1e-4, 1])
    sizes = [float(a or b) for a, b in re.findall(r"font: ([\d.]+)px|font-size: ([\d.]+)px", show(fig, "a line").svg)]
    assert min(sizes) == 10


def test_a_figure_leaves_the_page_around_it_alone():
    svg = drawing()
    assert "<style" not in svg
    assert "http://" not in svg.replace("http://www.w3.org/", "")
    identifiers = set(re.findall(r' id="([^"]+)"', svg))
    assert identifiers <= set(re.findall(r"#([\w-]+)", svg))


@pytest.mark.parametrize(("salt", "nudge"), [("mla", 1e-13), ("another", 0)])
def test_a_figure_does_not_show_how_a_processor_rounds(monkeypatch, salt, nudge):
    """matplotlib's identifiers are hashes of coordinates with all their digits, here of others by another salt."""
    monkeypatch.setitem(_STYLE, "svg.hashsalt", salt)
    assert drawing(nudge) == drawing()
    numbers = [number for path in re.findall(r' (?:d|x|y)="([^"]*)"', drawing()) for number in path.split()]
    assert max(len(number.partition(".")[2]) for number in numbers) == 2


def test_the_names_of_two_figures_do_not_meet_on_one_page():
    one, two = drawing(), drawing(alt="another picture")
    names = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, two)]
    assert all(names) and not names[0] & names[1]


def test_a_table_aligns_numbers_and_escapes_text():
    result = table(["model", "bytes"], [["a<b", 70272], ["longer name", 1]])
    assert repr(result).splitlines() == ["model         bytes", "a<b          70,272", "longer name       1"]
    assert '<td>a&lt;b</td><td class="number">70,272</td>' in result._repr_html_()


def test_percentages_are_numbers_too():
    assert '<td class="number">5%</td>' in table(["share"], [["5%"], ["100%"]])._repr_html_()
    assert "<td>5%</td>" in table(["share"], [["5%"], ["all"]])._repr_html_()


def test_a_ragged_table_is_refused():
    with pytest.raises(ValueError, match=r"row \['x'\] has 1 cells; expected 2"):
        table(["model", "bytes"], [["x"]])


def test_the_environment_line_names_device_torch_and_triton():
    assert re.fullmatch(rf".+ \| torch {re.escape(torch.__version__)} \| triton .+", environment())
