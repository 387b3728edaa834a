"""The clock: what comes between two calls, how often each runs, what is counted."""

import subprocess
import sys
import weakref

import pytest
import torch

from mla_edu.bench import clock
from mla_edu.bench.clock import Clock, Timing, copy_bytes_per_s, matmul_flop_per_s

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


def test_calls_take_turns_and_the_cache_is_filled_with_other_data_before_each(monkeypatch):
    happened = []
    add_up = torch.sum

    def add_up_and_tell(tensor, **options):
        happened.append(tensor.nbytes)
        return add_up(tensor, **options)

    monkeypatch.setattr(torch, "sum", add_up_and_tell)
    monkeypatch.setattr(clock, "MOST", 5)
    Clock(CPU, fewest=2, evicted_bytes=2**12).time([lambda: happened.append("a"), lambda: happened.append("b")])
    assert set(happened[::2]) == {2**12}
    assert happened[1::2] == ["a", "b", "a", "b", "a", "b", "a"]


def test_rivals_take_turns_and_each_has_its_own_times(ticks):
    happened = []
    rivals = [[lambda name=name: happened.append(name) for name in names] for names in ("ab", "c")]
    ticks([9, 9, 9, 9, 1, 5, 3, 7])
    times = Clock(CPU, fewest=2, evicted_bytes=2**10).time_in_turn(rivals)
    assert happened == ["a", "c", "b", "c"] * 2
    assert [each.microseconds for each in times] == [2e6, 6e6]
    assert times[1].spread == pytest.approx(3 / 6)


def test_the_slowest_rival_sets_the_rounds(ticks):
    calls = []
    ticks([0.001, 0.003] * 100)
    Clock(CPU, fewest=2, evicted_bytes=2**10).time_in_turn([[lambda: None], [lambda: calls.append(1)]])
    assert len(calls) == 2 + 9  # 30 ms in all, of 3.0 ms and a little each


def test_more_is_read_than_a_processor_holds_unless_told_otherwise():
    assert Clock(CPU).evicted_bytes == 2**29


def test_four_times_the_l2_is_read_where_that_is_more(monkeypatch):
    sizes = []
    monkeypatch.setattr(clock, "l2_bytes", lambda device: 2**20)
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda size, **options: sizes.append(4 * size) or ones(size, **options))
    monkeypatch.setattr(clock, "MOST", 2)
    Clock(CPU, fewest=2, evicted_bytes=2**10).time([lambda: None])
    assert sizes == [2**22]


def test_median_and_spread_are_of_the_round_after_the_first(ticks):
    ticks([9, 9, 9, 9, 9, 1, 2, 3, 4, 100])
    assert Clock(CPU, 5, 2**10).time([lambda: None]) == Timing(3e6, pytest.approx((52 - 1.5) / 3))


@pytest.mark.parametrize(("microseconds", "repetitions"), [(1, 50), (1000, 30), (10**6, 5)])
def test_quick_calls_are_repeated_more_often(ticks, microseconds, repetitions):
    ticks([1e-6 * (microseconds - 1e-4)] * 100)
    calls = []
    Clock(CPU, evicted_bytes=2**10).time([lambda: calls.append(1)])
    assert len(calls) == 5 + repetitions


def test_copy_counts_reading_and_writing(monkeypatch):
    monkeypatch.setattr(Clock, "time", lambda clock, calls: Timing(2.0, 0.0))
    assert copy_bytes_per_s(1000, Clock(CPU)) == 1e9


def test_product_counts_multiplications_and_additions(monkeypatch):
    monkeypatch.setattr(Clock, "time", lambda clock, calls: Timing(2.0, 0.0))
    assert matmul_flop_per_s(10, torch.float32, Clock(CPU)) == 1e9


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

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: happened.append("synchronized"))
    calls = [lambda: happened.append("a"), lambda: happened.append("b")]
    assert clock._times_on_gpu([*calls, calls[0]], lambda: happened.append("evict")) == [2, 2, 2]
    timed = ["evict", "event", "a", "event", "evict", "event", "b", "event", "evict", "event", "a", "event"]
    assert happened == [*timed, "synchronized"]


