"""Runs a Gluon kernel's own source on a CPU: PyTorch in the place of its operations, a thread for each group of warps.

One thread runs at a time, and at every access to shared memory or to a barrier it is drawn anew which goes on: a group
of warps, a copy under way, a product under way. So all that the kernel leaves to chance happens in some order, drawn
from a seed, and a deadlock is known as soon as nothing can go on. What would be wrong on a GPU shows here:

- Shared memory begins as NaN, and so does the result of a product that was not waited for.
- A product reads its operands at any time until it is waited for, a copy writes at any time after it was ordered.
- What threads store is not seen by products and copies before a fence of the thread.
- A barrier has phases, and counts bytes; a wait names a parity, as on a GPU.
- What a kernel says in the GPU's own assembler is read, and done line by line.

That the threads of one group of warps wait for each other is the compiler's work, and not looked at here.
"""

import ast
import functools
import math
import random
import re
import threading
import types
from pathlib import Path

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


class Pointer:
    """A place in a tensor that lies in memory in one piece."""

    def __init__(self, tensor, offset=0):
        self.tensor, self.offset = tensor, offset
        self.dtype = types.SimpleNamespace(element_ty=tensor.dtype)

    def __add__(self, offset):
        return Pointer(self.tensor, self.offset + offset)

    __radd__ = __add__


class Descriptor:
    """In the place of Triton's: what the copies of blocks need."""

    def __init__(self, base, shape, strides, block_shape, layout=None):
        self.tensor, self.block_shape = base.as_strided(shape, strides), block_shape


class Number(int):
    """An integer with ``to``."""

    def to(self, dtype):
        return self


for name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "mod", "and", "rand"):
    operation = getattr(int, f"__{name}__")

    def number_again(self, other, operation=operation):
        result = operation(self, other)
        return Number(result) if isinstance(result, int) else result

    setattr(Number, f"__{name}__", number_again)


def assembler(text, constraints, operands, dtype, is_pure, pack):
    """What the GPU's assembler makes of blocks of words and numbers: a block for each of its outputs."""
    num_outputs = constraints.count("=")
    registers = {f"${num_outputs + i}": each for i, each in enumerate(torch.broadcast_tensors(*operands))}

    def halves(low, high):
        return torch.stack((low, high), -1).contiguous().view(torch.int32).squeeze(-1)

    for line in text.strip("{} \n").split(";"):
        name, _, rest = line.strip().partition(" ")
        names = [each.strip("{}") for each in re.split(r",\s*", rest)]
        values = [registers.get(each) for each in names]
        if name == "mov.b32":
            registers |= zip(names[:2], values[2].contiguous().unsqueeze(-1).view(torch.int16).unbind(-1), strict=True)
        elif name == "cvt.rn.f16x2.e4m3x2":
            numbers = values[1].contiguous().unsqueeze(-1).view(torch.float8_e4m3fn).half()
            registers[names[0]] = halves(*numbers.view(torch.int16).unbind(-1))
        elif name == "cvt.f32.f16":
            registers[names[0]] = values[1].view(torch.float16).float()
        elif name == "mul.f32":
            registers[names[0]] = values[1] * values[2]
        elif name == "cvt.rn.bf16x2.f32":
            registers[names[0]] = halves(values[2].bfloat16().view(torch.int16), values[1].bfloat16().view(torch.int16))
        else:
            assert name in ("", ".reg"), f"{name} is not emulated"
    return tuple(registers[f"${i}"] for i in range(num_outputs))


