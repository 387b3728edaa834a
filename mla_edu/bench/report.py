"""A run's table, its summary and its roofline; and what the README says of all of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mla_edu.bench.grid import Case
from mla_edu.bench.results import OURS, Results
from mla_edu.book import KEY, NEUTRAL
from mla_edu.book.goals import GOALS, judge

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def print_report(results: Results, console: Console) -> None:
    """The table of all cases, then what did not run and why, then the goals."""
    console.print(_table(results))
    console.print("times in µs. of copy, of product: share of what a large one reaches on this machine.")
    console.print("other kernels: how many times as fast as theirs ours is. transformers: a whole layer.")
    for reason in _reasons(results):
        console.print(reason)
    machine, limits = results.machine, results.limits
    console.print(f"\n{machine.name}, driver {machine.driver}; {results.date}; {_versions(results)}")
    console.print(
        f"copy {limits.copy_bytes_per_s / 1e9:,.0f} GB/s, product {limits.matmul_flop_per_s / 1e12:,.1f} TFLOP/s"
    )
    console.print(f"a call that does next to nothing shows {results.floor_microseconds:.1f} µs")
    if results.toy:
        console.print("A toy run: the answers were checked, the times mean nothing.", style="bold")
        return
    for goal in GOALS:
        console.print(f"{goal.text:>13} {goal.title}: {judge(goal, results).text}")


def _table(results: Results) -> Table:
    others = [name for name in results.kernels if name != OURS and results.times(name)]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    rates = ("GB/s", "of copy", "TFLOP/s", "of product")
    for heading in ("dtype", "heads", "s_q", "context", "batch", OURS, *rates, *others):
        table.add_column(heading, justify="left" if heading == "dtype" else "right")
    times = {name: results.times(name) for name in others}
    for case, each in sorted(results.times().items(), key=_order):
        ratios = [
            f"{found.microseconds / each.microseconds:.2f}x" if (found := times[name].get(case)) else "-"
            for name in others
        ]
        numbers = [f"{case.heads}", f"{case.s_q}", f"{case.context:,}", f"{case.batch}", f"{each.microseconds:,.1f}"]
        rates = [f"{each.gb_per_s:,.0f}", f"{results.of_copy(each):.0%}"]
        rates += [f"{each.tflop_per_s:,.1f}", f"{results.of_product(each):.0%}"]
        table.add_row(case.dtype, *numbers, *rates, *ratios)
    return table


def _order(item: tuple[Case, object]) -> tuple:
    case = item[0]
    return case.dtype, case.s_q, case.heads, case.context, case.batch


def _reasons(results: Results) -> list[str]:
    """Kernels that did not run, and for those that did, on how many cases they did not, by reason."""
    measured = {each.kernel for each in results.measurements}
    lines = [f"{name}: {why_not}" for name, why_not in results.kernels.items() if name not in measured]
    counts: dict[tuple[str, str], list[Case]] = {}
    for each in results.measurements:
        if each.why_not:
            counts.setdefault((each.kernel, each.why_not), []).append(each.case)
    for (kernel, why_not), cases in counts.items():
        lines.append(f"{kernel}: {why_not} ({len(cases)} cases, first: {cases[0]})")
    return lines


def _versions(results: Results) -> str:
    return ", ".join(f"{name} {version}" for name, version in results.versions.items())


QUOTED = [Case(heads=h, s_q=1, context=2**16, batch=b, dtype="bf16") for h in (16, 128) for b in (1, 32)]
QUOTED += [Case(heads=16, s_q=1, context=2**16, batch=32, dtype="fp8")]


def measured_table(gpus: Sequence[Results], layer_steps: dict[str, Any]) -> str:
    """What was really measured, on which hardware, as a table in Markdown.

    Args:
        gpus: results of the decode kernel; for none of them there is a line that says so.
        layer_steps: what ``benchmarks/decode_step.py`` wrote; its float32 steps are quoted.
    """
    lines = ["| measured | on | case | time | of the limit | beside it |", "|---|---|---|--:|--:|---|"]
    for results in gpus:
        times = results.times()
        for case in filter(times.__contains__, QUOTED):
            beside = [
                f"{found.microseconds / times[case].microseconds:.2f}x as fast as {name}"
                for name in results.kernels
                if name not in (OURS, "transformers") and (found := results.times(name).get(case))
            ]
            shape = f"{case.heads} heads, {case.batch} x {case.context:,} tokens, {case.dtype}"
            time, share = f"{times[case].microseconds:,.1f} µs", f"{results.fraction(times[case]):.0%}"
            cells = ["the decode kernel", results.machine.name, shape, time, share, ", ".join(beside)]
            lines.append(f"| {' | '.join(cells)} |")
    hardware = layer_steps["hardware"]
    for step in layer_steps["steps"]:
        if step["dtype"] == "float32":
            cells = [
                "a layer's decode step, absorbed",
                f"{hardware['cpu']}, {hardware['threads']} threads",
                f"16 heads, {step['cached_tokens']:,} tokens, float32",
                f"{step['absorbed_ms']:.1f} ms",
                f"{step['fraction_of_limit']:.0%}",
                f"{step['absorbed_speedup']:.1f}x as fast as transformers",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if not gpus:
        lines.append("| the decode kernel | no GPU yet | | not measured yet | | |")
    return "\n".join(lines) + "\n"


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
