"""The stepper of a recorded run in Python: what it counts is what the frames hold."""

import pytest

from mla_edu.book.page_map import record
from mla_edu.book.widgets import EngineStepper
from mla_edu.book.widgets.engine_stepper import quantities
from mla_edu.serving import Engine
from tiny_engines import model_of


@pytest.fixture(scope="module")
def frames():
    engine = Engine(model_of("mla"), num_pages=6, page_size=3, max_batch_tokens=5)
    beginning = [3, 1, 4, 1, 5, 9]
    return record(engine, [(1, [*beginning, 2], 4), (2, [*beginning, 7], 3), (2, [8, 0, 6], 2)])[0]


def test_counts_are_those_of_the_frames(frames):
    before = 0
    for step, frame in enumerate(frames):
        found = quantities(frames, step)
        assert found["held"] + found["idle"] + found["free"] == 6
        tables = [page for request in frame.requests for page in request.pages]
        assert found["held"] == len(set(tables))
        assert found["saved"] == len(tables) - len(set(tables))
        assert found["computed"] <= 5
        assert found["written"] >= before
        before = found["written"]
    assert before == 4 + 3 + 2
    assert max(quantities(frames, step)["saved"] for step in range(len(frames))) == 1
    assert max(quantities(frames, step)["waiting"] for step in range(len(frames))) >= 1


def test_attributes_can_be_set_and_change_the_answers(frames):
    stepper = EngineStepper(frames)
    assert stepper.quantities["computed"] == 0
    stepper.step = 1
    assert stepper.quantities == quantities(frames, 1)
    assert stepper.quantities["computed"] == 5


def test_bad_settings_are_refused(frames):
    with pytest.raises(ValueError, match=f"step is {len(frames)}; expected an integer from 0 to {len(frames) - 1}"):
        EngineStepper(frames, step=len(frames))
    stepper = EngineStepper(frames, step=2)
    with pytest.raises(ValueError, match="step is -1; expected an integer"):
        stepper.step = -1
    with pytest.raises(ValueError, match=f"step is {len(frames)}; expected an integer"):
        stepper.step = len(frames)
    assert stepper.step == 2
    with pytest.raises(ValueError, match="the number of frames is 0; expected an integer from 1 to 500"):
        EngineStepper([])


def test_viewers_that_run_no_widget_get_the_answers(frames):
    data, _ = EngineStepper(frames, step=2)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    for text in (data["text/plain"], data["text/html"]):
        assert f"step 2 of {len(frames) - 1}: " in text
        assert "A running, " in text
