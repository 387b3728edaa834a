"""The operations of Gluon that the package's kernels use, done by PyTorch: see ``gluon_emulator``."""

import math
import re
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mla_edu.kernels.gluon_machine import Barrier, Barriers, EmulatedMachine, Product, Shared


class Pointer:
    """A place in a tensor that lies in memory in one piece, or a block of places."""

    def __init__(self, tensor: Tensor, offset: Any = 0):
        self.tensor, self.offset = tensor, offset
        self.dtype = types.SimpleNamespace(element_ty=tensor.dtype)

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.tensor, self.offset + offset)

    __radd__ = __add__

    def places(self, mask: Any) -> Tensor:
        """The offsets, 0 where the mask says no; none lies outside of the tensor."""
        offset = torch.as_tensor(self.offset)
        if mask is not None:
            offset = torch.where(torch.as_tensor(mask), offset, 0)
        assert not offset.numel() or (offset.min() >= 0 and offset.max() < self.tensor.numel()), "outside memory"
        return offset


class Integer(int):
    """An integer with ``to``."""

    def to(self, dtype: object) -> "Integer":
        """Itself, of whatever type."""
        return self


def _number_again(operation: Callable[[int, Any], Any]) -> Callable[[Integer, Any], Any]:
    def function(self: Integer, other: Any) -> Any:
        result = operation(self, other)
        return Integer(result) if isinstance(result, int) else result

    return function


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "mod", "and", "rand"):
    setattr(Integer, f"__{_name}__", _number_again(getattr(int, f"__{_name}__")))


def assembler(
    text: str, constraints: str, operands: Sequence[Tensor], dtype: object, is_pure: bool, pack: int
) -> tuple[Tensor, ...]:  # fmt: skip
    """What the GPU's assembler makes of blocks of words and numbers: a block for each of its outputs."""
    num_outputs = constraints.count("=")
    registers = {f"${num_outputs + i}": each for i, each in enumerate(torch.broadcast_tensors(*operands))}

    def halves(low: Tensor, high: Tensor) -> Tensor:
        return torch.stack((low, high), -1).contiguous().view(torch.int32).squeeze(-1)

    for line in text.strip("{} \n").split(";"):
        name, _, rest = line.strip().partition(" ")
        names = [each.strip("{}") for each in re.split(r",\s*", rest)]
        values: list[Any] = [registers.get(each) for each in names]
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


def _tensor_like(value: Any, other: Any) -> Tensor:
    dtype = other.dtype if isinstance(other, Tensor) else torch.float32
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)


def _where(condition: Any, a: Any, b: Any) -> Any:
    if not isinstance(condition, Tensor):
        return a if condition else b
    return torch.where(condition, _tensor_like(a, b), _tensor_like(b, a))


