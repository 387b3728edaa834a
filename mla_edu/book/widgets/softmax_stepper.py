"""One row of scores read tile by tile, and the state of the online softmax after each tile.

``softmax_stepper.js`` computes the same in the browser, with a function of the same name.
"""

import math

from mla_edu.book.widgets.parts import Number, Widget, source

SCORES = [
    0.4, -0.7, 0.9, -1.1, 0.2, 1.3, -0.4, 0.8, 2.1, 0.3, -0.9, 1.1,
    -1.6, 0.6, 1.8, 0.1, 3.0, 0.7, -0.2, 1.5, 0.5, -1.3, 2.4, 1.0,
]  # fmt: skip
VALUES = [
    1.0, -0.5, 0.3, 0.8, -1.2, 0.6, 0.9, -0.1, -0.8, 1.1, 0.4, -0.6,
    0.7, -1.0, 0.2, 1.3, 0.9, -0.3, 0.5, -0.7, 1.2, 0.1, -0.4, 0.8,
]  # fmt: skip


def quantities(tile: int, step: int) -> dict[str, float]:
    """The state after ``step`` tiles of ``tile`` keys each. When all keys are read, further steps change nothing.

    Returns:
        ``keys`` read; the running maximum ``m``, sum ``l`` and accumulator ``a`` (values are single numbers here);
        ``shrink``, by which the last tile scaled what had been summed before it; the result ``out`` and its log-sum-exp
        ``lse``. With no key read, m and lse are -inf and out is NaN.
    """
    m, total, a, shrink, keys = -math.inf, 0.0, 0.0, 1.0, 0
    while keys < min(step * tile, len(SCORES)):
        scores, values = SCORES[keys : keys + tile], VALUES[keys : keys + tile]
        larger = max(m, *scores)
        shrink = math.exp(m - larger)
        weights = [math.exp(score - larger) for score in scores]
        total = total * shrink + sum(weights)
        a = a * shrink + sum(weight * value for weight, value in zip(weights, values, strict=True))
        m, keys = larger, keys + len(scores)
    out, lse = (a / total, m + math.log(total)) if keys else (math.nan, -math.inf)
    return {"keys": keys, "m": m, "shrink": shrink, "l": total, "a": a, "out": out, "lse": lse}


class SoftmaxStepper(Widget):
    """A row of 24 scores, how far it has been read, and the online softmax's state at that point."""

    _esm = source("softmax_stepper.js")
    _css = source("softmax_stepper.css")

    tile = Number(1, len(SCORES))
    step = Number(0, len(SCORES))

    def __init__(self, tile: int = 4, step: int = 0):
        """A view with these settings.

        Args:
            tile: keys in a tile, 1 to 24.
            step: tiles that have been read, 0 to 24.

        Raises:
            ValueError: a number out of range.
        """
        super().__init__({"scores": SCORES, "values": VALUES}, tile=tile, step=step)

    @property
    def quantities(self) -> dict[str, float]:
        """``quantities`` of the present settings."""
        return quantities(self.tile, self.step)

    def text(self) -> str:
        """How far it has been read, and the state there."""
        found = self.quantities
        return (
            f"{found['keys']} of {len(SCORES)} keys read, in tiles of {self.tile}\n"
            f"m {found['m']:.3f}, l {found['l']:.3f}, a {found['a']:.3f}; the last tile shrank the past by "
            f"{found['shrink']:.3f}\n"
            f"out {found['out']:.3f}, log-sum-exp {found['lse']:.3f}"
        )