def test_each_sum_reads_every_number_once():
    for call in clock.read_calls(2**18, CPU):
        assert call().sum() == 2**18 / 4
    assert [call().shape for call in clock.read_calls(2**18, CPU)] == [(), (4,), (4,)]


def test_the_fastest_sum_is_the_yardstick(monkeypatch):
    times = iter([8.0, 2.0, 4.0])
    monkeypatch.setattr(Clock, "time", lambda *a: clock.Timing(next(times), 0.1))
    assert clock.read_bytes_per_s(2**20, Clock(CPU)) == 2**20 / 2e-6


class FakeGraphs:
    """CUDA graphs as far as Python sees them: what happens, and which stream is the current one."""

    def __init__(self, monkeypatch):
        happened = self.happened = []
        self.stream, fake = "own", self

        class Graph:
            def replay(self):
                happened.append(f"replay {self.name}")

        class Capture:
            def __init__(self, graph, pool):
                self.graph, graph.name = graph, len([each for each in happened if each == "capture"])
                assert pool == "pool"

            def __enter__(self):
                happened.append("capture")
                fake.stream = "capturing"

            def __exit__(self, kind, error, traceback):
                if kind is None:
                    fake.stream = "own"

        for name, value in {
            "CUDAGraph": Graph,
            "graph": Capture,
            "graph_pool_handle": lambda: "pool",
            "current_stream": lambda device: fake.stream,
            "set_stream": lambda stream: setattr(fake, "stream", stream),
            "synchronize": lambda device: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_each_call_runs_once_then_is_captured_and_only_replayed_from_then_on(monkeypatch):
    graphs, runs = FakeGraphs(monkeypatch), []
    calls = [lambda i=i: runs.append(i) or f"answer {i}" for i in range(3)]
    recorded = clock.record(calls, torch.device("cuda"))
    assert runs == [0, 1, 2, 0, 1, 2] and graphs.happened == ["capture"] * 3
    assert [call() for call in recorded] == ["answer 0", "answer 1", "answer 2"]
    assert len(runs) == 6 and graphs.happened[3:] == ["replay 0", "replay 1", "replay 2"]


def test_what_a_recorded_call_reads_lives_as_long_as_it(monkeypatch):
    FakeGraphs(monkeypatch)

    class Prepared:
        def __call__(self):
            return None

    prepared = Prepared()
    alive = weakref.ref(prepared)
    recorded = clock.record([prepared], torch.device("cuda"))
    del prepared
    assert alive() is not None
    del recorded
    assert alive() is None


def test_a_capture_that_fails_gives_the_stream_back(monkeypatch):
    graphs, runs = FakeGraphs(monkeypatch), []

    def fails_when_captured():
        runs.append(1)
        if len(runs) > 1:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        clock.record([fails_when_captured], torch.device("cuda"))
    assert graphs.stream == "own"


@needs_gpu
def test_captured_calls_each_work_on_their_own_input():
    device = torch.device("cuda")
    inputs = [torch.full((1000,), float(i), device=device) for i in range(3)]
    recorded = clock.record([lambda x=x: x + 1 for x in inputs], device)
    Clock(device).time(recorded)
    for x in inputs:
        x += 10  # what is replayed sees it
    assert [call().unique().item() for call in recorded] == [11, 12, 13]


@needs_gpu
def test_twice_the_bytes_take_about_twice_as_long():
    device = torch.device("cuda")
    one, two = (copy_bytes_per_s(size, Clock(device)) for size in (2**28, 2**29))
    assert two == pytest.approx(one, rel=0.3)


@needs_gpu
def test_first_product_of_a_process_can_be_captured():
    code = "import torch; from mla_edu.bench.clock import *; d = Clock(torch.device('cuda'));"
    code += "assert matmul_flop_per_s(1024, torch.float16, d) > 0"
    subprocess.run([sys.executable, "-c", code], check=True)
