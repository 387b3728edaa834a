"""A run of the benchmark: each kernel is checked on a case, then timed on it."""

import gc
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import mla_edu
from mla_edu.bench.clock import copy_bytes_per_s, l2_bytes, matmul_flop_per_s, time_calls
from mla_edu.bench.grid import LAYER, PAGE_SIZE, RANK, ROPE, Case
from mla_edu.bench.peers import PEERS, Peer, Unsupported
from mla_edu.bench.results import Limits, Machine, Measurement, Results, kernel_sources
from mla_edu.cache.fp8 import pack_fp8
from mla_edu.kernels import reference
from mla_edu.kernels.problems import Problem, check_answer
from mla_edu.testing import relative_error

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}  # of the queries
LAYER_BOUND = 0.05  # relative error of a whole layer in 16 bit
LARGE = 2**30  # a cache of so many bytes cannot stay in any chip's; two sets of inputs are enough then


def make_problems(case: Case, device: torch.device, count: int) -> list[Problem]:
    """``count`` decode steps on one shuffled block table; what lies behind the last token of a page is NaN."""
    rng = torch.Generator(device).manual_seed(0)
    pages = -(-case.context // PAGE_SIZE)
    table = torch.randperm(case.batch * pages, generator=rng, device=device).int().view(case.batch, pages)
    lens = torch.full((case.batch,), case.context, dtype=torch.int32, device=device)
    tail = (table[:, -1].long(), slice((case.context - 1) % PAGE_SIZE + 1, None))

    def make_problem() -> Problem:
        shape = (case.batch, case.s_q, case.heads, RANK + ROPE)
        q = torch.randn(shape, generator=rng, device=device).to(DTYPES[case.dtype])
        cache = _random_pages(table.numel(), case, rng, device)
        cache[tail] = 0xFF if case.dtype == "fp8" else torch.nan  # bytes 0xFF are NaN in e4m3, bf16 and fp32
        return Problem(q, cache, table, lens, kv_lora_rank=RANK, sm_scale=LAYER.qk_head_dim**-0.5, causal=True)

    return [make_problem() for _ in range(count)]


def _random_pages(num_pages: int, case: Case, rng: torch.Generator, device: torch.device) -> Tensor:
    width, dtype = (RANK + ROPE, DTYPES[case.dtype])
    if case.dtype == "fp8":
        width, dtype = case.cache_bytes // (case.batch * case.context), torch.uint8
    cache = torch.empty(num_pages, PAGE_SIZE, width, dtype=dtype, device=device)
    for pages in cache.split(2**12):  # in pieces, since random numbers come in float32
        rows = torch.randn(*pages.shape[:2], RANK + ROPE, generator=rng, device=device)
        pages.copy_(pack_fp8(rows, RANK) if case.dtype == "fp8" else rows)
    return cache


def measure(case: Case, names: Sequence[str], device: torch.device, fewest: int) -> Iterator[Measurement]:
    """Each kernel in turn: prepared, checked, timed; or why not."""
    try:
        problems = make_problems(case, device, 3 if case.cache_bytes < LARGE else 2)
        first = problems[0]
        expected = reference.decode(first.q.float(), *first.tensors[1:], **first.options)
    except torch.cuda.OutOfMemoryError:
        yield from (Measurement(case=case, kernel=name, why_not="out of memory") for name in names)
        return
    for name in names:
        yield _measure(name, PEERS[name], case, problems, expected, device, fewest)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(
    name: str,
    peer: Peer,
    case: Case,
    problems: list[Problem],
    expected: tuple[Tensor, Tensor],
    device: torch.device,
    fewest: int,
) -> Measurement:
    try:
        calls, own = peer.prepare(case, problems)
        answer, *_ = [call() for call in calls]
        error = _error(answer, expected) if own is None else _layer_error(answer, own)
        timing = time_calls(calls, device, fewest)
    except torch.cuda.OutOfMemoryError:
        why_not = "out of memory"
    except Unsupported as reason:
        why_not = str(reason)
    except AssertionError as reason:
        why_not = f"wrong: {reason}"
    except Exception as reason:  # whatever a library raises: the others are still measured
        why_not = f"failed: {type(reason).__name__}: {str(reason).strip().splitlines()[0] if str(reason) else ''}"
    else:
        return Measurement(case=case, kernel=name, microseconds=timing.microseconds, spread=timing.spread, error=error)
    return Measurement(case=case, kernel=name, why_not=why_not)


def _error(answer: Tensor | tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> float:
    out, lse = answer if isinstance(answer, tuple) else (answer, expected[1])
    check_answer((out, lse), expected)
    return relative_error(out.float(), expected[0])


def _layer_error(answer: Tensor, expected: Tensor) -> float:
    error = relative_error(answer.float(), expected.float())
    if not error <= LAYER_BOUND:
        raise AssertionError(f"the layer's output is off by {error:.2g}")
    return error


def describe(device: torch.device) -> Machine:
    """The GPU, or the CPU of a toy run."""
    if device.type == "cpu":
        return Machine(name="CPU", multiprocessors=1, memory_bytes=0, l2_bytes=0, driver="none")
    properties = torch.cuda.get_device_properties(device)
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return Machine(
        name=properties.name,
        multiprocessors=properties.multi_processor_count,
        memory_bytes=properties.total_memory,
        l2_bytes=l2_bytes(device),
        driver=driver,
    )


def _probe(device: torch.device) -> tuple[dict[str, str], list[str]]:
    """What is known of each kernel: its version or why it does not run; and the names of those that run."""
    kernels, running = {}, []
    for name, peer in PEERS.items():
        try:
            kernels[name] = peer.probe(device)
            running.append(name)
        except Unsupported as reason:
            kernels[name] = str(reason)
    return kernels, running


def run(cases: Sequence[Case], device: torch.device, *, toy: bool, seconds: float | None = None) -> Results:
    """Measure the machine, then every kernel on every case.

    Args:
        cases: in the order in which they are measured.
        device: a GPU; or, for a toy run, a CPU.
        toy: few repetitions, small copies and products: the times mean nothing.
        seconds: no case starts later than so many seconds from now; those that are left out say so.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    kernels, running = _probe(device)
    dtype = DTYPES[cases[0].dtype]
    limits = Limits(
        copy_bytes_per_s=copy_bytes_per_s(2**20 if toy else 2**32, device),
        matmul_flop_per_s=matmul_flop_per_s(64 if toy else 8192, dtype, device),
    )
    measurements = []
    on_screen = {"console": Console(stderr=True), "disable": not sys.stderr.isatty(), "transient": True}
    for case in track(cases, "measuring", **on_screen):
        if deadline is not None and time.monotonic() > deadline:
            measurements += [Measurement(case=case, kernel=name, why_not="out of time") for name in running]
        else:
            measurements += measure(case, running, device, 2 if toy else 5)
    return Results(
        machine=describe(device),
        versions={
            "mla-edu": mla_edu.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": metadata.version("triton"),
            "cuda": torch.version.cuda or torch.version.hip or "none",
        },
        date=datetime.now(UTC).date().isoformat(),
        sources=kernel_sources(),
        toy=toy,
        limits=limits,
        kernels=kernels,
        measurements=measurements,
    )
