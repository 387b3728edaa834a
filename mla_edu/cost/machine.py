"""The roofline: what a machine's arithmetic and its memory allow (Williams, Waterman, Patterson 2009)."""

from typing import Literal, NamedTuple

from mla_edu.cost.compute import Cost
from mla_edu.registry import GPUSpec, get_gpu
from mla_edu.validation import shown


class Rates(NamedTuple):
    """What a machine does at best, by its datasheet or as measured."""

    flop_per_s: float
    bytes_per_s: float


Machine = (
    str | GPUSpec | Rates
)  # a GPU, by name too, has the rates of its datasheet; measured rates are used as they are


def rates(machine: Machine, dtype: str = "bf16") -> Rates:
    """The rates of a GPU's datasheet, of arithmetic in ``dtype``; ``Rates`` as they are.

    Args:
        machine: a GPU or its name, whose datasheet counts; or the ``Rates`` that were measured on one.
        dtype: of the arithmetic: ``"bf16"``, ``"fp8"``, or another that the GPU has.

    Raises:
        TypeError: ``machine`` is not one of these.
        ValueError: unknown GPU, or one without ``dtype``.
    """
    if isinstance(machine, Rates):
        return machine
    gpu = get_gpu(machine) if isinstance(machine, str) else machine
    if not isinstance(gpu, GPUSpec):
        raise TypeError(f"machine is {shown(machine)}; expected a GPU, its name or its Rates")
    if not isinstance(dtype, str) or dtype not in gpu.flops:
        raise ValueError(f"dtype is {shown(dtype)}; expected one that {gpu.name} has: {', '.join(gpu.flops)}")
    return Rates(gpu.flops[dtype], gpu.bandwidth)


def ridge(machine: Machine, dtype: str = "bf16") -> float:
    """Operations per byte from which arithmetic, not memory, sets the pace: peak over bandwidth.

    Args:
        machine: a GPU or its name, whose datasheet counts; or the ``Rates`` that were measured on one.
        dtype: of the arithmetic: ``"bf16"``, ``"fp8"``, or another that the GPU has.

    Raises:
        TypeError: ``machine`` is not one of these.
        ValueError: unknown GPU, or one without ``dtype``.
    """
    peak, bandwidth = rates(machine, dtype)
    return peak / bandwidth


def _check_cost(cost: object) -> None:
    if not isinstance(cost, Cost):
        raise TypeError(f"cost is {shown(cost)}; expected a Cost")


def roofline(cost: Cost, machine: Machine, dtype: str = "bf16") -> float:
    """Attainable FLOP per second: min(peak, intensity * bandwidth).

    Args:
        cost: of what is done.
        machine: a GPU or its name, whose datasheet counts; or the ``Rates`` that were measured on one.
        dtype: of the arithmetic: ``"bf16"``, ``"fp8"``, or another that the GPU has.

    Raises:
        TypeError: ``cost`` is not a ``Cost``, or ``machine`` not one of these.
        ValueError: unknown GPU, or one without ``dtype``.
    """
    _check_cost(cost)
    peak, bandwidth = rates(machine, dtype)
    return float(min(peak, cost.intensity * bandwidth))


def step_seconds(cost: Cost, machine: Machine, dtype: str = "bf16") -> float:
    """Least time for a cost, were memory and arithmetic to overlap perfectly: max(flops / peak, bytes / bandwidth).

    Args:
        cost: of what is done.
        machine: a GPU or its name, whose datasheet counts; or the ``Rates`` that were measured on one.
        dtype: of the arithmetic: ``"bf16"``, ``"fp8"``, or another that the GPU has.

    Raises:
        TypeError: ``cost`` is not a ``Cost``, or ``machine`` not one of these.
        ValueError: unknown GPU, or one without ``dtype``.
    """
    _check_cost(cost)
    peak, bandwidth = rates(machine, dtype)
    return max(cost.flops / peak, cost.bytes / bandwidth)


def pace(cost: Cost, machine: Machine, dtype: str = "bf16") -> Literal["memory", "arithmetic"]:
    """Which of the two takes the longer for a cost, and so sets the pace.

    Args:
        cost: of what is done.
        machine: a GPU or its name, whose datasheet counts; or the ``Rates`` that were measured on one.
        dtype: of the arithmetic: ``"bf16"``, ``"fp8"``, or another that the GPU has.

    Raises:
        TypeError: ``cost`` is not a ``Cost``, or ``machine`` not one of these.
        ValueError: unknown GPU, or one without ``dtype``.
    """
    _check_cost(cost)
    peak, bandwidth = rates(machine, dtype)
    return "memory" if cost.bytes / bandwidth >= cost.flops / peak else "arithmetic"
