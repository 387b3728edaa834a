"""What a run found: one JSON file per grid and machine, checked when it is read."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, ValidationError, model_validator

import mla_edu
from mla_edu.bench.grid import Case, LayerCase
from mla_edu.cost import Rates, pace, step_seconds

OURS = "ours"
GLUON = "ours-gluon"  # where it runs
LAYERS = ("absorbed", "expanded", "transformers")
MEASURED = Path(__file__).with_name("measured")


class Record(BaseModel):
    """A part of a file of results."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(Record):
    """The GPU on which it was measured."""

    name: str  # as the driver says it: "NVIDIA H200"
    multiprocessors: int
    memory_bytes: int
    l2_bytes: int
    driver: str

    @property
    def slug(self) -> str:
        """The name in its files: ``"nvidia-h200"``."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


class CPU(Record):
    """The CPU on which it was measured."""

    name: str  # as the system says it, which often is no more than the maker's name
    threads: int
    instructions: str  # the widest that torch uses: "AVX512"

    @property
    def slug(self) -> str:
        """The name in its files, the same for all: what a CPU calls itself does not tell it from others."""
        return "cpu"


class Limits(Record):
    """What a machine reached in the same run."""

    copy_bytes_per_s: PositiveFloat  # of a large copy, which reads and writes
    matmul_flop_per_s: PositiveFloat  # of a large product, in 16 bits or in the case's format
    read_bytes_per_s: PositiveFloat | None = None  # of a large sum, which only reads; None: not measured

    @property
    def rates(self) -> Rates:
        """As the cost model takes them; of memory the faster: a decode step reads, as a sum does."""
        return Rates(self.matmul_flop_per_s, max(self.copy_bytes_per_s, self.read_bytes_per_s or 0))

    def better(self, other: "Limits") -> "Limits":
        """Of each yardstick the better measurement: a machine can be disturbed, and not be faster than it is."""
        reads = [each for each in (self.read_bytes_per_s, other.read_bytes_per_s) if each]
        return Limits(
            copy_bytes_per_s=max(self.copy_bytes_per_s, other.copy_bytes_per_s),
            matmul_flop_per_s=max(self.matmul_flop_per_s, other.matmul_flop_per_s),
            read_bytes_per_s=max(reads, default=None),
        )

    def microseconds(self, case: Case) -> float:
        """What a case takes with its bytes at memory's rate, or its operations at the product's: the longer time."""
        return 1e6 * step_seconds(case.cost, self.rates)


class Measurement(Record):
    """One kernel, or one layer, on one case: a time, or why there is none."""

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
    def time(self) -> float:
        """The microseconds.

        Raises:
            ValueError: there are none.
        """
        if self.microseconds is None:
            raise ValueError(f"{self.kernel} has no time on {self.case}: {self.why_not}")
        return self.microseconds

    @property
    def gb_per_s(self) -> float:
        """Bytes that the case must move, over the time."""
        return self.case.bytes / self.time / 1e3

    @property
    def tflop_per_s(self) -> float:
        """Operations that the case must do, over the time."""
        return self.case.flops / self.time / 1e6


class LayerMeasurement(Measurement):
    """One layer on one case."""

    case: LayerCase
    parts: dict[str, PositiveFloat] | None = None  # microseconds of parts of the step, timed by themselves in turn


class CaseLimits(Limits):
    """What a machine reached while one case was timed, in turn with it."""

    case: LayerCase


def file_name(grid: str, machine: Machine | CPU, toy: bool) -> str:
    """Of the results of one grid on one machine: ``"kernel-nvidia-h200.json"``."""
    return f"{'toy-' if toy else ''}{grid}-{machine.slug}.json"


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all, whoever else writes it at the same time: the last one stands."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


class Outcome(Record):
    """What one run on one machine found. Each grid has a subclass."""

    grid: ClassVar[str]

    machine: Machine | CPU
    versions: dict[str, str]
    date: str
    toy: bool  # at toy size, interpreted where Triton has no GPU: the times mean nothing

    def write(self, folder: Path) -> Path:
        """Write ``<grid>-<machine>.json`` into a folder, whole or not at all."""
        path = folder / file_name(self.grid, self.machine, self.toy)
        write_whole(path, self.model_dump_json(indent=1, exclude_none=True) + "\n")
        return path


class Run(Outcome):
    """One run over the cases of a grid."""

    limits: Limits | list[CaseLimits]  # of the whole run, or measured with each case
    measurements: Sequence[Measurement]

    def limits_of(self, case: Case) -> Limits:
        """What the machine reached, as far as it concerns a case.

        Raises:
            ValueError: limits were measured with each case, and this one was not.
        """
        if isinstance(self.limits, Limits):
            return self.limits
        for limits in self.limits:
            if limits.case == case:
                return limits
        raise ValueError(f"case is {case}; expected one that was measured")

    def of_copy(self, measurement: Measurement) -> float:
        """Share of the bandwidth of the machine's own copy, which also writes: reading alone can be faster."""
        return 1e9 * measurement.gb_per_s / self.limits_of(measurement.case).copy_bytes_per_s

    def of_read(self, measurement: Measurement) -> float | None:
        """Share of the bandwidth of the machine's own sum, which only reads; None where none was measured."""
        rate = self.limits_of(measurement.case).read_bytes_per_s
        return None if rate is None else 1e9 * measurement.gb_per_s / rate

    def of_product(self, measurement: Measurement) -> float:
        """Share of the rate of the machine's own product."""
        return 1e12 * measurement.tflop_per_s / self.limits_of(measurement.case).matmul_flop_per_s

    def fraction(self, measurement: Measurement) -> float:
        """Share of the limit: of whichever of the two sets the pace."""
        return self.limits_of(measurement.case).microseconds(measurement.case) / measurement.time

    def times(self, kernel: str = OURS) -> dict[Case, Measurement]:
        """All measured cases of one kernel."""
        return {each.case: each for each in self.measurements if each.kernel == kernel and each.microseconds}


