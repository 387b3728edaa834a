"""The roofline of chapter 16, with what was reached below it."""

from typing import TYPE_CHECKING

from mla_edu.bench.results import Results
from mla_edu.book.figures import KEY, NEUTRAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_roofline(ax: "Axes", bandwidth: float, rate: float, results: Results | None = None) -> None:
    """What memory and arithmetic allow over operations per byte, and, where there are results, what was reached.

    Args:
        ax: where to draw.
        bandwidth: bytes per second: of a datasheet, or measured.
        rate: operations per second in 16 bit.
        results: their cases become points: one for each case, ours; without them only the roof is drawn.
    """
    ridge = rate / bandwidth
    ends = (4, 1024)
    roof = [min(rate, end * bandwidth) / 1e12 for end in (ends[0], ridge, ends[1])]
    ax.plot([ends[0], ridge, ends[1]], roof, color=NEUTRAL, label="limit")
    marks = {"bf16": {"marker": "o"}, "fp16": {"marker": "s"}, "fp8": {"marker": "^", "mfc": "none"}}
    for dtype, mark in marks.items():
        found = [each for case, each in (results.times() if results else {}).items() if case.dtype == dtype]
        if found:
            intensity = [each.case.flops / each.case.bytes for each in found]
            reached = [each.tflop_per_s for each in found]
            ax.plot(intensity, reached, color=KEY, linestyle="none", ms=3.5, alpha=0.6, label=dtype, **mark)
    ax.set(xscale="log", yscale="log", xlim=ends, xlabel="FLOP per byte", ylabel="TFLOP/s")
