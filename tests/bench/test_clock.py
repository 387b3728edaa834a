"""The clock: what comes between two calls, how often each runs, what is counted."""

import pytest
import torch

from mla_edu.bench import clock
from mla_edu.bench.clock import Timing, copy_bytes_per_s, l2_bytes, matmul_flop_per_s, time_calls

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def ticks(monkeypatch):
    """``ticks(seconds)``: from now on a call takes so many seconds, one after the other, by the clock that is read."""

    def let(durations):
        now = [0.0]
        readings = []
        for duration in durations:
            readings += [now[0], now[0] + duration]
            now[0] += duration + 1
        monkeypatch.setattr(clock.time, "perf_counter", iter(readings).__next__)

    return let


def test_calls_take_turns_and_the_cache_is_overwritten_before_each(monkeypatch):
    happened = []
    zero = torch.Tensor.zero_

    def zero_and_tell(tensor):
        happened.append(tensor.nbytes)
        return zero(tensor)

    monkeypatch.setattr(torch.Tensor, "zero_", zero_and_tell)
    monkeypatch.setattr(clock, "MOST", 5)
    time_calls([lambda: happened.append("a"), lambda: happened.append("b")], CPU, fewest=2)
    assert set(happened[::2]) == {4 * l2_bytes(CPU)}
    assert happened[1::2] == ["a", "b", "a", "b", "a", "b", "a"]


def test_median_and_spread_are_of_the_round_after_the_first(ticks):
    ticks([9, 9, 9, 9, 9, 1, 2, 3, 4, 100])
    assert time_calls([lambda: None], CPU, fewest=5) == Timing(3e6, pytest.approx((52 - 1.5) / 3))


@pytest.mark.parametrize(("microseconds", "repetitions"), [(1, 50), (1000, 30), (10**6, 5)])
def test_quick_calls_are_repeated_more_often(ticks, microseconds, repetitions):
    ticks([1e-6 * (microseconds - 1e-4)] * 100)
    calls = []
    time_calls([lambda: calls.append(1)], CPU)
    assert len(calls) == 5 + repetitions


def test_copy_counts_reading_and_writing(monkeypatch):
    monkeypatch.setattr(clock, "time_calls", lambda calls, device: calls[0]() is None or Timing(2.0, 0.0))
    assert copy_bytes_per_s(1000, CPU) == 1e9


def test_product_counts_multiplications_and_additions(monkeypatch):
    monkeypatch.setattr(clock, "time_calls", lambda calls, device: calls[0]() is None or Timing(2.0, 0.0))
    assert matmul_flop_per_s(10, torch.float32, CPU) == 1e9


def test_a_gpu_is_timed_by_events_around_the_call_alone(monkeypatch):
    happened = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            happened.append("event")
            self.place = len(happened)

        def elapsed_time(self, end):  # milliseconds
            assert happened[-1] == "synchronized"
            return (end.place - self.place) / 1e3

    class Flush:
        device = "cuda:3"

        def zero_(self):
            happened.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: happened.append("synchronized"))
    calls = [lambda: happened.append("a"), lambda: happened.append("b")]
    assert clock._times_on_gpu(calls, Flush(), 3) == [2, 2, 2]
    timed = ["flush", "event", "a", "event", "flush", "event", "b", "event", "flush", "event", "a", "event"]
    assert happened == [*timed, "synchronized"]


@needs_gpu
def test_captured_calls_each_work_on_their_own_input():
    device = torch.device("cuda")
    inputs = [torch.full((1000,), float(i), device=device) for i in range(3)]
    outs = [torch.empty_like(x) for x in inputs]
    time_calls([lambda x=x, out=out: torch.add(x, 1, out=out) for x, out in zip(inputs, outs, strict=True)], device)
    assert [out.unique().item() for out in outs] == [1, 2, 3]


@needs_gpu
def test_twice_the_bytes_take_about_twice_as_long():
    device = torch.device("cuda")
    one, two = (copy_bytes_per_s(size, device) for size in (2**28, 2**29))
    assert two == pytest.approx(one, rel=0.3)
