"""What was found of layers whose heads, requests or tokens are dealt over ranks."""

import statistics
from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from mla_edu.bench.results import Outcome, Record

Scheme = Literal["tensor", "data", "context", "before absorption"]


class Exchange(Record):
    """One decode step of one layer on several ranks, and the same step in one process."""

    scheme: Scheme  # "before absorption": of "context", where queries travel before W_UK has widened them
    ranks: PositiveInt
    tokens: PositiveInt  # new ones, each of another sequence; of each rank with "data"
    received: dict[str, NonNegativeInt]  # bytes that a rank got in the step, counted where they passed
    formula: dict[str, NonNegativeInt]  # the same by the cost model
    cache_bytes: PositiveInt | None = None  # of the latents on each rank; None for "data", which is measured in the MLP
    error: NonNegativeFloat  # of all ranks together, relative to one process; in 16 bits
    seconds: list[PositiveFloat]  # of the step on the slowest rank, in each round
    exchanging: list[NonNegativeFloat] | None = None  # of these in collectives, the longest of all ranks; None on GPUs
    one_process: list[PositiveFloat]  # of the step of one process that has it all, while the others wait

    @property
    def microseconds(self) -> float:
        """Of the step: the median."""
        return 1e6 * statistics.median(self.seconds)


class Link(Record):
    """What passes between ranks when nothing else is done."""

    ranks: PositiveInt
    latency_seconds: PositiveFloat  # of a gather of one byte
    bytes_per_s: PositiveFloat  # that a rank receives in a gather of many


class DistributedResults(Outcome):
    """Layers on several ranks of one machine."""

    grid: ClassVar[str] = "distributed"

    network: str  # "gloo" or "nccl"
    threads: PositiveInt  # of each rank
    processors: PositiveInt  # of the machine; with fewer than ranks, these take turns
    load_average: NonNegativeFloat | None = None  # processes that ran in the minute before; None where none tells
    cached: PositiveInt  # tokens of each sequence
    links: list[Link]
    exchanges: list[Exchange]

    def link(self, ranks: int) -> Link:
        """The link of so many ranks.

        Raises:
            ValueError: none was measured.
        """
        for each in self.links:
            if each.ranks == ranks:
                return each
        raise ValueError(f"ranks is {ranks}; expected one of {[each.ranks for each in self.links]}")
