"""The stepper of a recorded run in a browser: it counts as Python does, draws the pages, and plays."""

import pytest

from mla_edu.book.page_map import example_run
from mla_edu.book.widgets import EngineStepper
from mla_edu.book.widgets.engine_stepper import quantities


@pytest.fixture(scope="module")
def frames():
    return example_run()


@pytest.fixture(scope="module")
def bare(bare_page, frames):
    """The address of a page that holds the widget alone."""
    return bare_page(EngineStepper(frames))


def test_page_counts_as_python_counts(open_page, bare, frames):
    shown = open_page(bare).evaluate(
        "(last) => Array.from({ length: last + 1 }, (_, step) => { shown.set('step', step); return shown.read(); })",
        len(frames) - 1,
    )
    for step, found in enumerate(shown):
        assert {name: int(value) for name, value in found.items()} == quantities(frames, step), step


def test_boxes_and_tables_are_those_of_the_frame(open_page, bare, frames):
    page = open_page(bare)
    for step, frame in enumerate(frames):
        page.evaluate(f"shown.set('step', {step})")
        boxes = page.locator("[data-page]").evaluate_all("all => all.map(e => [e.dataset.state, e.textContent])")
        assert [state for state, _ in boxes] == [now.state for now in frame.pages]
        for number, ((_, text), now) in enumerate(zip(boxes, frame.pages, strict=True)):
            assert text.startswith(str(number)) and text.endswith(" ".join(now.names))
        rows = page.locator("[data-request]").evaluate_all("all => all.map(r => [...r.children].map(c => c.innerText))")
        assert rows == [
            [now.name, now.state, f"{now.computed} of {now.known}", " ".join(map(str, now.pages)) or "none"]
            for now in frame.requests
        ]


def test_buttons_go_on_and_back_and_stay_within_the_run(open_page, bare, frames):
    page = open_page(bare)
    step = page.locator("[name=step]")

    def press(name):
        page.locator(f"[name={name}]").focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.name") == name
        return int(step.input_value())

    assert [press(name) for name in ("previous", "next", "next", "previous", "next")] == [0, 1, 2, 1, 2]
    assert press("reset") == 0
    page.evaluate(f"shown.set('step', {len(frames) - 1})")
    assert press("next") == len(frames) - 1


def test_words_say_what_a_step_did(open_page, bare, frames):
    page = open_page(bare)
    said = page.locator(".mla-part-summary")
    assert said.inner_text() == "Nothing has run yet."
    page.locator("[name=next]").click()
    assert said.inner_text() == f"Step 1: {'; '.join(frames[1].events)}."
    label = page.locator("svg[role=img]").get_attribute("aria-label")
    assert label.startswith("The pages after step 1: page 0 held by A; page 1 held by A; page 2 free")


def test_play_runs_to_the_end_and_a_reader_can_stop_it(open_page, bare, frames):
    page = open_page(bare)
    page.clock.install()
    play, step = page.locator("[name=play]"), page.locator("[name=step]")
    play.click()
    page.clock.run_for(3100)
    assert (step.input_value(), play.inner_text()) == ("2", "Pause")
    play.click()
    page.clock.run_for(3100)
    assert (step.input_value(), play.inner_text()) == ("2", "Play")
    play.click()
    page.clock.run_for(1600)
    page.locator("[name=previous]").click()
    page.clock.run_for(3100)
    assert (step.input_value(), play.inner_text()) == ("2", "Play")
    play.click()
    page.clock.run_for(1500 * len(frames))
    assert (step.input_value(), play.inner_text()) == (str(len(frames) - 1), "Play")
    play.click()
    assert (step.input_value(), play.inner_text()) == ("0", "Pause")
