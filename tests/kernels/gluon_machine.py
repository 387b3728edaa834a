"""What goes on at the same time in one emulated program: see ``gluon_emulator``."""

import math
import random
import threading

import torch

TWO_NAN = 0x7FC07FC0  # of bf16, in a word


class Stopped(Exception):
    """Another group failed."""


class Deadlock(Exception):
    """Nothing can go on."""


class Machine:
    """What runs at the same time in one program, and in which order it comes about."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.groups, self.copies, self.current = [], [], None
        self.weights = {}

    def weight(self, actor):
        """How fast an actor is, by orders of magnitude; for a while."""
        if actor not in self.weights:
            self.weights[actor] = 10 ** self.random.uniform(-12, 0)
        return self.weights[actor]

    def run(self, functions):
        """Each function with its arguments in a group of its own, until all have ended."""
        self.groups = [Group(self, number, *each) for number, each in enumerate(functions)]
        self.finished, self.error = threading.Event(), None
        for group in self.groups:
            group.thread.start()
        self.go_on()
        self.finished.wait()
        for group in self.groups:
            group.thread.join()
        self.groups = []
        if self.error is not None:
            raise self.error
        assert not self.copies, "copies are under way at the end"

    def go_on(self):
        """Let something happen, until it is a group's turn."""
        while True:
            actors = [("group", group) for group in self.groups if group.can_go_on()]
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
            weights = [self.weight((kind, group and group.number)) for kind, group in actors]
            kind, group = self.random.choices(actors, weights)[0]
            if kind == "copies":
                self.copies.pop(self.random.randrange(len(self.copies)))()
            elif kind == "products":
                group.products.pop(0).compute()
            else:
                self.current = group
                group.turn.release()
                return

    def fail(self, error):
        self.error = self.error or error
        self.copies.clear()
        for group in self.groups:
            group.stopped = True
            group.turn.release()
        self.finished.set()

    def pause(self, condition=None, waits_for=""):
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

    def __init__(self, machine, number, function, arguments):
        self.machine, self.number, self.name = machine, number, f"group {number}"
        self.turn, self.condition, self.waits_for = threading.Semaphore(0), None, "has not begun"
        self.ended = self.stopped = False
        self.products, self.stored = [], []
        self.thread = threading.Thread(target=self.work, args=(function, arguments), daemon=True)

    def can_go_on(self):
        return not self.ended and (self.condition is None or self.condition())

    def work(self, function, arguments):
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
    def __init__(self, machine):
        self.machine, self.name = machine, ""

    def init(self, count):
        self.count = self.pending = count
        self.bytes = self.phase = 0

    def settle(self):
        if self.pending == 0 and self.bytes == 0:
            self.phase, self.pending = self.phase + 1, self.count

    def arrive(self, count=1, num_bytes=0):
        self.pending, self.bytes = self.pending - count, self.bytes + num_bytes
        assert self.pending >= 0, "more arrivals at a barrier than it counts"
        self.settle()

    def copied(self, num_bytes):
        self.bytes -= num_bytes
        self.settle()


class Shared:
    """Shared memory as threads see it, and as products and copies do."""

    def __init__(self, machine, threads, others):
        self.machine, self.threads, self.others = machine, threads, others

    def view(self, change):
        return Shared(self.machine, change(self.threads), change(self.others))

    def index(self, i):
        return self.view(lambda memory: memory[int(i)])

    def slice(self, start, length, dim=0):
        return self.view(lambda memory: memory.narrow(dim, int(start), int(length)))

    def permute(self, order):
        return self.view(lambda memory: memory.permute(*order))

    def load(self, layout=None):
        self.machine.pause()
        return self.threads.clone()

    def store(self, values):
        self.machine.pause()
        assert values.shape == self.threads.shape
        self.threads.copy_(values)
        self.others.fill_(TWO_NAN if self.others.dtype == torch.int32 else math.nan)  # until the fence
        self.machine.current.stored.append((self.others, self.threads))

    def _reinterpret(self, dtype, shape, layout):
        assert self.threads.view(dtype).shape == tuple(shape)
        return self.view(lambda memory: memory.view(dtype))


class Barriers:
    def __init__(self, barriers):
        self.barriers = barriers

    def index(self, i):
        return self.barriers[int(i)]


class Product:
    """A product under way. ``value`` is there once it was computed, and may be used after a wait."""

    def __init__(self, machine, a, b, acc):
        self.a = a if isinstance(a, Shared) else Shared(machine, a, a)
        self.b, self.acc, self.value = b, acc, None

    def compute(self):
        a, b = self.a.others, self.b.others
        acc = self.acc.value if isinstance(self.acc, Product) else self.acc
        self.value = a.float() @ b.float()
        if acc is not None:
            self.value = self.value + acc
