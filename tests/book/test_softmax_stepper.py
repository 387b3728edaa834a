"""The stepper in a browser: it computes as Python does, and draws and says what it computes."""

import math

import pytest

from mla_edu.book.widgets import SoftmaxStepper
from mla_edu.book.widgets.softmax_stepper import quantities


@pytest.fixture(scope="module")
def bare(bare_page):
    """The address of a page that holds the widget alone."""
    return bare_page(SoftmaxStepper())


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
    assert step.get_attribute("aria-valuemax") == "3"
    assert step.input_value() == "3"
    tile.fill("1")
    assert step.get_attribute("aria-valuemax") == "24"
    assert step.input_value() == "3"


def test_words_say_what_a_tile_did(open_page, bare):
    page = open_page(bare)
    said = []
    for step in (0, 1, 2, 4, 6):
        page.evaluate(f"shown.set('step', {step})")
        said.append(page.locator(".mla-part-summary").inner_text())
    for text, wanted in zip(
        said, ("Nothing is read", "first tile", "A new maximum", "No score", "All keys are read"), strict=True
    ):
        assert wanted in text


def test_arrows_read_tile_after_tile(open_page, bare):
    page = open_page(bare)
    page.locator("[name=step-slider]").focus()
    page.keyboard.press("Home")
    assert page.evaluate("shown.read().keys") == "0"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("shown.read().keys") == "4"
    page.locator("[name=tile-slider]").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.name") == "tile-slider"
    assert page.evaluate("shown.read().keys") == "5"


def test_drawing_says_how_far_it_is(open_page, bare):
    assert "keys read" in open_page(bare).locator("svg[role=img]").get_attribute("aria-label")


def test_buttons_read_tile_after_tile_and_play_to_the_end(open_page, bare):
    page = open_page(bare + "?tile=10")
    for name, keys in (("next", 10), ("next", 20), ("previous", 10)):
        page.locator(f"[name={name}]").click()
        assert page.evaluate("shown.read().keys") == str(keys)
    play = page.locator("[name=play]")
    play.click()
    assert play.inner_text() == "Pause"
    page.wait_for_function("shown.read().keys === '24'")
    assert play.inner_text() == "Play"
    play.click()
    assert page.evaluate("shown.read().keys") == "0"
    page.locator("[name=step]").fill("1")
    assert play.inner_text() == "Play"


def test_a_new_maximum_leaves_the_old_weights_as_dashes(open_page, bare):
    page = open_page(bare)
    for step in (2, 4):  # the first shrinks the past, the second does not
        page.evaluate(f"shown.set('step', {step})")
        shrink, ghosts = float(page.evaluate("shown.read().shrink")), page.locator("[data-before]")
        assert ghosts.count() == (4 if shrink < 1 else 0), step
        for key in range(ghosts.count()):
            old, new = (
                float(page.locator(f"[data-{kind}='{key}']").get_attribute("height")) for kind in ("before", "weight")
            )
            assert new / old == pytest.approx(shrink, rel=1e-9)
