"""The memory that loading takes, measured in a process of its own."""

import sys

import pytest

from mla_edu.bench.load import measure_load


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak of a process")
def test_a_model_is_never_held_twice():
    found = measure_load(num_experts=64)
    assert found.largest_tensor == 32000 * 1024 * 2
    assert found.weights > 5e8
    # Weights, the largest tensor, what is mapped at a time, and what is imported on the way.
    assert found.weights < found.peak < found.weights + found.largest_tensor + 3 * 2**26


def test_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RuntimeError, match="the system is darwin; expected linux"):
        measure_load()
