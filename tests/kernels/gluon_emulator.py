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
import re
import types
from pathlib import Path

import torch

from tests.kernels.gluon_machine import Barrier, Barriers, Machine, Product, Shared


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
        reshape=lambda values, shape: values.reshape(shape), exp2=torch.exp2, log2=torch.log2,
        warp_specialize=lambda functions, warps, registers: machine.run(functions),
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