def language(machine, place, num_warps):
    """``gl`` and the other modules that a kernel uses; ``place`` holds the program's number."""

    def tensor_like(value, other):
        dtype = other.dtype if isinstance(other, torch.Tensor) else torch.float32
        return value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=dtype)

    def where(condition, a, b):
        if not isinstance(condition, torch.Tensor):
            return a if condition else b
        return torch.where(condition, tensor_like(a, b), tensor_like(b, a))

    def either(of_tensors, of_numbers):
        def function(a, b):
            if not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor):
                return Number(of_numbers(a, b))
            return of_tensors(tensor_like(a, b), tensor_like(b, a))

        return function

    def fold(values, dim):
        """The maximum as a GPU's instruction has it: NaN only if all are."""
        if not values.is_floating_point():
            return values.amax(dim)
        all_nan = values.isnan().all(dim)
        return values.masked_fill(values.isnan(), -math.inf).amax(dim).masked_fill(all_nan, math.nan)

    def load(pointer, mask=None, other=0):
        offset = torch.as_tensor(pointer.offset)
        if mask is not None:
            offset = torch.where(torch.as_tensor(mask), offset, 0)
        assert not offset.numel() or (offset.min() >= 0 and offset.max() < pointer.tensor.numel()), "outside memory"
        values = pointer.tensor[offset]
        if mask is not None:
            values = torch.where(torch.as_tensor(mask), values, torch.tensor(other, dtype=values.dtype))
        return values if values.ndim else Number(values)

    def store(pointer, values, mask=None):
        values, offset = torch.as_tensor(values), torch.as_tensor(pointer.offset)
        offset, values = torch.broadcast_tensors(offset, values)
        mask = torch.ones_like(offset, dtype=torch.bool) if mask is None else mask.expand(offset.shape)
        offset, values = offset[mask], values[mask]
        assert not offset.numel() or (offset.min() >= 0 and offset.max() < pointer.tensor.numel()), "outside memory"
        pointer.tensor[offset] = values.to(pointer.tensor.dtype)

    def allocate(dtype, shape, layout):
        if dtype == torch.int64:
            return Barriers([Barrier(machine) for _ in range(shape[0])])
        return Shared(machine, *(torch.full(tuple(shape), math.nan, dtype=dtype) for _ in range(2)))

    def expand_dims(value, dim):
        if isinstance(value, Pointer):
            return Pointer(value.tensor, value.offset.unsqueeze(dim))
        return value.unsqueeze(dim)

    def layout(*args, **kwargs):
        return None

    gl = types.SimpleNamespace(
        constexpr=lambda value: value, num_warps=lambda: num_warps,
        float32=torch.float32, bfloat16=torch.bfloat16, int32=torch.int32, int64=torch.int64,
        NVMMADistributedLayout=layout, DotOperandLayout=layout, SliceLayout=layout, BlockedLayout=layout,
        NVMMASharedLayout=layout, SwizzledSharedLayout=layout, convert_layout=lambda value, to: value,
        static_range=range, program_id=lambda dim: Number(place[dim]), where=where, load=load, store=store,
        arange=lambda start, stop, layout=None: torch.arange(start, stop),
        zeros=lambda shape, dtype, layout=None: torch.zeros(shape, dtype=dtype),
        full=lambda shape, value, dtype, layout=None: torch.full(shape, value, dtype=dtype),
        zeros_like=torch.zeros_like, expand_dims=expand_dims, allocate_shared_memory=allocate,
        maximum=either(torch.fmax, max), minimum=either(torch.fmin, min), max=fold,
        min=lambda values, dim: values.amin(dim), sum=lambda values, dim: values.sum(dim),
        associative_scan=lambda values, dim, function: values.cumsum(dim),
        inline_asm_elementwise=assembler, join=lambda a, b: torch.stack((a, b), -1),
        reshape=lambda values, shape: values.reshape(shape), exp2=torch.exp2, log2=torch.log2, warp_specialize=lambda functions, warps, registers: machine.run(functions),
    )  # fmt: skip

    def wait(barrier, phase):
        parity, waiting = int(phase), f"waits at a barrier in phase {barrier.phase}"
        machine.pause(lambda: barrier.phase & 1 != parity, waiting)

    def arrive(barrier, count=1):
        machine.pause()
        barrier.arrive(count)

    def expect(barrier, num_bytes):
        machine.pause()
        barrier.arrive(1, num_bytes)

    def copy(descriptor, coordinates, barrier, target):
        (row, column), (height, width) = coordinates, descriptor.block_shape
        block = descriptor.tensor[int(row) : int(row) + height, int(column) : int(column) + width]

        def complete():
            for memory in (target.threads, target.others):
                memory.zero_()  # rows past the end
                memory[: block.shape[0]] = block
            barrier.copied(height * width * 2)

        machine.pause()
        machine.copies.append(complete)

    def fence():
        machine.pause()
        group = machine.current
        for others, threads in group.stored:
            others.copy_(threads)
        group.stored.clear()

    def product(a, b, acc, use_acc=True, is_async=False):
        machine.pause()
        result = Product(machine, a, b, acc if use_acc else None)
        machine.current.products.append(result)
        return result

    def wait_for_products(outstanding, deps):
        machine.pause()
        queue = machine.current.products
        while len(queue) > outstanding:
            queue.pop(0).compute()
        values = [poison(each) if each.value is None else each.value for each in deps]
        return values[0] if len(deps) == 1 else tuple(values)

    def poison(product):
        return torch.full((product.a.others.shape[0], product.b.others.shape[1]), math.nan)

    return {
        "gl": gl, "gluon": types.SimpleNamespace(jit=lambda function: function),
        "mbarrier": types.SimpleNamespace(
            MBarrierLayout=layout, init=lambda barrier, count: barrier.init(count), wait=wait, arrive=arrive,
            expect=expect,
        ),
        "tma": types.SimpleNamespace(async_copy_global_to_shared=copy),
        "fence_async_shared": fence, "warpgroup_mma": product, "warpgroup_mma_wait": wait_for_products,
    }  # fmt: skip


class Kernel:
    """``kernel[grid](**arguments)`` as Triton has it, of kernels in files; ``changes``: texts and what replaces them.

    A draw of the order for every program, from ``seed``.
    """

    def __init__(self, paths, name, changes=(), seed=0):
        source = "\n".join(Path(path).read_text(encoding="utf-8") for path in paths)
        for right, wrong in changes:
            assert right in source, f"no file has {right!r} any longer"
            source = source.replace(right, wrong)
        tree = ast.parse(source)
        tree.body = [each for each in tree.body if not isinstance(each, ast.Import | ast.ImportFrom)]
        self.code, self.name, self.seed = compile(tree, str(paths[-1]), "exec"), name, seed
        self.has_groups = "gl.warp_specialize(" in source

    def __getitem__(self, grid):
        def launch(num_warps, **arguments):
            arguments = {
                name: Pointer(value.as_strided([span(value)], [1])) if isinstance(value, torch.Tensor)
                else Number(value) if type(value) is int else value
                for name, value in arguments.items()
                if name not in ("maxnreg", "num_stages", "ptx_options")
            }  # fmt: skip
            for program in range(grid[0]):
                machine = Machine(f"{self.seed} {program}")
                names = language(machine, (program,), num_warps)
                exec(self.code, names)
                run = functools.partial(names[self.name], **arguments)
                if self.has_groups:
                    run()
                else:
                    machine.run([(run, ())])

        return launch


def span(tensor):
    """How many numbers lie between a tensor's first and its last, both included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
