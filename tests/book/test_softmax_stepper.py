"""The stepper of chapter 13 in a browser: it computes as Python does, by keyboard, within its limits, at any width."""

import itertools
import math
import re
from pathlib import Path

import pytest

from mla_edu.book.widgets import SoftmaxStepper
from mla_edu.book.widgets.softmax_stepper import quantities

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTER = "13-triton-and-online-softmax"


@pytest.fixture(scope="module")
def bare(bare_page):
    """The address of a page that holds the saved widget alone."""
    return bare_page(CHAPTER)


def test_page_computes_as_python_computes(open_page, bare):
    grid = [(tile, step) for tile in range(1, 25) for step in range(math.ceil(24 / tile) + 1)]
    shown = open_page(bare).evaluate(
        """(grid) => grid.map(([tile, step]) => {
          shown.set("tile", tile);
          shown.set("step", step);
          return shown.read();
        })""",
        grid,
    )
    for settings, found in zip(grid, shown, strict=True):
        numbers = {name: float(value) for name, value in found.items()}
        assert numbers == pytest.approx(quantities(*settings), rel=1e-13, abs=1e-14, nan_ok=True), settings


def test_page_comes_from_the_committed_code(saved_widget):
    _, state, view = saved_widget(CHAPTER)
    fresh = SoftmaxStepper()
    for name in ("_esm", "_css", "row"):
        assert state.state[view].state[name] == getattr(fresh, name), f"{name} is stale: run `make notebooks`"


def test_heights_of_the_weights_add_up_to_the_sum(open_page, bare):
    page = open_page(bare)
    bars = page.locator("[data-weight]")
    for step in range(1, 7):
        page.evaluate(f"shown.set('step', {step})")
        heights = bars.evaluate_all("all => all.map((e) => Number(e.getAttribute('height')))")
        assert len(heights) == 4 * step
        # 76 units are a weight of 1.
        assert sum(heights) / 76 == pytest.approx(float(page.evaluate("shown.read().l")), rel=1e-9)


def test_larger_tiles_leave_fewer_steps(open_page, bare):
    page = open_page(bare)
    step, tile = page.locator("[name=step]"), page.locator("[name=tile]")
    step.fill("6")
    tile.fill("10")
    assert step.get_attribute("max") == "3"
    assert step.input_value() == "3"
    tile.fill("1")
    assert step.get_attribute("max") == "24"
    assert step.input_value() == "3"


def test_words_say_what_a_tile_did(open_page, bare):
    page = open_page(bare)
    said = []
    for step in (0, 1, 2, 4, 6):
        page.evaluate(f"shown.set('step', {step})")
        said.append(page.locator("[aria-live=polite]").inner_text())
    for text, wanted in zip(
        said, ("Nothing is read", "first tile", "A new maximum", "No score", "All keys are read"), strict=True
    ):
        assert wanted in text


def test_keyboard_alone_is_enough(open_page, bare):
    page = open_page(bare)
    page.locator("[name=tile]").focus()
    reached = ["tile"]
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
    assert reached == ["tile", "tile-slider", "step", "step-slider"]
    page.keyboard.press("Home")
    assert page.evaluate("shown.read().keys") == "0"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("shown.read().keys") == "4"
    page.locator("[name=tile-slider]").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.name") == "tile-slider"
    assert page.evaluate("shown.read().keys") == "5"


def test_number_out_of_range_is_put_right_and_said(open_page, bare):
    page = open_page(bare)
    field, note = page.locator("[name=tile]"), page.locator("[role=status]")
    field.fill("99")
    assert note.inner_text() == "keys in a tile: 99 became 24."
    field.fill("")
    assert "expected a whole number from 1 to 24" in note.inner_text()
    field.fill("4")
    assert not note.inner_text()


LOOK = """(root) => {
  const channels = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = channels(getComputedStyle(root.querySelector("input")).backgroundColor);
  const contrast = (colour) => {
    const both = [channels(colour), paper].map((c) => luminance(c.slice(0, 3)) + 0.05);
    return Math.max(...both) / Math.min(...both);
  };
  const right = (element) => element.getBoundingClientRect().right;
  const seen = [...root.querySelectorAll("*")].filter((e) => e.getClientRects().length);
  const has_text = (e) => e.matches("input[type=number]") || [...e.childNodes].some((n) => n.nodeType === 3);
  const ink = (e) => (e.namespaceURI.endsWith("svg") ? getComputedStyle(e).fill : getComputedStyle(e).color);
  return {
    faint: seen.filter(has_text).filter((e) => contrast(ink(e)) < 4.5).map((e) => e.outerHTML),
    outside: seen.filter((e) => right(e) > right(root) + 1).map((e) => e.outerHTML),
    small: [...root.querySelectorAll("svg text")].filter((e) => e.getBoundingClientRect().height < 10).length,
    sideways: document.documentElement.scrollWidth - innerWidth,
  };
}"""


def test_widget_is_legible_and_fits_its_page(open_page, serve, html):
    page = open_page(f"{serve(html)}book/{CHAPTER}.html")
    for theme, width in itertools.product(("light", "dark"), (1280, 390)):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
        look = page.locator("[data-widget=softmax-stepper]").evaluate(LOOK)
        assert look == {"faint": [], "outside": [], "small": 0, "sideways": 0}, (theme, width)


def test_controls_and_drawing_have_names(open_page, bare):
    page = open_page(bare)
    unnamed = page.locator("[data-widget] input").evaluate_all(
        "all => all.filter(e => !e.ariaLabel && ![...e.labels].some(l => l.textContent.trim())).map(e => e.name)"
    )
    assert not unnamed
    assert "keys read" in page.locator("svg[role=img]").get_attribute("aria-label")


def test_text_enters_the_page_as_text_alone():
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|import\(|fetch"
    assert not re.search(unsafe, SoftmaxStepper._esm)
