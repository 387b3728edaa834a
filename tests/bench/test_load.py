"""The memory that loading takes, measured in a process of its own."""

import sys

import pytest

from mla_edu.bench.load import measure_load


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak of a process")
def test_a_model_is_never_held_twice():
    found = measure_load(num_experts=16)
    assert found.largest_tensor == 32000 * 1024 * 2
    assert found.weights > 2.4e8
    # Weights, the largest tensor, and the files that are mapped at a time.
    assert found.weights < found.peak < found.weights + found.largest_tensor + 1.5 * 2**26


def test_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RuntimeError, match="the system is darwin; expected linux"):
        measure_load()
