"""How many threads torch gets: where another process holds a core, two can be tens of times slower than one."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

TIMED_STEPS = 10  # with each number of threads
TIMED_SECONDS = 10.0  # after so many no more are timed


@contextmanager
def thread_count(number: int) -> Iterator[None]:
    """Within it, torch has so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def time_threads(step: Callable[[], object], numbers: Sequence[int], steps: int = TIMED_STEPS) -> dict[int, float]:
    """The median seconds of a step with each number of threads, which take turns.

    Args:
        step: is called once before it is timed.
        numbers: of threads.
        steps: with each number; fewer where they take long.
    """
    seconds: dict[int, list[float]] = {number: [] for number in numbers}
    step()
    end = time.perf_counter() + TIMED_SECONDS
    for turn in range(steps):
        if turn and time.perf_counter() > end:
            break
        for number, taken in seconds.items():
            with thread_count(number):
                start = time.perf_counter()
                step()
                taken.append(time.perf_counter() - start)
    return {number: statistics.median(taken) for number, taken in seconds.items()}
