"""What goes on at the same time in one program that ``gluon_emulator`` runs: groups of warps, copies, products.

Each group of warps is a thread, of which one runs at a time. At every access to shared memory or to a barrier it is
drawn anew what goes on: a group of warps, a copy under way, a product under way.
"""

import math
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

TWO_NAN = 0x7FC07FC0  # of bf16, in a word


class Stopped(Exception):
    """Another group of warps failed."""


class Deadlock(Exception):
    """Nothing can go on; the message says who waits for what."""


class LogEntry(NamedTuple):
    """Something that a group of warps did, or that came about.

    By a group: "copy" (ordered; bytes), "expect" (bytes), "arrive", "wait" (when it was over; phases of the barrier
    that have ended), "product" (ordered; multiplications), "joined" (products waited for), "load" and "store" (of
    shared memory; numbers), "fence". By none: "landed" (a copy; bytes), "phase" (of a barrier, which one ended).
    """

    group: int | None
    what: str
    where: str = ""  # the barrier's name
    amount: int = 0


class EmulatedMachine:
    """What runs at the same time in one program, and in which order it comes about.

    Args:
        seed: of the order.
        log: what happens is appended to it.
    """

    def __init__(self, seed: str, log: list[LogEntry]):
        self.random = random.Random(seed)
        self.log = log
        self.groups: list[Group] = []
        self.copies: list[Callable[[], None]] = []
        self.current: Group | None = None
        self.weights: dict[tuple[str, int | None], float] = {}
        self.finished = threading.Event()
        self.error: Exception | None = None

    def group(self) -> "Group":
        """The group of warps whose turn it is."""
        assert self.current is not None, "only groups of warps do this"
        return self.current

    def note(self, what: str, where: str = "", amount: int = 0) -> None:
        """Append what the current group of warps did to the log."""
        self.log.append(LogEntry(self.group().number, what, where, amount))

    def note_by_itself(self, what: str, where: str, amount: int) -> None:
        """Append what came about to the log."""
        self.log.append(LogEntry(None, what, where, amount))

    def run(self, functions: Sequence[tuple[Callable[..., Any], Sequence[Any]]]) -> None:
        """Each function with its arguments in a group of its own, until all have ended.

        Raises:
            Deadlock: nothing can go on.
            AssertionError: a group did what it must not.
        """
        self.groups = [Group(self, number, *each) for number, each in enumerate(functions)]
        self.finished, self.error = threading.Event(), None
        for group in self.groups:
            group.thread.start()
        self.go_on()
        self.finished.wait()
        for group in self.groups:
            group.thread.join()
        self.groups, self.current = [], None
        if self.error is not None:
            raise self.error
        assert not self.copies, "copies are under way at the end"

    def go_on(self) -> None:
        """Let something happen, until it is a group's turn."""
        while True:
            actors: list[tuple[str, Group | None]] = [("group", group) for group in self.groups if group.can_go_on()]
            actors += [("copies", None)] * bool(self.copies)
            actors += [("products", group) for group in self.groups if group.products]
            if not actors:
                if all(group.ended for group in self.groups):
                    self.finished.set()
                else:
                    waits = "; ".join(f"{group.name} {group.waits_for}" for group in self.groups if not group.ended)
                    self.fail(Deadlock(waits))
                return
            if self.random.random() < 1 / 100:
                self.weights.clear()
            kind, group = self.random.choices(actors, [self._speed(*actor) for actor in actors])[0]
            if group is None:
                self.copies.pop(self.random.randrange(len(self.copies)))()
            elif kind == "products":
                group.products.pop(0).compute()
            else:
                self.current = group
                group.turn.release()
                return

    def _speed(self, kind: str, group: "Group | None") -> float:
        """How fast an actor is, by orders of magnitude; for a while."""
        actor = (kind, group.number if group else None)
        if actor not in self.weights:
            self.weights[actor] = 10 ** self.random.uniform(-12, 0)
        return self.weights[actor]

    def fail(self, error: Exception) -> None:
        """Stop all groups; the first error is the one that is raised."""
        self.error = self.error or error
        self.copies.clear()
        for group in self.groups:
            group.stopped = True
            group.turn.release()
        self.finished.set()

    def pause(self, condition: Callable[[], bool] | None = None, waits_for: str = "") -> None:
        """The current group's turn ends; it comes back when it is drawn and the condition holds."""
        group = self.current
        if group is None:
            assert condition is None or condition(), f"the program waits for itself: {waits_for}"
            return
        group.condition, group.waits_for = condition, waits_for
        self.go_on()
        group.turn.acquire()
        if group.stopped:
            raise Stopped
        group.condition = None


