"""What the emulator of the Gluon kernels promises: barriers, memory, products, and a log of what happened."""

from collections import Counter

import pytest
import torch

pytest.importorskip("triton.experimental.gluon")
from mla_edu.kernels import gluon_launch
from mla_edu.kernels.gluon_emulator import EmulatedKernel
from mla_edu.kernels.gluon_language import Pointer, language
from mla_edu.kernels.gluon_machine import Barrier, Deadlock, EmulatedMachine, LogEntry
from mla_edu.kernels.problems import random_problem

WIDE = torch.zeros(64, 64, dtype=torch.bfloat16)


@pytest.fixture
def machine():
    return EmulatedMachine("0", [])


@pytest.fixture
def names(machine):
    """What a kernel finds; one block of barriers."""
    return language(machine, 0, 4, iter(["ready"]))


def emulate(lens, seed=0, changes=()):
    problem, kernel = random_problem(lens, num_heads=3), EmulatedKernel("seesaw", changes, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gluon_launch, "seesaw", kernel)
        gluon_launch.decode(*problem.tensors, **problem.options, num_splits=1)
    return kernel.logs


def test_a_phase_ends_when_all_have_arrived_and_all_bytes_have_landed(machine):
    barrier = Barrier(machine, "b")
    barrier.init(2)
    barrier.arrive()
    assert barrier.phase == 0
    barrier.arrive(num_bytes=100)
    assert barrier.phase == 0
    barrier.landed(60)
    barrier.landed(40)
    assert barrier.phase == 1
    assert machine.log == [LogEntry(None, "phase", "b", 0)]
    barrier.arrive()
    with pytest.raises(AssertionError, match="more arrivals"):
        barrier.arrive(2)


def test_a_wait_passes_when_the_phase_of_its_parity_is_over(machine, names):
    gl, mbarrier = names["gl"], names["mbarrier"]
    ready = gl.allocate_shared_memory(gl.int64, [1, 1], None).index(0)
    mbarrier.init(ready, count=1)
    order = []

    def first():
        mbarrier.wait(ready, 1)  # as if phase -1 were over
        order.append("works")
        mbarrier.arrive(ready, count=1)

    def second():
        mbarrier.wait(ready, 0)
        order.append("follows")

    machine.run([(second, ()), (first, ())])
    assert order == ["works", "follows"]
    assert [each for each in machine.log if each.what == "wait"] == [
        LogEntry(1, "wait", "ready[0]", 0),
        LogEntry(0, "wait", "ready[0]", 1),
    ]


def test_a_deadlock_says_who_waits_where(machine, names):
    gl, mbarrier = names["gl"], names["mbarrier"]
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], None).index(1)
    mbarrier.init(ready, count=1)
    with pytest.raises(Deadlock, match=r"^group 1 waits at ready\[1\] in phase 0$"):
        machine.run([(lambda: None, ()), (lambda: mbarrier.wait(ready, 0), ())])


@pytest.mark.parametrize("fenced", [False, True])
def test_products_see_what_threads_stored_after_a_fence_only(machine, names, fenced):
    gl, found = names["gl"], []
    memory = gl.allocate_shared_memory(gl.bfloat16, [64, 64], None)

    def work():
        memory.store(WIDE)
        if fenced:
            names["fence_async_shared"]()
        product = names["warpgroup_mma"](WIDE, memory, None, use_acc=False, is_async=True)
        found.append(names["warpgroup_mma_wait"](0, deps=(product,)))

    machine.run([(work, ())])
    assert found[0].isnan().all() != fenced


def test_memory_that_nobody_wrote_and_products_that_nobody_waited_for_are_nan():
    unread = []
    for seed in range(20):
        machine = EmulatedMachine(str(seed), [])
        names = language(machine, 0, 4, iter([]))
        memory = names["gl"].allocate_shared_memory(torch.bfloat16, [64, 64], None)

        def work(memory=memory, names=names):
            assert memory.load().isnan().all()
            memory.store(WIDE)
            names["fence_async_shared"]()
            product = names["warpgroup_mma"](WIDE, memory, None, use_acc=False, is_async=True)
            early = names["warpgroup_mma_wait"](1, deps=(product,))
            unread.append(bool(early.isnan().all()))
            assert not names["warpgroup_mma_wait"](0, deps=(product,)).any()

        machine.run([(work, ())])
    assert any(unread) and not all(unread)


def test_the_log_of_each_group_is_the_same_in_every_order_and_counts_its_work():
    logs = [emulate([256], seed)[0] for seed in range(3)]
    assert logs[0] != logs[1]
    by_group = [[[each for each in log if each.group == group] for group in range(3)] for log in logs]
    assert by_group[0] == by_group[1] == by_group[2]
    left, right, loader = (Counter(each.what for each in group) for group in by_group[0])
    tiles = 4
    assert loader["copy"] == 9 * (tiles + 1) and loader["wait"] == 2 * tiles and not loader["product"]
    assert left["product"] == right["product"] == tiles // 2 * (5 + 2) and not left["copy"] and not right["copy"]
    multiplied = sum(each.amount for each in logs[0] if each.what == "product")
    assert multiplied == tiles * 64 * 64 * (576 + 512)
    landed = sum(each.amount for each in logs[0] if each.what == "landed")
    assert landed == (tiles + 1) * 64 * 576 * 2 == sum(each.amount for each in logs[0] if each.what == "expect")


def test_each_program_has_a_log_and_the_barriers_have_the_kernels_names():
    logs = emulate([64, 0, 200])
    assert len(logs) == 3
    names = {each.where.partition("[")[0] for log in logs for each in log if each.what == "wait"}
    assert names == {"loaded", "freed", "others"}


def test_what_cannot_be_emulated_is_refused():
    with pytest.raises(ValueError, match="name is 'see'; expected 'seesaw' or 'attend_fp8'"):
        EmulatedKernel("see")
    with pytest.raises(ValueError, match="changes has 'no such text'; expected a text of gluon.py or gluon_shares.py"):
        EmulatedKernel("seesaw", [("no such text", "")])


def test_a_place_outside_of_a_tensor_is_not_read():
    pointer = Pointer(torch.zeros(4)) + torch.arange(6)
    with pytest.raises(AssertionError, match="outside memory"):
        pointer.places(None)
    assert pointer.places(torch.arange(6) < 4).max() == 3
