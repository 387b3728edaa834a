"""What each kernel that is measured gives and can refuse, and how a block table looks to others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from mla_edu.bench.grid import PAGE_SIZE, Case
from mla_edu.bench.libraries import Unsupported, load
from mla_edu.kernels import reference
from mla_edu.kernels.problems import Problem

# Gives out [batch, s_q, heads, 512], and the natural log-sum-exp [batch, heads, s_q] in fp32 where the kernel has it;
# a whole layer gives its own output.
Call = Callable[[], Tensor | tuple[Tensor, Tensor]]
Answer = tuple[Tensor, Tensor]


class Prepared(NamedTuple):
    """One case, ready to be run again and again: all that the library lets be done before is done."""

    calls: list[Call]  # one per problem, and a CUDA graph can hold it
    # Of each call: a pair, out and log-sum-exp, to a kernel's accuracy; a tensor, to a layer's in 16 bits. None: what
    # the specification gives, to a kernel's.
    expected: Sequence[Tensor | Answer] | None = None


@dataclass(frozen=True)
class Peer:
    """A kernel, or what does its work. Both functions raise ``Unsupported`` where it cannot run."""

    probe: Callable[[torch.device], str]  # gives its version where it is installed and runs on the device
    prepare: Callable[[Case, list[Problem]], Prepared]  # makes the calls; a case's problems share table and lengths


def specification(problem: Problem) -> Answer:
    """What the step gives, ``(out, lse)`` in fp32."""
    return reference.decode(problem.q.float(), *problem.tensors[1:], **problem.options)


def refuse(case: Case, *, fp8: bool = False, ragged: bool = False, new_tokens: str = "") -> None:
    """Check that a case has nothing that a peer cannot do; each argument names one thing that it cannot.

    Args:
        case: the case that is to be measured.
        fp8: True where the peer reads no fp8 cache.
        ragged: True where it takes no sequences of different lengths.
        new_tokens: where it takes one new token a sequence only, the end of the error, such as ``": why"``; ``""``
            where it takes more.

    Raises:
        Unsupported: the case has one of these; says which.
    """
    if fp8 and case.dtype == "fp8_mla":
        raise Unsupported("fp8 cache")
    if ragged and case.lengths != "equal":
        raise Unsupported("sequences of different lengths")
    if new_tokens and case.s_q > 1:
        raise Unsupported(f"more than one new token{new_tokens}")


def need_capability(device: torch.device, *capabilities: tuple[int, int]) -> None:
    """Check that a device is a GPU of one of these compute capabilities, such as ``(9, 0)``.

    Raises:
        Unsupported: it is another one, or no GPU.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if capability not in capabilities:
        names = " or ".join(f"{major}.{minor}" for major, minor in capabilities)
        raise Unsupported(f"needs a GPU of compute capability {names}")


def load_first(names: Sequence[str], package: str) -> ModuleType:
    """The first of some modules that is installed.

    Args:
        names: of the modules, with dots; tried in this order.
        package: what to install for them.

    Raises:
        Unsupported: none is, or the first that is installed cannot be imported.
    """
    reasons = []
    for name in names:
        try:
            return load(name, package)
        except Unsupported as reason:
            reasons.append(str(reason))
    raise Unsupported(next((each for each in reasons if not each.startswith("not installed")), reasons[0]))


def page_counts(problem: Problem) -> Tensor:
    """Pages of each sequence."""
    return (problem.seq_lens + PAGE_SIZE - 1) // PAGE_SIZE


def starts(counts: Tensor) -> Tensor:
    """Where each sequence begins, and the last one ends, if they lie one after the other: int32 ``[batch + 1]``."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()


def owned_pages(problem: Problem) -> Tensor:
    """The pages of all sequences, one sequence after the other."""
    columns = torch.arange(problem.block_table.shape[1], device=problem.q.device)
    return problem.block_table[columns < page_counts(problem)[:, None]]


def owned_slots(problem: Problem) -> Tensor:
    """Where each cached token lies in the pool of pages, one sequence after the other: int64."""
    offsets = torch.arange(PAGE_SIZE, device=problem.q.device)
    slots = (problem.block_table.long()[..., None] * PAGE_SIZE + offsets).flatten(1)
    return slots[torch.arange(slots.shape[1], device=slots.device) < problem.seq_lens[:, None]]


def rows(case: Case, problem: Problem) -> Tensor:
    """A copy of the cached tokens of sequences of one length, each sequence's in order: ``[batch, context, 576]``."""
    pages = problem.block_table[:, : -(-case.context // PAGE_SIZE)].long()
    return problem.kv_cache[pages].flatten(1, 2)[:, : case.context]
