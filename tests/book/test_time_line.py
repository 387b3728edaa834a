"""Times for a log of the emulated kernel: worked out by hand, and the same whatever order the log came about in."""

import pytest

from mla_edu.book.time_line import Span, replay
from mla_edu.kernels.gluon_machine import LogEntry

TIMES = {"per_byte": 1.0, "per_multiplication": 1.0, "per_weight": 1 / 4096}
LOG = [
    LogEntry(1, "wait", "free", 0),  # nothing to wait for
    LogEntry(1, "expect", "full", 5),
    LogEntry(1, "copy", "full", 2),
    LogEntry(1, "copy", "full", 3),
    LogEntry(None, "landed", "full", 3),
    LogEntry(None, "landed", "full", 2),
    LogEntry(None, "phase", "full", 0),
    LogEntry(0, "wait", "full", 1),
    LogEntry(0, "product", "", 4),
    LogEntry(0, "product", "", 2),
    LogEntry(0, "load", "", 64),
    LogEntry(0, "store", "", 4096),  # under the products
    LogEntry(0, "joined"),
    LogEntry(0, "arrive", "free"),
    LogEntry(None, "phase", "free", 0),
    LogEntry(1, "wait", "free", 1),
    LogEntry(1, "copy", "full", 1),
]
SPANS = [
    Span(1, "copy", 0, 2, 2),
    Span(1, "copy", 2, 5, 3),
    Span(0, "product", 5, 9, 4),
    Span(0, "product", 9, 11, 2),
    Span(0, "softmax", 5, 6, 4096),
    Span(1, "copy", 11, 12, 1),
]


def test_copies_follow_each_other_and_waits_last_until_their_phase_ends():
    assert replay(LOG, **TIMES) == SPANS


def test_a_store_of_something_else_takes_no_time():
    assert replay([LogEntry(0, "store", "", 64), LogEntry(0, "product", "", 1)], **TIMES) == [
        Span(0, "product", 0, 1, 1)
    ]


def test_the_order_in_which_the_emulator_ran_makes_no_difference():
    pytest.importorskip("triton.experimental.gluon")
    from mla_edu.kernels import gluon_launch
    from mla_edu.kernels.gluon_emulator import EmulatedKernel
    from mla_edu.kernels.problems import random_problem

    problem, found = random_problem([256], num_heads=3), []
    for seed in (0, 1):
        kernel = EmulatedKernel("seesaw", seed=seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gluon_launch, "seesaw", kernel)
            gluon_launch.decode(*problem.tensors, **problem.options, num_splits=1)
        found.append((kernel.logs[0], sorted(replay(kernel.logs[0], **TIMES))))
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]
