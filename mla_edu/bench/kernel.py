"""The decode kernel beside its peers: each is checked on a case, then timed on it."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mla_edu.bench.clock import (
    Clock,
    copy_bytes_per_s,
    floor_microseconds,
    matmul_flop_per_s,
    read_bytes_per_s,
    record,
)
from mla_edu.bench.grid import LAYER, PAGE_SIZE, RANK, ROPE, Case
from mla_edu.bench.join import check_same, join
from mla_edu.bench.libraries import Unsupported
from mla_edu.bench.peer import specification
from mla_edu.bench.peers import PEERS
from mla_edu.bench.results import (
    GLUON,
    OURS,
    Limits,
    Machine,
    Measurement,
    Results,
    file_name,
    kernel_sources,
    read_results,
)
from mla_edu.bench.run import deadline_in, describe_gpu, measure_all, today, versions, why_not
from mla_edu.cost import fp8_row_bytes
from mla_edu.kernels.assembler import assembler
from mla_edu.kernels.problems import Problem, check_answer
from mla_edu.ops.fp8 import pack_fp8
from mla_edu.testing import relative_error

QUERY_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8_mla": torch.bfloat16}  # by the cache's
LAYER_BOUND = 0.05  # relative error of a whole layer in 16 bits
CACHED_SIZE = 0.1  # standard deviation of a cached number
LARGE = 2**30  # a cache of so many bytes cannot stay in any chip's; two sets of inputs are enough then


def make_problems(case: Case, device: torch.device, count: int) -> list[Problem]:
    """``count`` decode steps on one shuffled block table; what lies behind a sequence's last token is NaN.

    So is the page to which the entries of the table behind a shorter sequence's last page point.

    Cached numbers are as large as those of FlashMLA's tests, from which the bounds come, and the scale makes up for it.
    """
    rng = torch.Generator(device).manual_seed(0)
    lens = torch.tensor(case.sequences, dtype=torch.int32, device=device)
    counts = -(-lens // PAGE_SIZE)
    owned = torch.arange(int(counts.max()), device=device) < counts[:, None]  # [batch, pages of the longest]
    num_owned = int(counts.sum())
    table = torch.full(owned.shape, num_owned, dtype=torch.int32, device=device)
    table[owned] = torch.randperm(num_owned, generator=rng, device=device).int()
    last = table.gather(1, counts[:, None].long() - 1).squeeze(1).long()
    behind = torch.arange(PAGE_SIZE, device=device) >= ((lens - 1) % PAGE_SIZE + 1)[:, None]  # [batch, PAGE_SIZE]
    num_pages = num_owned + (not owned.all())
    scale = LAYER.qk_head_dim**-0.5 / CACHED_SIZE

    def make_problem() -> Problem:
        shape = (case.batch, case.s_q, case.heads, RANK + ROPE)
        q = torch.randn(shape, generator=rng, device=device).to(QUERY_DTYPES[case.dtype])
        cache = _random_pages(num_pages, case, rng, device)
        nan = 0xFF if case.dtype == "fp8_mla" else torch.nan  # bytes 0xFF are NaN in e4m3, bf16 and fp32
        cache[num_owned:] = nan
        cache[last] = cache[last].masked_fill(behind[..., None], nan)
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
    wanted = prepared.expected or expected
    errors = [_error(call(), each) for call, each in zip(calls, wanted, strict=True)]
    timing = clock.time(calls)
    return Measurement(
        case=case, kernel=name, microseconds=timing.microseconds, spread=timing.spread, error=max(errors)
    )


def _error(answer: Tensor | tuple[Tensor, Tensor], expected: Tensor | tuple[Tensor, Tensor]) -> float:
    if isinstance(expected, Tensor):
        return _layer_error(answer, expected)
    out, lse = answer if isinstance(answer, tuple) else (answer, expected[1])
    check_answer((out, lse), expected)
    return relative_error(out.float(), expected[0])


def _layer_error(answer: Tensor | tuple[Tensor, Tensor], expected: Tensor) -> float:
    out = answer[0] if isinstance(answer, tuple) else answer
    error = relative_error(out.float(), expected.float())
    if not error <= LAYER_BOUND:
        raise AssertionError(f"the layer's output is off by {error:.2g}")
    return error


def _probe(device: torch.device, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """What is known of each kernel: its version or why it does not run; and the names of those that run."""
    kernels, running = {}, []
    for name in names:
        try:
            kernels[name] = PEERS[name].probe(device)
            running.append(name)
        except Unsupported as reason:
            if name == OURS:
                raise ImportError(f"the decode kernel needs Triton: {reason}") from None
            kernels[name] = str(reason)
    return kernels, running


def _limits(clock: Clock, dtype: torch.dtype, toy: bool) -> Limits:
    num_bytes = 2**20 if toy else 2**32
    if clock.device.type == "cuda":
        num_bytes = min(num_bytes, torch.cuda.mem_get_info(clock.device)[0] // 4)
    return Limits(
        copy_bytes_per_s=copy_bytes_per_s(num_bytes, clock),
        matmul_flop_per_s=matmul_flop_per_s(64 if toy else 8192, dtype, clock),
        read_bytes_per_s=read_bytes_per_s(num_bytes, clock),
    )


def _check_interpreter(device: torch.device) -> None:
    """Whether Triton interprets is settled by the environment when it is first imported, so nobody sets it here."""
    given = os.environ.get("TRITON_INTERPRET", "0")
    if device.type == "cpu" and given == "0":
        raise ValueError(f"TRITON_INTERPRET is {given}; expected 1 in the environment where there is no GPU")
    if device.type != "cpu" and given != "0":
        raise ValueError("TRITON_INTERPRET is set; expected it unset where a GPU is timed")


def run(
    cases: Sequence[Case],
    device: torch.device,
    *,
    toy: bool,
    names: Sequence[str] | None = None,
    folder: Path | None = None,
    seconds: float | None = None,
) -> Results:
    """Measure the machine, kernels on every case, and the machine again: the better of the two counts.

    A kernel of others that fails is tried again only on smaller cases and on those of another dtype; one that is wrong,
    or has no memory, on all. An interrupt from the keyboard ends the run early, with what it has.

    Args:
        cases: in the order in which they are measured.
        device: a GPU; or, for a toy run, a CPU.
        toy: few repetitions, small copies and products: the times mean nothing.
        names: of the kernels, of those in ``PEERS``; None for all.
        folder: with results of other parts of the grid on this machine, if there are, that these are joined to.
        seconds: no case starts later than so many seconds from now; those that are left out say so.

    Raises:
        ValueError: Triton is told to interpret, and there is a GPU to be timed; or not to, and there is none; or the
            results in ``folder`` are of another machine, kernel or version.
        ImportError: Triton is not installed.
    """
    _check_interpreter(device)
    deadline = deadline_in(seconds)
    on_cpu = Machine(name="CPU", multiprocessors=1, memory_bytes=0, l2_bytes=0, driver="none")  # a toy run's
    machine = on_cpu if device.type == "cpu" else describe_gpu(device)
    clock = Clock(device, fewest=2, evicted_bytes=2**20) if toy else Clock(device)
    kernels, running = _probe(device, names or list(PEERS))
    known = versions() | _assembler(device)
    file = folder and folder / file_name(Results.grid, machine, toy)
    earlier = read_results(file) if file and file.exists() else None
    if earlier:
        check_same(earlier, machine, known, kernel_sources(), {name: kernels[name] for name in running})
    dtype = QUERY_DTYPES[cases[0].dtype]
    limits, floor = _limits(clock, dtype, toy), floor_microseconds(clock)
    each_case = partial(measure, clock=clock)
    ours = [name for name in (OURS, GLUON) if name in running]
    measurements, stopped = measure_all(cases, running, each_case, Measurement, always=ours, deadline=deadline)
    if stopped is None or not stopped.startswith("device lost"):
        limits = limits.better(_limits(clock, dtype, toy))
    found = Results(
        machine=machine,
        versions=known,
        date=today(),
        sources=kernel_sources(),
        toy=toy,
        limits=limits,
        floor_microseconds=floor,
        kernels=kernels,
        measurements=measurements,
    )
    return join(earlier, found) if earlier else found


def _assembler(device: torch.device) -> dict[str, str]:
    """The version of what makes a GPU's machine code, where it is a program of its own."""
    if device.type != "cuda" or torch.version.hip:
        return {}
    major, minor = torch.cuda.get_device_capability(device)
    return {"ptxas": assembler(f"sm_{major}{minor}").version}