class Group:
    """One group of warps, in a thread."""

    def __init__(self, machine: EmulatedMachine, number: int, function: Callable[..., Any], arguments: Sequence[Any]):
        self.machine, self.number, self.name = machine, number, f"group {number}"
        self.turn, self.waits_for = threading.Semaphore(0), "has not begun"
        self.condition: Callable[[], bool] | None = None
        self.ended = self.stopped = False
        self.products: list[Product] = []  # under way, in order
        self.stored: list[tuple[Tensor, Tensor]] = []  # since the last fence
        self.thread = threading.Thread(target=self._work, args=(function, arguments), daemon=True)

    def can_go_on(self) -> bool:
        """Whether what it waits for has happened."""
        return not self.ended and (self.condition is None or self.condition())

    def _work(self, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
        self.turn.acquire()
        try:
            if not self.stopped:
                function(*arguments)
                assert not self.products, f"{self.name} ended with products under way"
                self.ended = True
                self.machine.go_on()
        except Stopped:
            pass
        except Exception as error:
            self.machine.fail(error)


class Barrier:
    """An mbarrier: a phase ends when all have arrived and all bytes that were announced have landed."""

    def __init__(self, machine: EmulatedMachine, name: str):
        self.machine, self.name = machine, name
        self.count = self.pending = self.bytes = self.phase = 0

    def init(self, count: int) -> None:
        """Begin phase 0, which ``count`` arrivals end."""
        self.count = self.pending = count
        self.bytes = self.phase = 0

    def settle(self) -> None:
        """Begin the next phase, if nothing is missing for this one."""
        if self.pending == 0 and self.bytes == 0:
            self.machine.note_by_itself("phase", self.name, self.phase)
            self.phase, self.pending = self.phase + 1, self.count

    def arrive(self, count: int = 1, num_bytes: int = 0) -> None:
        """One arrival or more, which may announce bytes."""
        self.pending, self.bytes = self.pending - count, self.bytes + num_bytes
        assert self.pending >= 0, "more arrivals at a barrier than it counts"
        self.settle()

    def landed(self, num_bytes: int) -> None:
        """Bytes of a copy have landed."""
        self.bytes -= num_bytes
        self.settle()


class Barriers:
    """Several barriers in shared memory, by number."""

    def __init__(self, machine: EmulatedMachine, name: str, count: int):
        self.barriers = [Barrier(machine, f"{name}[{i}]") for i in range(count)]

    def index(self, i: int) -> Barrier:
        """The barrier with a number."""
        return self.barriers[int(i)]


class Shared:
    """Shared memory as threads see it, and as products and copies do: all of it NaN at first."""

    def __init__(self, machine: EmulatedMachine, threads: Tensor, others: Tensor):
        self.machine, self.threads, self.others = machine, threads, others

    def view(self, change: Callable[[Tensor], Tensor]) -> "Shared":
        """The same memory, otherwise arranged."""
        return Shared(self.machine, change(self.threads), change(self.others))

    def index(self, i: int) -> "Shared":
        """One of several tiles."""
        return self.view(lambda memory: memory[int(i)])

    def slice(self, start: int, length: int, dim: int = 0) -> "Shared":
        """Part of a tile."""
        return self.view(lambda memory: memory.narrow(dim, int(start), int(length)))

    def permute(self, order: Sequence[int]) -> "Shared":
        """The tile with its dimensions in another order."""
        return self.view(lambda memory: memory.permute(*order))

    def load(self, layout: object = None) -> Tensor:
        """What the threads of the current group read."""
        self.machine.pause()
        self.machine.note("load", amount=self.threads.numel())
        return self.threads.clone()

    def store(self, values: Tensor) -> None:
        """Threads write; products and copies find NaN here until the threads' fence."""
        self.machine.pause()
        assert values.shape == self.threads.shape
        self.threads.copy_(values)
        self.others.fill_(TWO_NAN if self.others.dtype == torch.int32 else math.nan)
        self.machine.group().stored.append((self.others, self.threads))
        self.machine.note("store", amount=values.numel())

    def _reinterpret(self, dtype: torch.dtype, shape: Sequence[int], layout: object) -> "Shared":
        assert self.threads.view(dtype).shape == tuple(shape)
        return self.view(lambda memory: memory.view(dtype))


class Product:
    """A product under way: its operands are read when it is computed, and it may be used after a wait."""

    def __init__(self, machine: EmulatedMachine, a: "Shared | Tensor", b: Shared, acc: "Product | Tensor | None"):
        self.a = a if isinstance(a, Shared) else Shared(machine, a, a)
        self.b, self.acc = b, acc
        self.value: Tensor | None = None

    @property
    def multiplications(self) -> int:
        """Of two numbers each."""
        return self.a.others.shape[0] * self.b.others.numel()

    def poison(self) -> Tensor:
        """What stands in the registers of a product that was not waited for: NaN."""
        return torch.full((self.a.others.shape[0], self.b.others.shape[1]), math.nan)

    def compute(self) -> None:
        """Read the operands, multiply, and add the earlier sum."""
        acc = self.acc.value if isinstance(self.acc, Product) else self.acc
        self.value = self.a.others.float() @ self.b.others.float()
        if acc is not None:
            self.value = self.value + acc
