"""The roofline as the chapter on measurements draws it, with what was reached below it."""

from typing import TYPE_CHECKING

from mla_edu.bench.results import Results
from mla_edu.book.figures import KEY, NEUTRAL
from mla_edu.cost import Cost, Rates, ridge, roofline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDS = (4, 1024)  # operations per byte


def draw_roofline(ax: "Axes", rates: Rates, results: Results | None = None) -> None:
    """What memory and arithmetic allow over operations per byte, and, where there are results, what was reached.

    Args:
        ax: where to draw.
        rates: of a datasheet, or measured.
        results: their cases become points: one for each case, ours; without them only the roof is drawn.
    """
    low, high = (roofline(Cost(flops, 1), rates) / 1e12 for flops in ENDS)
    ax.plot([ENDS[0], ridge(rates), ENDS[1]], [low, rates.flop_per_s / 1e12, high], color=NEUTRAL, label="limit")
    for dtype, marker in {"bf16": "o", "fp16": "s", "fp8_mla": "^"}.items():
        found = [each for each in (results.times() if results else {}).values() if each.case.dtype == dtype]
        if found:
            intensity = [each.case.flops / each.case.bytes for each in found]
            reached = [each.tflop_per_s for each in found]
            face = "none" if dtype == "fp8_mla" else KEY
            ax.plot(intensity, reached, marker, color=KEY, mfc=face, linestyle="none", ms=3.5, alpha=0.6, label=dtype)
    ax.set(xscale="log", yscale="log", xlim=ENDS, xlabel="FLOP per byte", ylabel="TFLOP/s")
