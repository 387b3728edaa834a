"""The clock: the same call timed again and again, each time as if it came first.

Before each call the second-level cache is overwritten, and the calls take turns on inputs of their own, so that none
finds its data where the last one left it. On a GPU each call is captured in a CUDA graph beforehand and timed by
events on the device: what Python and the launches cost the host is not in the times.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TIMED_MICROSECONDS = 30_000  # of each kernel on each case, about
MOST = 50  # repetitions


class Timing(NamedTuple):
    microseconds: float  # median
    spread: float  # the middle half of the times, as a share of the median


def l2_bytes(device: torch.device) -> int:
    """Size of the last cache before memory; of a CPU, a guess."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 2**24


def time_calls(calls: Sequence[Callable[[], object]], device: torch.device, fewest: int = 5) -> Timing:
    """Median time of one call.

    Args:
        calls: the same work on different inputs; each has run before, so that nothing is left to compile.
        device: where they run.
        fewest: repetitions at least, 2 or more; a first round of as many warms up.
    """
    flush = torch.empty(4 * l2_bytes(device), dtype=torch.uint8, device=device)
    measure = _times_on_gpu if device.type == "cuda" else _times_on_cpu
    if device.type == "cuda":
        pool = torch.cuda.graph_pool_handle()  # one memory for all graphs: they never run at the same time
        calls = [_captured(call, pool) for call in calls]
    trial = statistics.median(measure(calls, flush, fewest))
    repetitions = max(min(int(TIMED_MICROSECONDS / trial), MOST), fewest)
    times = measure(calls, flush, repetitions)
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, (high - low) / median)


def _captured(call: Callable[[], object], pool: tuple[int, int]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        call()
    return graph.replay


def _times_on_gpu(calls: Sequence[Callable[[], object]], flush: Tensor, repetitions: int) -> list[float]:
    pairs = []
    for i in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()  # while it runs, the host gets ahead and has the events and the graph in the queue
        start.record()
        calls[i % len(calls)]()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize(flush.device)
    return [1e3 * start.elapsed_time(end) for start, end in pairs]


def _times_on_cpu(calls: Sequence[Callable[[], object]], flush: Tensor, repetitions: int) -> list[float]:
    times = []
    for i in range(repetitions):
        flush.zero_()
        start = time.perf_counter()
        calls[i % len(calls)]()
        times.append(1e6 * (time.perf_counter() - start))
    return times


def copy_bytes_per_s(num_bytes: int, device: torch.device) -> float:
    """Bytes read plus bytes written per second by a copy of ``num_bytes``."""
    source = torch.randint(256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / (1e-6 * time_calls([lambda: target.copy_(source)], device).microseconds)


def matmul_flop_per_s(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of the product of two square matrices of random numbers."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    return 2 * size**3 / (1e-6 * time_calls([lambda: torch.matmul(a, b, out=out)], device).microseconds)
