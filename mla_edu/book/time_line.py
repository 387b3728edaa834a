"""Times for what the emulator of the Gluon kernels has logged: drawn on a page, never measured."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from mla_edu.kernels.gluon_machine import LogEntry

WEIGHTS = 64 * 64  # numbers that a group stores at the end of a softmax; of all else it stores, more or fewer


class Span(NamedTuple):
    """Something that took time."""

    group: int
    what: str  # "copy", "product" or "softmax"
    begin: float
    end: float
    amount: int  # bytes, multiplications, or numbers


def replay(log: Sequence[LogEntry], *, per_byte: float, per_multiplication: float, per_weight: float) -> list[Span]:
    """When all that a log tells of would happen, if nothing took time but copies, products and softmaxes.

    Copies are made one after the other, products of a group likewise, and groups do not hinder each other's. A log that
    came about in another order gives the same, since each wait names the phase that it waited for.

    Args:
        log: of one program, as long as its groups ran once.
        per_byte: time of a copy.
        per_multiplication: time of a product.
        per_weight: time of a softmax.
    """
    now: dict[int, float] = defaultdict(float)  # of each group
    multiplied: dict[int, float] = defaultdict(float)  # when its products are done
    copied = 0.0
    last: dict[str, float] = defaultdict(float)  # arrival or landing at a barrier
    ended: dict[tuple[str, int], float] = {}  # phases
    spans = []
    for group, what, where, amount in log:
        if what == "phase":
            ended[where, amount] = last[where]
        if group is None:
            continue
        if what == "copy":
            begin, copied = max(now[group], copied), max(now[group], copied) + amount * per_byte
            last[where] = max(last[where], copied)
            spans.append(Span(group, what, begin, copied, amount))
        elif what in ("arrive", "expect"):
            last[where] = max(last[where], now[group])
        elif what == "wait" and amount:
            now[group] = max(now[group], ended[where, amount - 1])
        elif what == "product":
            begin = max(now[group], multiplied[group])
            multiplied[group] = begin + amount * per_multiplication
            spans.append(Span(group, what, begin, multiplied[group], amount))
        elif what == "joined":
            now[group] = max(now[group], multiplied[group])
        elif what == "store" and amount == WEIGHTS:
            spans.append(Span(group, "softmax", now[group], now[group] + amount * per_weight, amount))
            now[group] = spans[-1].end
    return spans