class Results(Run):
    """The decode kernel and its peers."""

    grid: ClassVar[str] = "kernel"

    machine: Machine
    sources: str  # ``kernel_sources()`` of the kernels that ran
    limits: Limits
    floor_microseconds: NonNegativeFloat  # what the clock shows for a call that does next to nothing
    kernels: dict[str, str]  # each one's version, or why it did not run
    measurements: list[Measurement]


class LayerResults(Run):
    """A whole layer: absorbed, expanded, and as transformers does it."""

    grid: ClassVar[str] = "layer"

    limits: list[CaseLimits]
    measurements: list[LayerMeasurement]


AnyOutcome = TypeVar("AnyOutcome", bound=Outcome)


def read_results(path: Path, kind: type[AnyOutcome] = Results) -> AnyOutcome:  # type: ignore[assignment]
    """One file.

    Args:
        path: of the file.
        kind: ``Results``, ``LayerResults`` or ``ServingResults``.

    Raises:
        ValueError: it is not a file of such results, with the first thing that is wrong.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path} at {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def measured(kind: type[AnyOutcome]) -> list[AnyOutcome]:
    """All results of a kind that came with the package: one for each machine, none if none was measured."""
    return [read_results(path, kind) for path in sorted(MEASURED.glob(f"{kind.grid}-*.json"))]


def measured_gpus() -> list[Results]:
    """The decode kernel's results on each GPU that was measured."""
    return measured(Results)


def layer_steps() -> dict[str, Any]:
    """A layer's steps on a CPU as a table: ``hardware``, ``versions``, and ``steps``, one row for each case.

    A row has milliseconds of the three layers and of the parts of the absorbed one, the speed-ups over transformers,
    what the machine reached, and the limit that follows.
    """
    results = read_results(MEASURED / "layer-cpu.json", LayerResults)
    machine = results.machine
    if not isinstance(machine, CPU):
        raise ValueError(f"layer-cpu.json was measured on {machine.name}; expected a CPU")
    hardware = {"cpu": machine.name, "threads": machine.threads, "instructions": machine.instructions}
    rows = [_row(results, limits) for limits in results.limits]
    return {"hardware": hardware, "versions": results.versions, "steps": rows}


def _row(results: LayerResults, limits: CaseLimits) -> dict[str, Any]:
    found = {each.kernel: each for each in results.measurements if each.case == limits.case}
    case, ours = limits.case, found["absorbed"]
    times = {name: each.time for name, each in found.items()}
    return {
        "dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[case.dtype],
        "cached_tokens": case.context,
        **{f"{name}_ms": time / 1e3 for name, time in (times | (ours.parts or {})).items()},
        "absorbed_speedup": times["transformers"] / times["absorbed"],
        "expanded_speedup": times["transformers"] / times["expanded"],
        "largest_relative_error": ours.error,
        "copy_gb_per_s": limits.copy_bytes_per_s / 1e9,
        "matmul_gmac_per_s": limits.matmul_flop_per_s / 2e9,
        "limit_ms": limits.microseconds(case) / 1e3,
        "pace_set_by": pace(case.cost, limits.rates),
        "fraction_of_limit": results.fraction(ours),
        "cache_bytes": case.cache_bytes,
        "weight_bytes": case.weight_bytes,
    }


def kernel_sources() -> str:
    """A digest of what decides how the decode kernels run, so that old results are known as old."""
    folder = Path(mla_edu.__file__).parent / "kernels"
    todo, sources = ["launch", "gluon_launch"], {}
    while todo:
        name = todo.pop()
        file = folder / f"{name}.py"
        if name not in sources and file.exists():
            sources[name] = file.read_text(encoding="utf-8")
            todo += re.findall(r"^ *from mla_edu\.kernels\.(\w+) import", sources[name], re.MULTILINE)
    return hashlib.sha256("\0".join(sources[name] for name in sorted(sources)).encode()).hexdigest()[:16]
