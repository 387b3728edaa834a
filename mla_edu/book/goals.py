"""What the decode kernel is held to, and how far a run got."""

from collections.abc import Callable
from dataclasses import dataclass

from mla_edu.bench.grid import Case
from mla_edu.bench.results import OURS, Results

LARGE_CACHE = 256 * 2**20
LARGE_MICROSECONDS = 50


@dataclass(frozen=True)
class Goal:
    """A bound on a quantity, for all cases that it is about."""

    title: str
    wanted: float
    at_most: bool
    values: Callable[[Results], dict[Case, float]]  # of the cases that were measured

    @property
    def text(self) -> str:
        """What is wanted, in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.wanted:g}"

    def met_by(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value <= self.wanted if self.at_most else value >= self.wanted


@dataclass(frozen=True)
class Verdict:
    """A goal on one run: in how many of its cases it is met, and the worst of them.

    ``large`` says the same of the cases whose limit is 50 µs or more. Below, starting and ending a kernel take a good
    part of the time, whoever wrote it.
    """

    goal: Goal
    met: int
    cases: int
    worst: tuple[Case, float] | None
    large: tuple[int, int]

    @property
    def text(self) -> str:
        """What was found, in words."""
        if self.worst is None:
            return "not measured"
        case, value = self.worst
        met, cases = self.large
        large = f"; from 50 µs on {met} of {cases}" if 0 < cases < self.cases else ""
        return f"{self.met} of {self.cases}, worst {value:.2f} ({case}){large}"


def judge(goal: Goal, results: Results) -> Verdict:
    """How far a run met a goal."""
    values = goal.values(results)
    order = max if goal.at_most else min
    worst = order(values.items(), key=lambda item: item[1], default=None)
    met = {case: goal.met_by(value) for case, value in values.items()}
    large = [reached for case, reached in met.items() if results.limits.microseconds(case) >= LARGE_MICROSECONDS]
    return Verdict(goal, sum(met.values()), len(met), worst, (sum(large), len(large)))


def _reads_much(case: Case) -> bool:
    return case.rows <= 32 and case.cache_bytes >= LARGE_CACHE and case.dtype != "fp8_mla" and case.lengths == "equal"


def _copy_share(results: Results) -> dict[Case, float]:
    return {case: results.of_copy(each) for case, each in results.times().items() if _reads_much(case)}


def _read_share(results: Results) -> dict[Case, float]:
    shares = {case: results.of_read(each) for case, each in results.times().items() if _reads_much(case)}
    return {case: share for case, share in shares.items() if share is not None}


def _ragged_share(results: Results) -> dict[Case, float]:
    """Of the rate that the same kernel reaches where all sequences are of one length."""
    times = results.times()
    equal = {case: case.model_copy(update={"lengths": "equal"}) for case in times if case.lengths != "equal"}
    return {case: times[case].gb_per_s / times[other].gb_per_s for case, other in equal.items() if other in times}


def _arithmetic_share(results: Results) -> dict[Case, float]:
    return {
        case: results.of_product(each)
        for case, each in results.times().items()
        if case.heads == 128 and case.context >= 4096 and case.dtype != "fp8_mla"
    }


def speed_ups(results: Results, kernel: str) -> dict[Case, float]:
    """How many times as fast as another kernel ours is, where both were measured."""
    ours, theirs = results.times(OURS), results.times(kernel)
    return {case: theirs[case].time / ours[case].time for case in ours if case in theirs}


def _one_long_sequence(results: Results) -> dict[Case, float]:
    case, times = Case(heads=16, s_q=1, context=2**16, batch=1, dtype="bf16"), results.times()
    return {case: times[case].time} if case in times else {}


def _fp8_share(results: Results) -> dict[Case, float]:
    times = results.times()
    plain = {case: case.model_copy(update={"dtype": "bf16"}) for case in times if case.dtype == "fp8_mla"}
    return {
        case: times[case].time / times[other].time
        for case, other in plain.items()
        if case.rows <= 32 and other in times
    }


GOALS = (
    Goal("of the copy's bandwidth: up to 32 rows, 256 MiB of bf16 or more", 0.80, False, _copy_share),
    Goal("of the product's rate: 128 heads, 4k tokens or more, bf16", 0.45, False, _arithmetic_share),
    Goal("times as fast as SGLang's kernel", 1.0, False, lambda results: speed_ups(results, "sglang")),
    Goal(
        "times as fast as SGLang's kernel: 128 heads",
        1.5,
        False,
        lambda results: {case: ratio for case, ratio in speed_ups(results, "sglang").items() if case.heads == 128},
    ),
    Goal("times as fast as FlashInfer fa3", 0.75, False, lambda results: speed_ups(results, "flashinfer-fa3")),
    Goal("µs: one sequence of 64k tokens, 16 heads, bf16", 44, True, _one_long_sequence),
    Goal("of the bandwidth of a sum, which only reads: the cases of the first goal", 0.80, False, _read_share),
    Goal("of the bandwidth with equal lengths: ragged batches", 0.90, False, _ragged_share),
    Goal("times as fast as FlashMLA", 0.55, False, lambda results: speed_ups(results, "flashmla")),
    Goal("of the bf16 time in fp8: up to 32 rows", 0.65, True, _fp8_share),
)
