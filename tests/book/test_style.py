import re
from xml.etree import ElementTree

import pytest
import torch

from mla_edu.book import environment, figure, show, table


def drawing():
    fig, ax = figure()
    ax.plot([1, 2, 3], [1, 4, 9], label="with <cache>")
    ax.set_title("title")
    ax.legend()
    return show(fig, 'work "with" & without').svg


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


def test_a_figure_leaves_the_page_around_it_alone():
    svg = drawing()
    assert "<style" not in svg
    assert "http://" not in svg.replace("http://www.w3.org/", "")
    identifiers = set(re.findall(r' id="([^"]+)"', svg))
    assert identifiers <= set(re.findall(r"#([\w-]+)", svg))


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
