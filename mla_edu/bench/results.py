"""What a run of the benchmark found: one JSON file per GPU, checked when it is read."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, ValidationError, model_validator

import mla_edu
from mla_edu.bench.grid import Case
from mla_edu.registry import GPUSpec, get_gpu, list_gpus

OURS = "ours"
MEASURED = Path(__file__).with_name("measured")
LAYER_STEPS = "decode_step_cpu.json"  # of benchmarks/decode_step.py, in a form of its own


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Record):
    """Where it was measured."""

    name: str  # as the driver says it: "NVIDIA H200"
    multiprocessors: int
    memory_bytes: int
    l2_bytes: int
    driver: str

    @property
    def slug(self) -> str:
        """The name of its file: ``"nvidia-h200"``."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


class Limits(_Record):
    """What this machine reached in the same run."""

    copy_bytes_per_s: PositiveFloat  # of a large copy, which reads and writes
    matmul_flop_per_s: PositiveFloat  # of a large product in 16 bit

    def microseconds(self, case: Case) -> float:
        """The least time for a case: its bytes at the copy's rate, or its operations at the product's."""
        return 1e6 * max(case.bytes / self.copy_bytes_per_s, case.flops / self.matmul_flop_per_s)


class Measurement(_Record):
    """One kernel on one case: a time, or why there is none."""

    case: Case
    kernel: str
    microseconds: PositiveFloat | None = None  # median
    spread: float | None = None  # middle half of the times, as a share of the median
    error: float | None = None  # the output's largest, relative to its largest number; checked before timing
    why_not: str | None = None

    @model_validator(mode="after")
    def _a_time_or_a_reason(self) -> Self:
        if (self.microseconds is None) == (self.why_not is None):
            raise ValueError(f"microseconds is {self.microseconds} and why_not is {self.why_not!r}; expected one")
        if self.microseconds is not None and self.error is None:
            raise ValueError(f"error is None for {self.kernel} on {self.case}; expected it checked before it was timed")
        return self

    @property
    def gb_per_s(self) -> float:
        return self.case.bytes / self.microseconds / 1e3

    @property
    def tflop_per_s(self) -> float:
        return self.case.flops / self.microseconds / 1e6


class Results(_Record):
    """One run on one machine."""

    machine: Machine
    versions: dict[str, str]
    date: str
    sources: str  # ``kernel_sources()`` of the kernels that ran
    toy: bool  # interpreted, at toy size: the times mean nothing
    limits: Limits
    floor_microseconds: NonNegativeFloat  # what the clock shows for a call that does next to nothing
    kernels: dict[str, str]  # each one's version, or why it did not run
    measurements: list[Measurement]

    def of_copy(self, measurement: Measurement) -> float:
        """Share of the bandwidth of the machine's own copy; above 1 if the bytes came from a cache."""
        return 1e9 * measurement.gb_per_s / self.limits.copy_bytes_per_s

    def of_product(self, measurement: Measurement) -> float:
        """Share of the rate of the machine's own product."""
        return 1e12 * measurement.tflop_per_s / self.limits.matmul_flop_per_s

    def fraction(self, measurement: Measurement) -> float:
        """Share of the limit: of whichever of the two sets the pace."""
        return max(self.of_copy(measurement), self.of_product(measurement))

    def times(self, kernel: str = OURS) -> dict[Case, Measurement]:
        """All measured cases of one kernel."""
        return {each.case: each for each in self.measurements if each.kernel == kernel and each.microseconds}

    def write(self, folder: Path) -> Path:
        """Write ``<gpu>.json`` into a folder, whole or not at all."""
        path = folder / f"{'toy-' if self.toy else ''}{self.machine.slug}.json"
        draft = path.with_suffix(".part")
        draft.write_text(self.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")
        draft.replace(path)
        return path


def read_results(path: Path) -> Results:
    """One file.

    Raises:
        ValueError: it is not a file of results, with the first thing that is wrong.
    """
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path} at {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def measured_gpus() -> list[Results]:
    """All results that came with the package: one for each GPU that was measured, none if none was."""
    return [read_results(path) for path in sorted(MEASURED.glob("*.json")) if path.name != LAYER_STEPS]


def layer_steps() -> dict[str, Any]:
    """What ``benchmarks/decode_step.py`` measured on a CPU: ``hardware``, ``versions``, and ``steps``, one per row."""
    return json.loads((MEASURED / LAYER_STEPS).read_text(encoding="utf-8"))


def gpu_of(machine: Machine) -> GPUSpec | None:
    """The GPU of the registry that a machine is: "NVIDIA A100-SXM4-80GB" is "a100-80gb"; None if it is not there."""
    words = set(re.split(r"[^a-z0-9]+", machine.name.lower()))
    return next((get_gpu(name) for name in list_gpus() if set(name.split("-")) <= words), None)


def kernel_sources() -> str:
    """A digest of what decides how the decode kernel runs, so that old results are known as old."""
    folder = Path(mla_edu.__file__).parent / "kernels"
    names = ("kernel", "launch", "tiles")
    return hashlib.sha256(b"\0".join((folder / f"{name}.py").read_bytes() for name in names)).hexdigest()[:16]
