"""A run over a grid: case after case, each failure with its reason, until time is out or the GPU is lost."""

import functools
import gc
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track

import mla_edu
from mla_edu.bench.clock import l2_bytes
from mla_edu.bench.grid import AnyCase
from mla_edu.bench.libraries import Unsupported
from mla_edu.bench.results import CPU, Machine, Measurement

AnyMeasurement = TypeVar("AnyMeasurement", bound=Measurement)


class DeviceLost(Exception):
    """The GPU answers nothing any more: what was measured stands, and no more can be."""


def why_not(error: Exception, device: torch.device) -> str:
    """The reason in words. Frees what the error's traceback holds on to.

    Raises:
        DeviceLost: after an error from which the GPU does not recover.
    """
    first_line = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, Unsupported):
        return first_line
    error.__traceback__ = None
    if device.type == "cuda":
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


def measure_all(
    cases: Sequence[AnyCase],
    names: Sequence[str],
    measure: Callable[[AnyCase, list[str]], Iterable[AnyMeasurement]],
    kind: type[AnyMeasurement],
    *,
    always: Sequence[str],
    deadline: float | None,
) -> tuple[list[AnyMeasurement], str | None]:
    """Measure every case. An interrupt from the keyboard ends it early, with what there is.

    Args:
        cases: in the order in which they are measured.
        names: of what is measured on each.
        measure: gives a measurement for each of some names on one case; may raise ``DeviceLost``.
        kind: the class of a measurement.
        always: names that are tried on every case; another that failed is tried again only on smaller cases and on
            those of another dtype.
        deadline: on ``time.monotonic()``: no case starts later; those that are left out say so.

    Returns:
        The measurements, and why it ended early if it did.
    """
    measurements: list[AnyMeasurement] = []
    stopped: str | None = None
    failed: dict[tuple[str, str], int] = {}  # the fewest bytes on which one failed, by its name and the dtype
    hidden = not sys.stderr.isatty()
    for case in track(cases, "measuring", console=Console(stderr=True), disable=hidden, transient=True):
        trying = [name for name in names if case.bytes < failed.get((name, case.dtype), math.inf)]
        found = [kind(case=case, kernel=n, why_not="failed on a smaller case") for n in names if n not in trying]
        if stopped is None and deadline is not None and time.monotonic() > deadline:
            stopped = "out of time"
        if stopped is None:
            try:
                for each in measure(case, trying):
                    found.append(each)
            except DeviceLost as error:
                stopped = f"device lost: {error}"
            except KeyboardInterrupt:
                stopped = "interrupted"
        done = {each.kernel for each in found}
        found += [kind(case=case, kernel=name, why_not=stopped) for name in trying if name not in done]
        for each in found:
            if each.kernel not in always and (each.why_not or "").startswith("failed:"):
                failed[each.kernel, case.dtype] = case.bytes
        measurements += found
    return measurements, stopped


def deadline_in(seconds: float | None) -> float | None:
    """So many seconds from now, on ``time.monotonic()``."""
    return None if seconds is None else time.monotonic() + seconds


def describe_gpu(device: torch.device) -> Machine:
    """A GPU by its properties and its driver's version."""
    properties = torch.cuda.get_device_properties(device)
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return Machine(
        name=properties.name,
        multiprocessors=properties.multi_processor_count,
        memory_bytes=properties.total_memory,
        l2_bytes=l2_bytes(device),
        driver=driver,
    )


def describe_cpu() -> CPU:
    """The CPU by its name, and what torch uses of it."""
    return CPU(
        name=cpu_name(),
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
    )


def cpu_name() -> str:
    """As Linux says it; elsewhere as Python does."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def _triton_version() -> str:
    triton = metadata.packages_distributions().get("triton", [])  # ROCm's has another name
    return metadata.version(triton[0]) if triton else "not installed"


def versions() -> dict[str, str]:
    """Of the package and of what it runs on."""
    return {
        "mla-edu": mla_edu.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "cuda": torch.version.cuda or torch.version.hip or "none",
    }


def today() -> str:
    """The date in UTC, as 2026-01-31."""
    return datetime.now(UTC).date().isoformat()
