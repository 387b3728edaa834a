"""A run's table and its summary."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mla_edu.bench.grid import Case
from mla_edu.bench.results import OURS, Results
from mla_edu.book.goals import GOALS, judge


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
