"""The roofline in a browser: it shows what Python computes, and its mark climbs to the roof at the ridge and stays."""

import itertools

import pytest

from mla_edu.book.widgets import DecodeRoofline
from mla_edu.book.widgets.decode_roofline import DTYPES, quantities
from mla_edu.registry import list_gpus


@pytest.fixture(scope="module")
def bare(bare_page):
    """The address of a page that holds the widget alone."""
    return bare_page(DecodeRoofline())


def test_page_shows_what_python_computes(open_page, bare):
    shapes = itertools.cycle(itertools.product((1, 16, 63, 128), (1, 2, 8)))
    grid = [(gpu, *next(shapes), dtype) for gpu, dtype in itertools.product(list_gpus(), DTYPES)]
    shown = open_page(bare).evaluate(
        """(grid) => grid.map(([gpu, heads, s_q, dtype]) => {
          for (const [name, value] of Object.entries({ gpu, heads, s_q, dtype })) shown.set(name, value);
          return shown.read();
        })""",
        grid,
    )
    for settings, found in zip(grid, shown, strict=True):
        numbers = {name: float(value) for name, value in found.items()}
        assert numbers == pytest.approx(quantities(*settings), rel=1e-12), settings


def test_formats_say_their_bytes(open_page, bare):
    said = open_page(bare).locator("[name=dtype] option").all_inner_texts()
    assert said == ["bf16, 1,152", "fp16, 1,152", "fp8_mla, 656"]


def test_mark_climbs_to_the_roof_at_the_ridge_and_stays(open_page, bare):
    page = open_page(bare)

    def place(mark, name):
        return float(page.locator(f"[data-mark={mark}]").get_attribute(name))

    places = []
    for heads in (16, 64, 128):
        page.locator("[name=heads]").fill(str(heads))
        places.append((place("present", "cx"), place("present", "cy")))
    ridge = place("ridge", "x1")
    assert places[0][0] < places[1][0] < ridge < places[2][0]
    assert places[0][1] > places[1][1] > places[2][1]
    assert (
        page.locator(".mla-part-summary").inner_text()
        == "Arithmetic sets the pace: 128 rows, 117% of the 109 at the ridge."
    )
    page.locator("[name=s_q]").fill("8")
    assert place("present", "cy") == pytest.approx(places[2][1])
    page.locator("[name=dtype]").select_option("fp8_mla")
    assert place("ridge", "x1") < ridge
    page.locator("[name=s_q]").fill("1")
    page.locator("[name=heads]").fill("16")
    assert page.locator(".mla-part-summary").inner_text().startswith("Memory sets the pace: 16 rows")


def test_arrow_doubles_the_new_tokens(open_page, bare):
    page = open_page(bare)
    before = int(page.evaluate("shown.read()")["rows"])
    page.locator("[name=s_q-slider]").focus()
    page.keyboard.press("ArrowRight")
    assert int(page.evaluate("shown.read()")["rows"]) == 2 * before


def test_every_gpu_stands_on_one_axis_with_no_label_cut(open_page, bare):
    page, axes = open_page(bare), set()
    look = """svg => {
      const left = svg.getBoundingClientRect().left;
      const labels = [...svg.querySelectorAll("text[text-anchor=end]")].filter((e) => Number(e.getAttribute("x")) < 46);
      return [labels.map((e) => e.textContent), labels.every((e) => e.getBoundingClientRect().left >= left)];
    }"""
    for gpu in list_gpus():
        page.evaluate(f"shown.set('gpu', '{gpu}')")
        labels, whole = page.locator("svg[role=img]").evaluate(look)
        axes.add(tuple(labels))
        assert whole, gpu
        assert 20 <= float(page.locator("[data-mark=present]").get_attribute("cy")) <= 172, gpu
    (axis,) = axes
    assert axis[-1] == "10,000"
