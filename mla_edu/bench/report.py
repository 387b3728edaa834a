"""A run's table and its summary, of each grid."""

import statistics
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mla_edu.bench.grid import Case
from mla_edu.bench.results import LAYERS, OURS, LayerResults, Outcome, Results, Run
from mla_edu.bench.serving_results import ServingResults
from mla_edu.cost import pace
from mla_edu.words import digits, duration, percent, ratio, size


def print_report(results: Results, console: Console, verdicts: Sequence[str] = ()) -> None:
    """The kernel's table of all cases, then what did not run and why, then the machine and what is said of the run.

    Args:
        results: of one run.
        console: where to print.
        verdicts: how far the run met what was asked of it, a line each; a toy run is held to nothing.
    """
    console.print(_table(results))
    console.print("times in µs. of copy, of product: share of what a large one reaches on this machine.")
    console.print("other kernels: how many times as fast as theirs ours is. transformers: a whole layer.")
    measured = {each.kernel for each in results.measurements}
    for name, why_not in results.kernels.items():
        if name not in measured:
            console.print(f"{name}: {why_not}")
    _print_reasons(results, console)
    machine, limits = results.machine, results.limits
    console.print(f"\n{machine.name}, driver {machine.driver}; {results.date}; {_versions(results)}")
    console.print(
        f"copy {limits.copy_bytes_per_s / 1e9:,.0f} GB/s, product {limits.matmul_flop_per_s / 1e12:,.1f} TFLOP/s"
    )
    console.print(f"a call that does next to nothing shows {results.floor_microseconds:.1f} µs")
    if results.toy:
        _print_toy(console)
        return
    for verdict in verdicts:
        console.print(verdict)


def print_layer_report(results: LayerResults, console: Console) -> None:
    """The layers' table of all cases, then what did not run and why, then the machine."""
    table = _new_table("dtype", "cached", *(f"{name}, ms" for name in LAYERS), "speed-up", "of the limit", "set by")
    times = {name: results.times(name) for name in LAYERS}
    for case, ours in times["absorbed"].items():
        found = [times[name][case].time for name in LAYERS]
        shares = [f"{found[-1] / ours.time:.1f}x", f"{results.fraction(ours):.0%}"]
        sets_pace = pace(case.cost, results.limits_of(case).rates)
        table.add_row(case.dtype, f"{case.context:,}", *(f"{time / 1e3:.2f}" for time in found), *shares, sets_pace)
    console.print(table)
    console.print("One decode step of a layer of DeepSeek-V2-Lite. speed-up: absorbed over transformers.")
    console.print("limit: cache and weights at the rate of a copy, or the operations at the rate of a product.")
    _print_reasons(results, console)
    console.print(f"\n{results.machine.name}; {results.date}; {_versions(results)}")
    if results.toy:
        _print_toy(console)


def print_serving_report(results: ServingResults, console: Console) -> None:
    """The texts as a table, then each other part in a line, then the machine."""
    others = [name for name in results.texts[0].seconds if name != "engine"]
    headings = ["engine, tokens/s", *(f"{name}, tokens/s" for name in others), *(f"over {name}" for name in others)]
    table = _new_table("texts", "prompt", *headings, "a step", "its own share")
    for each in results.texts:
        rates = [digits(each.tokens_per_s(name)) for name in ("engine", *others)]
        ratios = [ratio(each.speed_up(name)) for name in others]
        share = percent(statistics.median(each.outside_model))
        steps = ratio(each.step_speed_up("transformers"))
        table.add_row(str(each.batch), str(each.prompt_tokens), *rates, *ratios, steps, share)
    console.print(table)
    console.print("a step: the engine over transformers behind the first tokens. its own share: all but the model.")
    console.print(f"continuous batching of transformers {results.continuous_batching}")
    first, once, verified, own = results.first_token, results.at_once, results.verification, results.own_cost
    console.print(
        f"first token with {first.shared_tokens:,} of {first.shared_tokens + first.own_tokens:,} tokens found: "
        f"{duration(1e6 * statistics.median(first.found))}, {ratio(first.speed_up)} as soon"
    )
    console.print(
        f"requests of {once.tokens} tokens at a time in {size(once.pool_bytes['expanded'])}: {once.most['latent']} "
        f"with latents, {once.most['expanded']} with keys and values; all {once.requests} are done "
        f"{ratio(once.speed_up)} as soon"
    )
    start, end = verified.cached_tokens
    console.print(
        f"a step behind {start:,} to {end:,} tokens with 0, 1, ... guesses: "
        f"{', '.join(f'{each:.2f}' for each in verified.ratios)} of a step without"
    )
    console.print(
        f"a step of {own.requests} requests without a model: scheduler and pages "
        f"{duration(1e6 * statistics.median(own.scheduler))}, the whole engine "
        f"{duration(1e6 * statistics.median(own.engine))}"
    )
    load = "unknown" if results.load_average is None else f"{results.load_average:.1f}"
    machine = f"{results.machine.name}, {results.machine.threads} threads, load average before {load}"
    console.print(f"\n{machine}; {results.date}; {_versions(results)}")
    if results.toy:
        _print_toy(console)


def _new_table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _table(results: Results) -> Table:
    others = [name for name in results.kernels if name != OURS and results.times(name)]
    rates = ("GB/s", "of copy", "TFLOP/s", "of product")
    table = _new_table("dtype", "heads", "s_q", "context", "batch", OURS, *rates, *others)
    times = {name: results.times(name) for name in others}
    for case, each in sorted(results.times().items(), key=lambda item: _order(item[0])):
        ratios = [f"{found.time / each.time:.2f}x" if (found := times[name].get(case)) else "-" for name in others]
        table.add_row(
            case.dtype,
            f"{case.heads}",
            f"{case.s_q}",
            f"{case.context:,}",
            f"{case.batch}",
            f"{each.time:,.1f}",
            f"{each.gb_per_s:,.0f}",
            f"{results.of_copy(each):.0%}",
            f"{each.tflop_per_s:,.1f}",
            f"{results.of_product(each):.0%}",
            *ratios,
        )
    return table


def _order(case: Case) -> tuple[str, int, int, int, int]:
    return case.dtype, case.s_q, case.heads, case.context, case.batch


def _print_reasons(results: Run, console: Console) -> None:
    """On how many cases a kernel has no time, by reason."""
    counts: dict[tuple[str, str], list[Case]] = {}
    for each in results.measurements:
        if each.why_not:
            counts.setdefault((each.kernel, each.why_not), []).append(each.case)
    for (kernel, why_not), cases in counts.items():
        console.print(f"{kernel}: {why_not} ({len(cases)} cases, first: {cases[0]})")


def _print_toy(console: Console) -> None:
    console.print("A toy run: the answers were checked, the times mean nothing.", style="bold")


def _versions(results: Outcome) -> str:
    return ", ".join(f"{name} {version}" for name, version in results.versions.items())
