"""The clock: the same call timed again and again, each time as if it came first.

Before each call the second-level cache is filled with other data, and the calls take turns on inputs of their own, so
that none finds its data where the last one left it. On a GPU each call is recorded as a CUDA graph beforehand and timed
by events on the device: what Python and the launches cost the host is not in the times.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

Call = Callable[[], Any]
TIMED_MICROSECONDS = 30_000  # of each kernel on each case, about
MOST = 50  # repetitions
EVICTED_BYTES = {"cuda": 2**29, "cpu": 2**26}  # at least; four times the L2 if that is more


class Timing(NamedTuple):
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


def _capture(call: Call, pool: tuple[int, int]) -> Call:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        answer = call()

    def replay() -> Any:
        graph.replay()
        return answer

    return replay


def time_calls(calls: Sequence[Call], device: torch.device, fewest: int = 5) -> Timing:
    """Median time of one call.

    Args:
        calls: the same work on different inputs, from ``record``.
        device: where they run.
        fewest: repetitions at least, 2 or more; a first round of as many warms up.
    """
    memory = torch.ones(max(4 * l2_bytes(device), EVICTED_BYTES[device.type]) // 4, device=device)
    sink = torch.empty((), device=device)

    def evict() -> None:  # by reading: what was written would be written back while the call is timed
        torch.sum(memory, dim=0, out=sink)

    measure = _times_on_gpu if device.type == "cuda" else _times_on_cpu
    trial = statistics.median(measure(calls, evict, fewest))
    repetitions = max(min(int(TIMED_MICROSECONDS / trial), MOST), fewest)
    times = measure(calls, evict, repetitions)
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, (high - low) / median)


def _times_on_gpu(calls: Sequence[Call], evict: Callable[[], None], repetitions: int) -> list[float]:
    pairs = []
    for i in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        evict()  # while it runs, the host gets ahead and has the events and the graph in the queue
        start.record()
        calls[i % len(calls)]()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [1e3 * start.elapsed_time(end) for start, end in pairs]


def _times_on_cpu(calls: Sequence[Call], evict: Callable[[], None], repetitions: int) -> list[float]:
    times = []
    for i in range(repetitions):
        evict()
        start = time.perf_counter()
        calls[i % len(calls)]()
        times.append(1e6 * (time.perf_counter() - start))
    return times


def copy_bytes_per_s(num_bytes: int, device: torch.device) -> float:
    """Bytes read plus bytes written per second by a copy of ``num_bytes``."""
    source = torch.randint(256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls = record([lambda: target.copy_(source)], device)
    return 2 * num_bytes / (1e-6 * time_calls(calls, device).microseconds)


def matmul_flop_per_s(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of the product of two square matrices of random numbers."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    calls = record([lambda: torch.matmul(a, b, out=out)], device)
    return 2 * size**3 / (1e-6 * time_calls(calls, device).microseconds)


def floor_microseconds(device: torch.device) -> float:
    """What this clock shows for a call that does next to nothing."""
    number = torch.zeros(1, device=device)
    return time_calls(record([lambda: number.fill_(1)], device), device).microseconds
