"""A first look at a GPU: single cases of many kernels, in several short runs, before there is a run of the whole grid.

Other than ``Results``, a look may hold kernels of several commits, and of the answers it says only that each was right.
"""

from pathlib import Path
from typing import Self

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError, model_validator

from mla_edu.bench.grid import LAYER, PAGE_SIZE
from mla_edu.bench.results import MEASURED, Machine, Record
from mla_edu.cost import CacheFormat, Cost, kernel_cost

FILE = MEASURED / "first-look-h100.json"


class Step(Record):
    """Attention of one decode step of one layer, one new token for each sequence, over pages of 64 tokens."""

    heads: PositiveInt
    batch: PositiveInt
    context: PositiveInt  # cached tokens of a sequence, or of the longest where they differ
    dtype: CacheFormat = "bf16"
    sequences: tuple[PositiveInt, ...] | None = None  # cached tokens of each where they differ

    @model_validator(mode="after")
    def _as_many_as_the_batch(self) -> Self:
        if self.sequences and (len(self.sequences) != self.batch or max(self.sequences) > self.context):
            raise ValueError(
                f"sequences are {len(self.sequences)} of {max(self.sequences)} tokens at most; expected {self.batch} "
                f"of {self.context} at most"
            )
        return self

    @property
    def cost(self) -> Cost:
        """What must be computed and moved at least."""
        lengths = self.sequences or (self.context,) * self.batch
        return sum((kernel_cost(LAYER, self.heads, length, 1, self.dtype) for length in lengths), Cost(0, 0))

    def __str__(self) -> str:
        lengths = f"{self.batch} × {self.context:,}"
        if self.sequences:
            longest = self.sequences.count(self.context)
            lengths = f"{self.batch}, {'one long' if longest else 'drawn'}"
        return f"{self.heads} heads, {lengths}{', fp8' if self.dtype == 'fp8_mla' else ''}"


class Kernel(Record):
    """What ran."""

    title: str
    version: str  # a commit of this repository, or a package's version
    variant: str = ""  # what was set otherwise than in that commit


class Look(Record):
    """One of the short runs: how it was timed, and what the machine reached in it."""

    clock: str
    copy_bytes_per_s: PositiveFloat | None = None  # None: not measured in this run
    matmul_flop_per_s: PositiveFloat | None = None
    floor_microseconds: NonNegativeFloat | None = None


class Timing(Record):
    """One kernel on one step, its answer checked before it was timed."""

    look: str
    kernel: str
    step: Step
    microseconds: PositiveFloat  # median
    spread: NonNegativeFloat | None = None  # middle half of the times, as a share of the median; None: not kept

    @property
    def gb_per_s(self) -> float:
        """Bytes that the step must move, over the time."""
        return self.step.cost.bytes / self.microseconds / 1e3

    @property
    def tflop_per_s(self) -> float:
        """Operations that the step must do, over the time."""
        return self.step.cost.flops / self.microseconds / 1e6


class Prediction(Record):
    """What was expected before the run, from counts of instructions and bytes."""

    name: str
    quantity: str
    low: float | None = None  # None: no bound on this side
    high: float | None = None

    def says_of(self, value: float) -> str:
        """``"held"``, ``"came out lower"`` or ``"came out higher"``."""
        if self.low is not None and value < self.low:
            return "came out lower"
        return "came out higher" if self.high is not None and value > self.high else "held"


class FirstLook(Record):
    """The file."""

    machine: Machine
    versions: dict[str, str]
    date: str
    page_size: PositiveInt
    looks: dict[str, Look]
    kernels: dict[str, Kernel]
    timings: list[Timing]
    predicted: str  # when, and from what
    predictions: list[Prediction]

    @model_validator(mode="after")
    def _nothing_unknown_and_nothing_twice(self) -> Self:
        seen = set()
        for each in self.timings:
            if each.look not in self.looks or each.kernel not in self.kernels:
                raise ValueError(f"timing is of {each.kernel!r} in {each.look!r}; expected one of the file's")
            if (key := (each.look, each.kernel, each.step)) in seen:
                raise ValueError(f"{each.kernel!r} has two times on {each.step} in {each.look!r}; expected one")
            seen.add(key)
        if self.page_size != PAGE_SIZE:
            raise ValueError(f"page_size is {self.page_size}; expected {PAGE_SIZE}, the benchmark's")
        return self

    def times(self, kernel: str) -> dict[Step, Timing]:
        """All of one kernel; of a step that was timed in several runs, the first."""
        if kernel not in self.kernels:
            raise ValueError(f"kernel is {kernel!r}; expected {', '.join(self.kernels)}")
        return {each.step: each for each in reversed(self.timings) if each.kernel == kernel}


def read_first_look(path: Path = FILE) -> FirstLook:
    """The file that came with the package, or another.

    Raises:
        ValueError: it is not a file of this kind, with the first thing that is wrong.
    """
    try:
        return FirstLook.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path} at {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
