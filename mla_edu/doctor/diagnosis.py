"""From a figure to the fewest known mistakes that explain it."""

from dataclasses import dataclass, replace
from itertools import combinations

from mla_edu.cost import CacheFormat, Parallelism, check_layout
from mla_edu.cost.memory import find_model
from mla_edu.doctor.figures import Figure
from mla_edu.doctor.mistakes import Count, Mistake, mistakes
from mla_edu.hf import ModelSpec
from mla_edu.validation import check_integer, shown

TOLERANCE = 0.02
MOST_MISTAKES = 2
MOST_SHOWN = 5
UNIT = "a decimal unit printed for a binary one: GB for GiB"


@dataclass(frozen=True)
class Explanation:
    """Mistakes which together give a figure."""

    mistakes: tuple[str, ...]  # none: it is as it should be
    bytes: int  # that they give
    error: float  # by which the observed figure is larger, as a share of it


@dataclass(frozen=True)
class Diagnosis:
    """What a cache should weigh, and what explains another figure."""

    model: ModelSpec
    num_tokens: int
    layout: Parallelism
    batch_size: int
    dtype: CacheFormat
    expected: int  # bytes on a GPU
    observed: Figure | None
    tolerance: float
    explanations: tuple[Explanation, ...]  # the fewest mistakes, nearest first; none: no known ones explain it

    @property
    def agrees(self) -> bool:
        """Whether the figure is as it should be."""
        return any(not each.mistakes for each in self.explanations)


def diagnose(
    model: str | ModelSpec,
    num_tokens: int,
    observed: Figure | None = None,
    layout: Parallelism | None = None,
    batch_size: int = 1,
    dtype: CacheFormat = "bf16",
    tolerance: float = TOLERANCE,
) -> Diagnosis:
    """What the cache of ``num_tokens`` tokens should weigh on a GPU, and which known mistakes explain ``observed``.

    No mistake is looked for first, then one, then two of different kinds. A figure counts as explained within
    ``tolerance``, or within the rounding of its own digits where that is coarser.

    Args:
        model: a name of the registry, or a ``ModelSpec``.
        num_tokens: in each sequence.
        observed: what a program printed, or a calculator answered; None: only what it should be.
        layout: over which GPUs; None: one GPU.
        batch_size: sequences.
        dtype: of the cache, as it is meant.
        tolerance: a share, above 0 and below 0.5.

    Raises:
        TypeError: ``model``, ``observed`` or ``layout`` is of another kind.
        ValueError: unknown model or dtype, a number out of range, or a layout that the model does not allow.
    """
    spec, spread = find_model(model), Parallelism() if layout is None else layout
    check_integer("num_tokens", num_tokens)
    check_integer("batch_size", batch_size)
    check_layout(spec, spread)
    if not isinstance(observed, Figure | None):
        raise TypeError(f"observed is {shown(observed)}; expected a Figure, as parse_figure gives it, or None")
    if not isinstance(tolerance, int | float) or not 0 < tolerance < 0.5:
        raise ValueError(f"tolerance is {shown(tolerance)}; expected a share above 0 and below 0.5, such as 0.02")
    count = Count(spec, num_tokens, spread, batch_size, dtype)
    expected = count.weigh()
    found = () if observed is None else _explain(count, observed, tolerance)
    return Diagnosis(spec, num_tokens, spread, batch_size, dtype, expected, observed, tolerance, found)


def _explain(count: Count, observed: Figure, tolerance: float) -> tuple[Explanation, ...]:
    binary = observed.as_binary
    for number in range(MOST_MISTAKES + 1):
        found = _matches(_candidates(count, number), observed, tolerance)
        if number and binary:
            misread = _matches(_candidates(count, number - 1), binary, tolerance)
            found += [replace(each, mistakes=(*each.mistakes, UNIT)) for each in misread]
        if found:
            return tuple(sorted(found, key=lambda each: abs(each.error))[:MOST_SHOWN])
    return ()


def _matches(candidates: list[Explanation], observed: Figure, tolerance: float) -> list[Explanation]:
    found = {}
    for each in candidates:
        if each.bytes and abs(observed.bytes - each.bytes) <= max(tolerance * each.bytes, observed.rounding):
            found[each.mistakes] = replace(each, error=observed.bytes / each.bytes - 1)
    return list(found.values())


def _candidates(count: Count, number: int) -> list[Explanation]:
    """All ways to make so many mistakes, of different kinds."""
    if number == 0:
        return [Explanation((), count.weigh(), 0.0)]
    alone = list(mistakes(count))
    found = [_weighed(each.what, each.count) for each in alone if len(each.what) == number]
    if number == 2:
        for first, second in combinations([each for each in alone if len(each.what) == 1], 2):
            if first.about != second.about:
                found.extend(_both(first, second))
    return [each for each in found if each is not None]


def _both(first: Mistake, second: Mistake) -> list[Explanation | None]:
    """The second mistake made in what the first one made."""
    again = [each for each in mistakes(first.count) if each.what == second.what and each.about == second.about]
    return [_weighed(first.what + second.what, each.count) for each in again]


def _weighed(what: tuple[str, ...], count: Count) -> Explanation | None:
    """None where the format does not exist for that attention, or the layout has more GPUs than heads."""
    try:
        return Explanation(what, count.weigh(), 0.0)
    except ValueError:
        return None
