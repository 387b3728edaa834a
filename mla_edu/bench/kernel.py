"""The decode kernel beside its peers: each is checked on a case, then timed on it."""

import os
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from mla_edu.bench.clock import Clock, copy_bytes_per_s, floor_microseconds, matmul_flop_per_s, record
from mla_edu.bench.grid import LAYER, PAGE_SIZE, RANK, ROPE, Case
from mla_edu.bench.libraries import Unsupported
from mla_edu.bench.peers import PEERS, specification
from mla_edu.bench.results import OURS, Limits, Machine, Measurement, Results, kernel_sources
from mla_edu.bench.run import deadline_in, describe_gpu, measure_all, today, versions, why_not
from mla_edu.cost import fp8_row_bytes
from mla_edu.kernels.problems import Problem, check_answer
from mla_edu.ops.fp8 import pack_fp8
from mla_edu.testing import relative_error

QUERY_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8_mla": torch.bfloat16}  # by the cache's
LAYER_BOUND = 0.05  # relative error of a whole layer in 16 bit
CACHED_SIZE = 0.1  # standard deviation of a cached number
LARGE = 2**30  # a cache of so many bytes cannot stay in any chip's; two sets of inputs are enough then


def make_problems(case: Case, device: torch.device, count: int) -> list[Problem]:
    """``count`` decode steps on one shuffled block table; what lies behind the last token of a page is NaN.

    Cached numbers are as large as those of FlashMLA's tests, from which the bounds come, and the scale makes up for it.
    """
    rng = torch.Generator(device).manual_seed(0)
    pages = -(-case.context // PAGE_SIZE)
    table = torch.randperm(case.batch * pages, generator=rng, device=device).int().view(case.batch, pages)
    lens = torch.full((case.batch,), case.context, dtype=torch.int32, device=device)
    tail = (table[:, -1].long(), slice((case.context - 1) % PAGE_SIZE + 1, None))
    scale = LAYER.qk_head_dim**-0.5 / CACHED_SIZE

    def make_problem() -> Problem:
        shape = (case.batch, case.s_q, case.heads, RANK + ROPE)
        q = torch.randn(shape, generator=rng, device=device).to(QUERY_DTYPES[case.dtype])
        cache = _random_pages(table.numel(), case, rng, device)
        cache[tail] = 0xFF if case.dtype == "fp8_mla" else torch.nan  # bytes 0xFF are NaN in e4m3, bf16 and fp32
        return Problem(q, cache, table, lens, kv_lora_rank=RANK, sm_scale=scale, causal=True)

    return [make_problem() for _ in range(count)]


def _random_pages(num_pages: int, case: Case, rng: torch.Generator, device: torch.device) -> Tensor:
    width, dtype = RANK + ROPE, QUERY_DTYPES[case.dtype]
    if case.dtype == "fp8_mla":
        width, dtype = fp8_row_bytes(RANK, ROPE), torch.uint8
    cache = torch.empty(num_pages, PAGE_SIZE, width, dtype=dtype, device=device)
    for pages in cache.split(2**12):  # in pieces, since random numbers come in float32
        rows = CACHED_SIZE * torch.randn(*pages.shape[:2], RANK + ROPE, generator=rng, device=device)
        pages.copy_(pack_fp8(rows, RANK) if case.dtype == "fp8_mla" else rows)
    return cache


def measure(case: Case, names: Sequence[str], clock: Clock) -> Iterator[Measurement]:
    """Each kernel in turn: prepared, recorded, checked, timed; or why not.

    Raises:
        DeviceLost: after an error from which the GPU does not recover.
    """
    try:
        problems = make_problems(case, clock.device, 3 if case.cache_bytes < LARGE else 2)
        expected = [specification(each) for each in problems]
    except Exception as error:
        reason = why_not(error, clock.device)
        yield from (Measurement(case=case, kernel=name, why_not=reason) for name in names)
        return
    for name in names:
        try:
            yield _measure(name, case, problems, expected, clock)
        except Exception as error:  # whatever a library raises: the others are still measured
            yield Measurement(case=case, kernel=name, why_not=why_not(error, clock.device))
        if clock.device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(
    name: str, case: Case, problems: list[Problem], expected: list[tuple[Tensor, Tensor]], clock: Clock
) -> Measurement:
    prepared = PEERS[name].prepare(case, problems)
    calls = record(prepared.calls, clock.device)
    # Each answer is checked before the next call runs, which might write over it.
    if prepared.expected is None:
        errors = [_error(call(), each) for call, each in zip(calls, expected, strict=True)]
    else:
        errors = [_layer_error(call(), each) for call, each in zip(calls, prepared.expected, strict=True)]
    timing = clock.time(calls)
    return Measurement(
        case=case, kernel=name, microseconds=timing.microseconds, spread=timing.spread, error=max(errors)
    )


def _error(answer: Tensor | tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> float:
    out, lse = answer if isinstance(answer, tuple) else (answer, expected[1])
    check_answer((out, lse), expected)
    return relative_error(out.float(), expected[0])


def _layer_error(answer: Tensor, expected: Tensor) -> float:
    error = relative_error(answer.float(), expected.float())
    if not error <= LAYER_BOUND:
        raise AssertionError(f"the layer's output is off by {error:.2g}")
    return error


def _probe(device: torch.device) -> tuple[dict[str, str], list[str]]:
    """What is known of each kernel: its version or why it does not run; and the names of those that run."""
    kernels, running = {}, []
    for name, peer in PEERS.items():
        try:
            kernels[name] = peer.probe(device)
            running.append(name)
        except Unsupported as reason:
            if name == OURS:
                raise ImportError(f"the decode kernel needs Triton: {reason}") from None
            kernels[name] = str(reason)
    return kernels, running


def _limits(clock: Clock, dtype: torch.dtype, toy: bool) -> Limits:
    copied = 2**20 if toy else 2**32
    if clock.device.type == "cuda":
        copied = min(copied, torch.cuda.mem_get_info(clock.device)[0] // 4)
    return Limits(
        copy_bytes_per_s=copy_bytes_per_s(copied, clock),
        matmul_flop_per_s=matmul_flop_per_s(64 if toy else 8192, dtype, clock),
    )


def _check_interpreter(device: torch.device) -> None:
    """Whether Triton interprets is settled by the environment when it is first imported, so nobody sets it here."""
    given = os.environ.get("TRITON_INTERPRET", "0")
    if device.type == "cpu" and given == "0":
        raise ValueError(f"TRITON_INTERPRET is {given}; expected 1 in the environment where there is no GPU")
    if device.type != "cpu" and given != "0":
        raise ValueError("TRITON_INTERPRET is set; expected it unset where a GPU is timed")


def run(cases: Sequence[Case], device: torch.device, *, toy: bool, seconds: float | None = None) -> Results:
    """Measure the machine, every kernel on every case, and the machine again: the better of the two counts.

    A kernel of others that fails is tried again on smaller cases only; one that is wrong, or has no memory, on all. An
    interrupt from the keyboard ends the run early, with what it has.

    Args:
        cases: in the order in which they are measured.
        device: a GPU; or, for a toy run, a CPU.
        toy: few repetitions, small copies and products: the times mean nothing.
        seconds: no case starts later than so many seconds from now; those that are left out say so.

    Raises:
        ValueError: Triton is told to interpret, and there is a GPU to be timed; or not to, and there is none.
        ImportError: Triton is not installed.
    """
    _check_interpreter(device)
    deadline = deadline_in(seconds)
    on_cpu = Machine(name="CPU", multiprocessors=1, memory_bytes=0, l2_bytes=0, driver="none")  # a toy run's
    machine = on_cpu if device.type == "cpu" else describe_gpu(device)
    clock = Clock(device, fewest=2, evicted_bytes=2**20) if toy else Clock(device)
    kernels, running = _probe(device)
    dtype = QUERY_DTYPES[cases[0].dtype]
    limits, floor = _limits(clock, dtype, toy), floor_microseconds(clock)
    each_case = partial(measure, clock=clock)
    measurements, stopped = measure_all(cases, running, each_case, Measurement, always=[OURS], deadline=deadline)
    if stopped is None or not stopped.startswith("device lost"):
        again = _limits(clock, dtype, toy)
        limits = Limits(
            copy_bytes_per_s=max(limits.copy_bytes_per_s, again.copy_bytes_per_s),
            matmul_flop_per_s=max(limits.matmul_flop_per_s, again.matmul_flop_per_s),
        )
    return Results(
        machine=machine,
        versions=versions(),
        date=today(),
        sources=kernel_sources(),
        toy=toy,
        limits=limits,
        floor_microseconds=floor,
        kernels=kernels,
        measurements=measurements,
    )
