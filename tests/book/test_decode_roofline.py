"""The roofline of chapter 12 in a browser: it computes as Python does, by keyboard, within its limits, at any width."""

import itertools
import re
from pathlib import Path

import pytest

from mla_edu.book.widgets import DecodeRoofline
from mla_edu.book.widgets.decode_roofline import quantities
from mla_edu.registry import list_gpus

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTER = "12-what-a-gpu-can-do"
CONTROLS = ["gpu", "dtype", "heads", "heads-slider", "s_q", "s_q-slider"]


@pytest.fixture(scope="module")
def bare(bare_page):
    """The address of a page that holds the saved widget alone."""
    return bare_page(CHAPTER)


def test_page_computes_what_python_computes(open_page, bare):
    grid = list(itertools.product(list_gpus(), (1, 16, 63, 128), (1, 2, 8), ("16-bit", "fp8")))
    shown = open_page(bare).evaluate(
        """(grid) => grid.map(([gpu, heads, s_q, dtype]) => {
          for (const [name, value] of Object.entries({ gpu, heads, s_q, dtype })) shown.set(name, value);
          return shown.read();
        })""",
        grid,
    )
    for settings, found in zip(grid, shown, strict=True):
        wanted = quantities(*settings)
        assert set(wanted) - set(found) == {"ridge"}
        numbers = {name: float(value) for name, value in found.items()}
        assert numbers == pytest.approx({name: wanted[name] for name in found}, rel=1e-12), settings


def test_page_comes_from_the_committed_notebook(saved_widget):
    _, state, view = saved_widget(CHAPTER)
    fresh = DecodeRoofline()
    for name in ("_esm", "_css", "datasheets"):
        assert state.state[view].state[name] == getattr(fresh, name), f"{name} is stale: run `make notebooks`"


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
        page.locator("[aria-live=polite]").inner_text()
        == "Arithmetic sets the pace: 128 rows, 117% of the 109 at the ridge."
    )
    page.locator("[name=s_q]").fill("8")
    assert place("present", "cy") == pytest.approx(places[2][1])
    page.locator("[name=dtype]").select_option("fp8")
    assert place("ridge", "x1") < ridge
    page.locator("[name=s_q]").fill("1")
    page.locator("[name=heads]").fill("16")
    assert page.locator("[aria-live=polite]").inner_text().startswith("Memory sets the pace: 16 rows")


def test_keyboard_alone_is_enough(open_page, bare):
    page = open_page(bare)
    page.locator("[name=gpu]").focus()
    reached, before = ["gpu"], page.evaluate("shown.read()")
    while reached[-1] != CONTROLS[-1] and len(reached) < 20:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
    assert reached == CONTROLS
    page.keyboard.press("ArrowRight")
    assert int(page.evaluate("shown.read()")["rows"]) == 2 * int(before["rows"])


def test_every_control_has_a_name(open_page, bare):
    page = open_page(bare)
    unnamed = page.locator("[data-widget] :is(select, input)").evaluate_all(
        "all => all.filter(e => !e.ariaLabel && ![...e.labels].some(l => l.textContent.trim())).map(e => e.name)"
    )
    assert not unnamed
    assert page.locator("svg[role=img]").get_attribute("aria-label")


def test_number_out_of_range_is_put_right_and_said(open_page, bare):
    page = open_page(bare)
    page.locator("[name=heads]").fill("500")
    assert page.locator("[role=status]").inner_text() == "heads on this GPU: 500 became 128."
    page.locator("[name=heads]").fill("")
    assert "expected a whole number from 1 to 128" in page.locator("[role=status]").inner_text()


LOOK = """(root) => {
  const right = (element) => element.getBoundingClientRect().right;
  const seen = [...root.querySelectorAll("*")].filter((e) => e.getClientRects().length);
  return {
    outside: seen.filter((e) => right(e) > right(root) + 1).map((e) => e.outerHTML),
    small: [...root.querySelectorAll("svg text")].filter((e) => e.getBoundingClientRect().height < 10).length,
    sideways: document.documentElement.scrollWidth - innerWidth,
  };
}"""


def test_widget_fits_its_page(open_page, serve, html):
    page = open_page(f"{serve(html)}book/{CHAPTER}.html")
    for gpu, width in itertools.product(("h200", "b200", "mi300x"), (1280, 390)):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(f"shown.set('gpu', '{gpu}')")
        look = page.locator("[data-widget=decode-roofline]").evaluate(LOOK)
        assert look == {"outside": [], "small": 0, "sideways": 0}, (gpu, width)


def test_text_enters_the_page_as_text_alone():
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|import\(|fetch"
    assert not re.search(unsafe, DecodeRoofline._esm)
