"""A run of the benchmark: each kernel is checked on a case, then timed on it."""

import gc
import os
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
from mla_edu.bench.clock import copy_bytes_per_s, floor_microseconds, l2_bytes, matmul_flop_per_s, record, time_calls
from mla_edu.bench.grid import LAYER, PAGE_SIZE, RANK, ROPE, Case
from mla_edu.bench.peers import PEERS, Unsupported
from mla_edu.bench.results import OURS, Limits, Machine, Measurement, Results, kernel_sources
from mla_edu.kernels import reference
from mla_edu.kernels.problems import Problem, check_answer
from mla_edu.ops.fp8 import fp8_row_bytes, pack_fp8
from mla_edu.testing import relative_error

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}  # of the queries
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
        q = torch.randn(shape, generator=rng, device=device).to(DTYPES[case.dtype])
        cache = _random_pages(table.numel(), case, rng, device)
        cache[tail] = 0xFF if case.dtype == "fp8" else torch.nan  # bytes 0xFF are NaN in e4m3, bf16 and fp32
        return Problem(q, cache, table, lens, kv_lora_rank=RANK, sm_scale=scale, causal=True)

    return [make_problem() for _ in range(count)]


def _random_pages(num_pages: int, case: Case, rng: torch.Generator, device: torch.device) -> Tensor:
    width, dtype = RANK + ROPE, DTYPES[case.dtype]
    if case.dtype == "fp8":
        width, dtype = fp8_row_bytes(RANK, ROPE), torch.uint8
    cache = torch.empty(num_pages, PAGE_SIZE, width, dtype=dtype, device=device)
    for pages in cache.split(2**12):  # in pieces, since random numbers come in float32
        rows = CACHED_SIZE * torch.randn(*pages.shape[:2], RANK + ROPE, generator=rng, device=device)
        pages.copy_(pack_fp8(rows, RANK) if case.dtype == "fp8" else rows)
    return cache


class DeviceLost(Exception):
    """The GPU answers nothing any more: what was measured stands, and no more can be."""


def measure(case: Case, names: Sequence[str], device: torch.device, fewest: int) -> Iterator[Measurement]:
    """Each kernel in turn: prepared, recorded, checked, timed; or why not.

    Raises:
        DeviceLost: after an error from which the GPU does not recover.
    """
    try:
        problems = make_problems(case, device, 3 if case.cache_bytes < LARGE else 2)
        first = problems[0]
        expected = reference.decode(first.q.float(), *first.tensors[1:], **first.options)
    except Exception as error:
        why_not = _why_not(error, device)
        yield from (Measurement(case=case, kernel=name, why_not=why_not) for name in names)
        return
    for name in names:
        try:
            yield _measure(name, case, problems, expected, device, fewest)
        except Exception as error:  # whatever a library raises: the others are still measured
            yield Measurement(case=case, kernel=name, why_not=_why_not(error, device))
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(
    name: str,
    case: Case,
    problems: list[Problem],
    expected: tuple[Tensor, Tensor],
    device: torch.device,
    fewest: int,
) -> Measurement:
    prepared = PEERS[name].prepare(case, problems)
    calls = record(prepared.calls, device)
    answer = calls[0]()
    own = prepared.expected
    error = _error(answer, expected) if own is None else _layer_error(answer, own)
    timing = time_calls(calls, device, fewest)
    return Measurement(case=case, kernel=name, microseconds=timing.microseconds, spread=timing.spread, error=error)


def _why_not(error: Exception, device: torch.device) -> str:
    """The reason in words. Frees what the error's traceback holds on to."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, Unsupported):
        return first_line
    error.__traceback__ = None
    gc.collect()
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    if isinstance(error, AssertionError):
        return f"wrong: {first_line}"
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except Exception:
            raise DeviceLost(f"{type(error).__name__}: {first_line}") from None
    return f"failed: {type(error).__name__}: {first_line}"


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


def _versions() -> dict[str, str]:
    triton = metadata.packages_distributions().get("triton", [])  # ROCm's has another name
    return {
        "mla-edu": mla_edu.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": metadata.version(triton[0]) if triton else "not installed",
        "cuda": torch.version.cuda or torch.version.hip or "none",
    }


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


def _limits(device: torch.device, dtype: torch.dtype, toy: bool) -> Limits:
    copied = 2**20 if toy else 2**32
    if device.type == "cuda":
        copied = min(copied, torch.cuda.mem_get_info(device)[0] // 4)
    return Limits(
        copy_bytes_per_s=copy_bytes_per_s(copied, device),
        matmul_flop_per_s=matmul_flop_per_s(64 if toy else 8192, dtype, device),
    )


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
        ValueError: Triton is told to interpret, and there is a GPU to be timed.
    """
    if device.type == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before a probe imports Triton
    elif os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise ValueError("TRITON_INTERPRET is set; expected it unset where a GPU is timed")
    deadline = None if seconds is None else time.monotonic() + seconds
    machine, versions = describe(device), _versions()
    kernels, running = _probe(device)
    dtype = DTYPES[cases[0].dtype]
    limits, floor = _limits(device, dtype, toy), floor_microseconds(device)
    measurements, stopped = [], None
    failed: dict[str, int] = {}  # the fewest bytes on which a kernel of others failed
    on_screen = {"console": Console(stderr=True), "disable": not sys.stderr.isatty(), "transient": True}
    for case in track(cases, "measuring", **on_screen):
        names = [name for name in running if case.bytes < failed.get(name, case.bytes + 1)]
        skipped = [name for name in running if name not in names]
        found = [Measurement(case=case, kernel=name, why_not="failed on a smaller case") for name in skipped]
        if stopped is None and deadline is not None and time.monotonic() > deadline:
            stopped = "out of time"
        if stopped is None:
            try:
                for each in measure(case, names, device, 2 if toy else 5):
                    found.append(each)
            except DeviceLost as error:
                stopped = f"device lost: {error}"
            except KeyboardInterrupt:
                stopped = "interrupted"
        done = {each.kernel for each in found}
        found += [Measurement(case=case, kernel=name, why_not=stopped) for name in names if name not in done]
        for each in found:
            if each.kernel != OURS and (each.why_not or "").startswith("failed:"):
                failed[each.kernel] = case.bytes
        measurements += found
    if stopped is None or not stopped.startswith("device lost"):
        again = _limits(device, dtype, toy)
        limits = Limits(**{name: max(value, getattr(again, name)) for name, value in limits})
    return Results(
        machine=machine,
        versions=versions,
        date=datetime.now(UTC).date().isoformat(),
        sources=kernel_sources(),
        toy=toy,
        limits=limits,
        floor_microseconds=floor,
        kernels=kernels,
        measurements=measurements,
    )
