"""The clock: the same call timed again and again, each time as if it came first.

Before each call the last cache before memory is filled with other data, and the calls take turns on inputs of their
own, so that none finds its data where the last one left it. On a GPU each call is recorded as a CUDA graph beforehand
and timed by events on the device: what Python and the launches cost the host is not in the times.

(``torch.utils.benchmark.Timer`` and Triton's ``do_bench`` leave no room between two calls: the first warms up with the
call itself and then runs it in a row, the second empties a GPU's cache, but records no graph.)
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

Call = Callable[[], Any]
TIMED_MICROSECONDS = 30_000  # of each kernel on each case, about
MOST = 50  # repetitions


class Timing(NamedTuple):
    """What was found of one call."""

    microseconds: float  # median
    spread: float  # the middle half of the times, as a share of the median


def l2_bytes(device: torch.device) -> int:
    """Size of a GPU's last cache before memory; 0 for a CPU, which does not tell."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def record(calls: Sequence[Call], device: torch.device) -> list[Call]:
    """The calls as they are timed: on a GPU each as a CUDA graph, which gives what the recorded call gave.

    Each call runs once before, so that nothing is left to compile, to load or to plan.
    """
    for call in calls:
        call()
    if device.type != "cuda":
        return list(calls)
    torch.cuda.synchronize(device)
    stream = torch.cuda.current_stream(device)
    pool = torch.cuda.graph_pool_handle()  # one memory for all graphs: they never run at the same time
    try:
        return [_capture(call, pool) for call in calls]
    except BaseException:
        torch.cuda.set_stream(stream)  # a capture that fails would leave its own
        raise


def _capture(call: Call, pool: Any) -> Call:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        answer = call()

    def replay(_call: Call = call) -> Any:  # with the call goes the memory that the graph reads
        graph.replay()
        return answer

    return replay


@dataclass(frozen=True)
class Clock:
    """How calls are timed."""

    device: torch.device
    fewest: int = 5  # repetitions, 2 or more; a first round of as many warms up
    evicted_bytes: int = 2**29  # read before each call; four times the L2 if that is more

    def time(self, calls: Sequence[Call]) -> Timing:
        """Median time of one call; ``calls`` do the same work on different inputs, and come from ``record``."""
        return self.time_in_turn([calls])[0]

    def time_in_turn(self, rivals: Sequence[Sequence[Call]]) -> list[Timing]:
        """``time`` of each rival. Each runs once a round, so that what else the machine does falls on all alike."""
        memory = torch.ones(max(4 * l2_bytes(self.device), self.evicted_bytes) // 4, device=self.device)
        sink = torch.empty((), device=self.device)

        def evict() -> None:  # by reading: what was written would be written back while the call is timed
            torch.sum(memory, dim=0, out=sink)

        measure = _times_on_gpu if self.device.type == "cuda" else _times_on_cpu

        def times(rounds: int) -> list[list[float]]:  # of each rival
            taken = measure([calls[i % len(calls)] for i in range(rounds) for calls in rivals], evict)
            return [taken[i :: len(rivals)] for i in range(len(rivals))]

        slowest = max(statistics.median(each) for each in times(self.fewest))
        rounds = max(min(int(TIMED_MICROSECONDS / slowest), MOST), self.fewest)
        return [_timing(each) for each in times(rounds)]


def _timing(times: list[float]) -> Timing:
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, (high - low) / median)


def _times_on_gpu(calls: Sequence[Call], evict: Callable[[], None]) -> list[float]:
    pairs = []
    for call in calls:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        evict()  # while it runs, the host gets ahead and has the events and the graph in the queue
        start.record()
        call()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [1e3 * start.elapsed_time(end) for start, end in pairs]


def _times_on_cpu(calls: Sequence[Call], evict: Callable[[], None]) -> list[float]:
    times = []
    for call in calls:
        evict()
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    return times


def copy_call(num_bytes: int, device: torch.device) -> Call:
    """A copy of ``num_bytes``, which reads them and writes as many."""
    source = torch.randint(256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def read_calls(num_bytes: int, device: torch.device) -> list[Call]:
    """Sums of ``num_bytes`` in three ways: all numbers, each row, each row by a matrix product with a vector.

    They read, and next to nothing is written. In fp32, which is summed as it comes: integers are converted first.
    """
    numbers = torch.ones(num_bytes // 2**16, 2**14, device=device)
    ones, totals, total = numbers[0].clone(), torch.empty(len(numbers), device=device), torch.empty((), device=device)
    return [
        lambda: torch.sum(numbers.flatten(), dim=0, out=total),
        lambda: torch.sum(numbers, dim=1, out=totals),
        lambda: torch.mv(numbers, ones, out=totals),
    ]


def matmul_call(size: int, dtype: torch.dtype, device: torch.device) -> Call:
    """The product of two square matrices of random numbers: ``2 * size**3`` operations."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    return lambda: torch.matmul(a, b, out=out)


def copy_bytes_per_s(num_bytes: int, clock: Clock) -> float:
    """Bytes read plus bytes written per second by a copy of ``num_bytes``."""
    calls = record([copy_call(num_bytes, clock.device)], clock.device)
    return 2 * num_bytes / (1e-6 * clock.time(calls).microseconds)


def read_bytes_per_s(num_bytes: int, clock: Clock) -> float:
    """Bytes read per second by the fastest sum of ``num_bytes``."""
    sums = [record([call], clock.device) for call in read_calls(num_bytes, clock.device)]
    return num_bytes / (1e-6 * min(clock.time(calls).microseconds for calls in sums))


def matmul_flop_per_s(size: int, dtype: torch.dtype, clock: Clock) -> float:
    """Operations per second of the product of two square matrices of random numbers."""
    calls = record([matmul_call(size, dtype, clock.device)], clock.device)
    return 2 * size**3 / (1e-6 * clock.time(calls).microseconds)


def floor_microseconds(clock: Clock) -> float:
    """What this clock shows for a call that does next to nothing."""
    number = torch.zeros(1, device=clock.device)
    return clock.time(record([lambda: number.fill_(1)], clock.device)).microseconds
