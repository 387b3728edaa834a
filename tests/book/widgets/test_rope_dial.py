"""The dial in Python: three scores of one toy head, of which two know the distance."""

import pytest

from mla_edu.book.widgets import RopeDial
from mla_edu.book.widgets.rope_dial import quantities

FAR = range(1, 64)


def test_scores_depend_on_the_distance_alone():
    for distance in range(64):
        assert quantities(63, distance) == pytest.approx(quantities(0, distance), abs=1e-12)


def test_moved_bracket_is_right_at_distance_0_and_wrong_elsewhere():
    assert quantities(9, 0)["error"] == pytest.approx(0, abs=1e-12)
    assert all(abs(quantities(0, distance)["error"]) > 0.1 for distance in FAR)
    assert len({quantities(0, distance)["absorbed"] for distance in range(64)}) == 1


def test_decoupled_score_is_the_absorbed_content_and_a_rotary_part_that_moves():
    rotary = set()
    for distance in range(64):
        found = quantities(3, distance)
        assert found["content"] == found["absorbed"]
        assert found["decoupled"] == found["content"] + found["rotary"]
        rotary.add(round(found["rotary"], 6))
    assert len(rotary) == 64


def test_attributes_can_be_set_and_change_the_answers():
    dial = RopeDial(key_position=0, distance=0)
    assert dial.quantities["rotated"] == pytest.approx(dial.quantities["absorbed"])
    dial.distance = 20
    assert dial.quantities == quantities(0, 20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key_position": -1}, "key_position is -1; expected an integer from 0 to 63"),
        ({"distance": 64}, "distance is 64; expected an integer from 0 to 63"),
        ({"distance": True}, "distance is True; expected an integer"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RopeDial(**settings)


def test_viewers_that_run_no_widget_get_the_answers():
    data, _ = RopeDial(key_position=2, distance=5)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    for text in (data["text/plain"], data["text/html"]):
        assert "query at 7, key at 2, distance 5" in text
        assert "bracket moved across the rotation 5.826, off by 4.423" in text
