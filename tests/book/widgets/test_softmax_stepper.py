"""The stepper in Python: after every tile its state is that of the keys read so far."""

import math

import pytest
import torch

from mla_edu.book.widgets import SoftmaxStepper
from mla_edu.book.widgets.softmax_stepper import SCORES, VALUES, quantities

ROW = torch.tensor([SCORES, VALUES], dtype=torch.float64)


@pytest.mark.parametrize("tile", [1, 4, 5, 7, 23, 24])
def test_state_after_each_tile_is_exact_for_the_keys_read(tile):
    for step in range(1, 25):
        found = quantities(tile, step)
        assert found["keys"] == min(tile * step, 24)
        scores, values = ROW[:, : found["keys"]]
        weights = (scores - scores.max()).exp()
        assert found["m"] == scores.max()
        assert found["l"] == pytest.approx(weights.sum().item(), rel=1e-14)
        assert found["a"] == pytest.approx((weights @ values).item(), rel=1e-13)
        assert found["out"] == pytest.approx((scores.softmax(dim=0) @ values).item(), rel=1e-13)
        assert found["lse"] == pytest.approx(scores.logsumexp(dim=0).item(), rel=1e-14)


def test_past_shrinks_at_a_new_maximum_and_only_there():
    for step in range(1, 7):
        before, after = quantities(4, step - 1), quantities(4, step)
        assert after["shrink"] == pytest.approx(math.exp(before["m"] - after["m"]))
    shrinks = [quantities(4, step)["shrink"] for step in range(1, 7)]
    assert [shrink < 1 for shrink in shrinks] == [True, True, True, False, True, False]


def test_nothing_read_is_the_empty_state():
    found = quantities(4, 0)
    assert (found["m"], found["l"], found["a"], found["lse"]) == (-math.inf, 0, 0, -math.inf)
    assert math.isnan(found["out"])


def test_attributes_can_be_set_and_change_the_answers():
    stepper = SoftmaxStepper()
    assert stepper.quantities["keys"] == 0
    stepper.step, stepper.tile = 2, 5
    assert stepper.quantities == quantities(5, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 0}, "tile is 0; expected an integer from 1 to 24"),
        ({"step": 25}, "step is 25; expected an integer from 0 to 24"),
        ({"step": True}, "step is True; expected an integer"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxStepper(**settings)


def test_viewers_that_run_no_widget_get_the_answers():
    data, _ = SoftmaxStepper(tile=4, step=3)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    for text in (data["text/plain"], data["text/html"]):
        assert "12 of 24 keys read, in tiles of 4" in text
        assert "m 2.100, l 3.122, a -0.407; the last tile shrank the past by 0.449" in text
