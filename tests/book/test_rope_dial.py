"""The dial in a browser: it scores as Python does, and its hands turn with their own positions."""

import itertools
import math

import pytest

from mla_edu.book.widgets import RopeDial
from mla_edu.book.widgets.rope_dial import quantities


@pytest.fixture(scope="module")
def bare(bare_page):
    """The address of a page that holds the widget alone."""
    return bare_page(RopeDial())


def test_page_scores_as_python_scores(open_page, bare):
    grid = list(itertools.product((0, 17, 63), (0, 1, 2, 5, 30, 62, 63)))
    shown = open_page(bare).evaluate(
        """(grid) => grid.map(([key_position, distance]) => {
          shown.set("key_position", key_position);
          shown.set("distance", distance);
          return shown.read();
        })""",
        grid,
    )
    for (key_position, distance), found in zip(grid, shown, strict=True):
        wanted = quantities(key_position, distance)
        assert {name: float(value) for name, value in found.items()} == pytest.approx(wanted, abs=1e-9, rel=0)


def test_hands_turn_with_their_own_positions(open_page, bare):
    page = open_page(bare)

    def hands(part):
        hands = page.locator(f"[data-hand={part}]")
        return hands.evaluate_all(
            "all => all.map(e => Math.atan2(40 - e.getAttribute('y2'), e.getAttribute('x2') - 40))"
        )

    def turned(part, before):
        return [(after - first) % 6.283185307 for first, after in zip(before, hands(part), strict=True)]

    query, key = hands("query"), hands("key")
    page.locator("[name=distance]").fill("6")  # one further than at first
    frequencies = [1, 100**-0.25, 0.1, 100**-0.75, 1, 0.1]
    assert turned("query", query) == pytest.approx(frequencies, abs=1e-6)
    assert hands("key") == key
    query, scores = hands("query"), page.evaluate("shown.read()")
    page.locator("[name=key_position]").fill("1")
    assert turned("query", query) == pytest.approx(frequencies, abs=1e-6)
    assert turned("key", key) == pytest.approx(frequencies, abs=1e-6)
    for name, value in page.evaluate("shown.read()").items():
        assert float(value) == pytest.approx(float(scores[name]), abs=1e-9)


def test_a_hand_can_be_dragged_and_turns_as_many_positions_as_its_angle_says(open_page, bare):
    page = open_page(bare + "?key_position=0&distance=0")
    grip = page.locator(".mla-dial-row").first.locator("svg").nth(2)  # its frequency is a tenth
    ring = grip.locator("[data-grip]").bounding_box()
    x, y, r = ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2, ring["width"] / 2
    hand = grip.locator("[data-hand=query]")
    start = math.atan2(40 - float(hand.get_attribute("y2")), float(hand.get_attribute("x2")) - 40)
    point = lambda angle: (x + 0.7 * r * math.cos(angle), y - 0.7 * r * math.sin(angle))  # noqa: E731
    page.mouse.move(*point(start))
    page.mouse.down()
    for part in range(1, 11):
        page.mouse.move(*point(start + 0.3 * part))
    assert page.locator("[name=distance]").input_value() == "30"
    for part in range(9, -5, -1):
        page.mouse.move(*point(start + 0.3 * part))
    assert page.locator("[name=distance]").input_value() == "0"  # and no further
    page.mouse.up()
    page.mouse.move(*point(start + 1))
    assert page.locator("[name=distance]").input_value() == "0"
    assert page.locator("[name=key_position]").input_value() == "0"


def test_sweep_goes_through_all_distances_and_a_press_ends_it(open_page, bare):
    page = open_page(bare + "?distance=60")
    sweep = page.locator("[name=play]")
    sweep.click()
    page.wait_for_function("document.querySelector('[name=distance]').value === '63'")
    assert sweep.inner_text() == "Sweep the distance"
    sweep.click()
    page.wait_for_function("Number(document.querySelector('[name=distance]').value) > 3")
    sweep.click()
    stood = page.locator("[name=distance]").input_value()
    page.wait_for_timeout(300)
    assert page.locator("[name=distance]").input_value() == stood