def _either(of_tensors: Callable[..., Tensor], of_numbers: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def function(a: Any, b: Any) -> Any:
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            return Integer(of_numbers(a, b))
        return of_tensors(_tensor_like(a, b), _tensor_like(b, a))

    return function


def _max(values: Tensor, dim: int) -> Tensor:
    """As a GPU's instruction has it: NaN only if all are."""
    if not values.is_floating_point():
        return values.amax(dim)
    all_nan = values.isnan().all(dim)
    return values.masked_fill(values.isnan(), -math.inf).amax(dim).masked_fill(all_nan, math.nan)


def _load(pointer: Pointer, mask: Any = None, other: Any = 0) -> Any:
    values = pointer.tensor[pointer.places(mask)]
    if mask is not None:
        values = torch.where(torch.as_tensor(mask), values, torch.tensor(other, dtype=values.dtype))
    return values if values.ndim else Integer(values)


def _store(pointer: Pointer, values: Any, mask: Any = None) -> None:
    offset, values = torch.broadcast_tensors(pointer.places(mask), torch.as_tensor(values))
    mask = torch.ones_like(offset, dtype=torch.bool) if mask is None else mask.expand(offset.shape)
    pointer.tensor[offset[mask]] = values[mask].to(pointer.tensor.dtype)


def _expand_dims(value: Any, dim: int) -> Any:
    if isinstance(value, Pointer):
        return Pointer(value.tensor, value.offset.unsqueeze(dim))
    return value.unsqueeze(dim)


def _layout(*args: Any, **options: Any) -> None:
    """Nothing: where the numbers of a block lie is the compiler's affair."""


def language(machine: EmulatedMachine, program: int, num_warps: int, barriers: Iterator[str]) -> dict[str, Any]:
    """``gl`` and the other modules that a kernel uses, by name.

    Args:
        machine: in which the kernel runs.
        program: its number.
        num_warps: as given at the launch.
        barriers: names for the blocks of barriers, in the order in which the kernel allocates them.
    """

    def allocate(dtype: torch.dtype, shape: Sequence[int], layout: None) -> Any:
        if dtype == torch.int64:
            return Barriers(machine, next(barriers), shape[0])
        return Shared(machine, *(torch.full(tuple(shape), math.nan, dtype=dtype) for _ in range(2)))

    gl = types.SimpleNamespace(
        constexpr=lambda value: value, num_warps=lambda: num_warps,
        float32=torch.float32, bfloat16=torch.bfloat16, int32=torch.int32, int64=torch.int64,
        NVMMADistributedLayout=_layout, DotOperandLayout=_layout, SliceLayout=_layout, BlockedLayout=_layout,
        NVMMASharedLayout=_layout, SwizzledSharedLayout=_layout, convert_layout=lambda value, to: value,
        static_range=range, program_id=lambda dim: Integer((program, 0, 0)[dim]), where=_where, load=_load,
        store=_store, arange=lambda start, stop, layout=None: torch.arange(start, stop),
        zeros=lambda shape, dtype, layout=None: torch.zeros(shape, dtype=dtype),
        full=lambda shape, value, dtype, layout=None: torch.full(shape, value, dtype=dtype),
        zeros_like=torch.zeros_like, expand_dims=_expand_dims, allocate_shared_memory=allocate,
        maximum=_either(torch.fmax, max), minimum=_either(torch.fmin, min), max=_max,
        min=lambda values, dim: values.amin(dim), sum=lambda values, dim: values.sum(dim),
        associative_scan=lambda values, dim, function: values.cumsum(dim),
        inline_asm_elementwise=assembler, join=lambda a, b: torch.stack((a, b), -1),
        reshape=lambda values, shape: values.reshape(shape), exp2=torch.exp2, log2=torch.log2,
        warp_specialize=lambda functions, warps, registers: machine.run(functions),
    )  # fmt: skip
    return {"gl": gl, "gluon": types.SimpleNamespace(jit=lambda function: function), **_hopper(machine)}


def _hopper(machine: EmulatedMachine) -> dict[str, Any]:
    """What Gluon has for Hopper alone: barriers, copies by the TMA, products that run on by themselves."""

    def wait(barrier: Barrier, phase: Any) -> None:
        parity = int(phase)
        machine.pause(lambda: barrier.phase & 1 != parity, f"waits at {barrier.name} in phase {barrier.phase}")
        machine.note("wait", barrier.name, barrier.phase)

    def arrive(barrier: Barrier, count: int = 1) -> None:
        machine.pause()
        machine.note("arrive", barrier.name)
        barrier.arrive(count)

    def expect(barrier: Barrier, num_bytes: int) -> None:
        machine.pause()
        machine.note("expect", barrier.name, num_bytes)
        barrier.arrive(1, num_bytes)

    def copy(descriptor: Any, coordinates: Sequence[Any], barrier: Barrier, target: Shared) -> None:
        (row, column), (height, width) = coordinates, descriptor.block_shape
        whole = descriptor.base.as_strided(descriptor.shape, descriptor.strides)
        block = whole[int(row) : int(row) + height, int(column) : int(column) + width]
        num_bytes = height * width * whole.element_size()

        def complete() -> None:
            for memory in (target.threads, target.others):
                memory.zero_()  # rows past the end
                memory[: block.shape[0]] = block
            machine.note_by_itself("landed", barrier.name, num_bytes)
            barrier.landed(num_bytes)

        machine.pause()
        machine.note("copy", barrier.name, num_bytes)
        machine.copies.append(complete)

    def fence() -> None:
        machine.pause()
        group = machine.group()
        for others, threads in group.stored:
            others.copy_(threads)
        group.stored.clear()
        machine.note("fence")

    def product(a: Any, b: Shared, acc: Any, use_acc: bool = True, is_async: bool = False) -> Product:
        assert is_async, "a product that is waited for at once is not emulated"
        machine.pause()
        result = Product(machine, a, b, acc if use_acc else None)
        machine.group().products.append(result)
        machine.note("product", amount=result.multiplications)
        return result

    def wait_for_products(outstanding: int, deps: Sequence[Product]) -> Any:
        machine.pause()
        queue = machine.group().products
        while len(queue) > outstanding:
            queue.pop(0).compute()
        machine.note("joined")
        values = [each.poison() if each.value is None else each.value for each in deps]
        return values[0] if len(deps) == 1 else tuple(values)

    mbarrier = types.SimpleNamespace(
        MBarrierLayout=_layout, init=lambda barrier, count: barrier.init(count), wait=wait, arrive=arrive, expect=expect
    )
    return {
        "mbarrier": mbarrier,
        "tma": types.SimpleNamespace(async_copy_global_to_shared=copy),
        "fence_async_shared": fence,
        "warpgroup_mma": product,
        "warpgroup_mma_wait": wait_for_products,
    }
