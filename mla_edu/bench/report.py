"""A run's table and its summary, of each grid."""

from collections.abc import Sequence
from statistics import mean, median
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mla_edu.bench.distributed_results import DistributedResults
from mla_edu.bench.grid import Case
from mla_edu.bench.results import LAYERS, OURS, LayerResults, Machine, Outcome, Results, Run
from mla_edu.bench.serving_results import ServingResults

if TYPE_CHECKING:  # they read torch
    from mla_edu.bench.model import ModelResults
    from mla_edu.bench.width import Sweep
from mla_edu.cost import pace
from mla_edu.kernels.assembler import known_fault
from mla_edu.words import digits, duration, percent, ratio, size


def print_report(results: Results, console: Console, verdicts: Sequence[str] = ()) -> None:
    """The kernel's table of all cases, then what did not run and why, then the machine and what is said of the run.

    Args:
        results: of one run.
        console: where to print.
        verdicts: how far the run met what was asked of it, a line each; a toy run is held to nothing.
    """
    console.print(_table(results))
    console.print("times in µs. of copy, of sum, of product: share of what a large one reaches; a sum only reads.")
    console.print("other kernels: how many times as fast as theirs ours is. transformers: a whole layer.")
    measured = {each.kernel for each in results.measurements}
    for name, why_not in results.kernels.items():
        if name not in measured:
            console.print(f"{name}: {why_not}")
    _print_reasons(results, console)
    machine, limits = results.machine, results.limits
    console.print(f"\n{machine.name}, driver {machine.driver}; {results.date}; {_versions(results)}")
    read = "" if limits.read_bytes_per_s is None else f", sum {limits.read_bytes_per_s / 1e9:,.0f} GB/s"
    console.print(
        f"copy {limits.copy_bytes_per_s / 1e9:,.0f} GB/s{read}, product {limits.matmul_flop_per_s / 1e12:,.1f} TFLOP/s"
    )
    if fault := known_fault(results.versions.get("ptxas", "")):
        console.print(fault)
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
        shares = [f"{found[-1] / ours.time:.1f}×", f"{results.fraction(ours):.0%}"]
        sets_pace = pace(case.cost, results.limits_of(case).rates)
        table.add_row(case.dtype, f"{case.context:,}", *(f"{time / 1e3:.2f}" for time in found), *shares, sets_pace)
    console.print(table)
    console.print("One decode step of a layer of DeepSeek-V2-Lite. speed-up: absorbed over transformers.")
    console.print("limit: cache and weights at the rate of a copy, or the operations at the rate of a product.")
    _print_reasons(results, console)
    console.print(f"\n{results.machine.name}; {results.date}; {_versions(results)}")
    if results.toy:
        _print_toy(console)


def print_model_report(results: "ModelResults", console: Console) -> None:
    """Tokens a second of both models, where the time of a generated token goes, then the machine."""
    table = _new_table("tokens a second", "ours", "transformers", "ratio", "of the fastest rounds")
    behind = f"generation behind {results.num_cached:,} tokens"
    for name, rates in (("training", results.training), (behind, results.generation)):
        ratios = [f"{ratio:.2f}×" for ratio in (rates.ratio, rates.ratio_of_fastest)]
        table.add_row(name, f"{rates.ours:,.0f}", f"{rates.transformers:,.0f}", *ratios)
    console.print(table)
    console.print(f"{results.config}, {results.num_parameters:,} parameters, as {results.family} in transformers.")
    console.print("ratio: how many times as fast ours is, the median of rounds in which both take turns.")
    shares = ", ".join(f"{part} {share:.0%}" for part, share in results.generation_shares.items())
    console.print(f"a generated token of ours: {shares}.")
    machine = results.machine
    console.print(f"\n{machine.name}, {machine.threads} threads, {machine.instructions}; {results.date}")
    console.print(", ".join(f"{name} {version}" for name, version in results.versions.items()))


def print_width_report(found: "Sweep", console: Console) -> None:
    """Loss of each point over its seeds, and how far it is from that of the first, then the machine."""
    from mla_edu.bench.width import POINTS, interval

    reference, *_ = POINTS
    table = _new_table("attention", "numbers a token", "seeds", "nats a byte", f"minus {reference}", "95%")
    for point, part in POINTS.items():
        losses = list(found.losses(point).values())
        differences = found.differences(point, reference)
        row = [point, f"{part.elements_per_token}", f"{len(losses)}", f"{mean(losses):.3f}" if losses else "-"]
        if point != reference and len(differences) > 1:
            middle, half = interval(differences)
            row += [f"{middle:+.3f}", f"{middle - half:+.3f} to {middle + half:+.3f}"]
        table.add_row(*row)
    console.print(table)
    console.print(
        "Of each point minus the first: seeds in pairs, and Student's interval. With 0 in it, nothing is shown."
    )
    console.print(f"\n{found.machine.name}; {found.hours:.1f} hours; {found.date}; {_versions(found)}")


def print_serving_report(results: ServingResults, console: Console) -> None:
    """The texts as a table, then each other part in a line, then the machine."""
    others = [name for name in results.texts[0].seconds if name != "engine"]
    in_steps = [name for name in results.texts[0].step_seconds if name != "engine"]
    headings = ["engine, tokens/s", *(f"{name}, tokens/s" for name in others), *(f"over {name}" for name in others)]
    table = _new_table("texts", "prompt", *headings, *(f"a step over {name}" for name in in_steps), "its own share")
    for each in results.texts:
        rates = [digits(each.tokens_per_s(name)) for name in ("engine", *others)]
        ratios = [ratio(each.speed_up(name)) for name in others]
        share = percent(median(each.outside_model))
        steps = [ratio(each.step_speed_up(name)) for name in in_steps]
        table.add_row(str(each.batch), str(each.prompt_tokens), *rates, *ratios, *steps, share)
    console.print(table)
    console.print("a step: the engine's behind the first tokens, over others. its own share: all but the model.")
    for name in results.texts[0].step_seconds:
        per_s = ", ".join(f"{digits(each.step_tokens_per_s(name))} by {each.batch}" for each in results.texts)
        console.print(f"{name}, tokens/s behind the first: {per_s}")
    console.print(f"continuous batching of transformers {results.continuous_batching}")
    first, once, verified, own = results.first_token, results.at_once, results.verification, results.own_cost
    console.print(
        f"first token with {first.shared_tokens:,} of {first.shared_tokens + first.own_tokens:,} tokens found: "
        f"{duration(1e6 * median(first.found))}, {ratio(first.speed_up)} as soon"
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
        f"{duration(1e6 * median(own.scheduler))}, the whole engine "
        f"{duration(1e6 * median(own.engine))}"
    )
    load = "unknown" if results.load_average is None else f"{results.load_average:.1f}"
    machine = results.machine
    detail = f"driver {machine.driver}" if isinstance(machine, Machine) else f"{machine.threads} threads"
    console.print(f"\n{machine.name}, {detail}, load average before {load}; {results.date}; {_versions(results)}")
    if results.toy:
        _print_toy(console)


def print_distributed_report(results: DistributedResults, console: Console) -> None:
    """A step of each scheme on each number of ranks, its bytes beside the formula's, then the links and the machine."""
    headings = ("ranks", "tokens", "a rank gets", "formula", "a step", "in exchange", "one process", "cache of a rank")
    table = _new_table("dealt", *headings)
    for each in results.exchanges:
        alone = duration(1e6 * median(each.one_process))
        exchanging = duration(1e6 * median(each.exchanging)) if each.exchanging else "-"
        held = size(each.cache_bytes) if each.cache_bytes else "-"
        counts = [f"{sum(bytes_.values()):,} B" for bytes_ in (each.received, each.formula)]
        row = [str(each.ranks), str(each.tokens), *counts, duration(each.microseconds), exchanging, alone, held]
        table.add_row(each.scheme, *row)
    console.print(table)
    console.print(f"One layer in bf16, {results.cached:,} cached tokens a sequence; with data, its MLP.")
    for link in results.links:
        console.print(
            f"{link.ranks} rank{'s' * (link.ranks > 1)} over {results.network}: "
            f"one byte to all takes {duration(1e6 * link.latency_seconds)}, "
            f"many come at {size(link.bytes_per_s)}/s"
        )
    load = "unknown" if results.load_average is None else f"{results.load_average:.1f}"
    shared = f"threads of a rank: {results.threads}, load average before {load}"
    machine = f"{results.machine.name}, {results.processors} processors, {shared}"
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
    rates = ("GB/s", "of copy", "of sum", "TFLOP/s", "of product")
    table = _new_table("dtype", "heads", "s_q", "context", "batch", OURS, *rates, *others)
    times = {name: results.times(name) for name in others}
    for case, each in sorted(results.times().items(), key=lambda item: _order(item[0])):
        ratios = [f"{found.time / each.time:.2f}×" if (found := times[name].get(case)) else "-" for name in others]
        of_read = results.of_read(each)
        table.add_row(
            case.dtype,
            f"{case.heads}",
            f"{case.s_q}",
            f"{case.context:,}{'' if case.lengths == 'equal' else f' {case.lengths}'}",
            f"{case.batch}",
            f"{each.time:,.1f}",
            f"{each.gb_per_s:,.0f}",
            f"{results.of_copy(each):.0%}",
            "-" if of_read is None else f"{of_read:.0%}",
            f"{each.tflop_per_s:,.1f}",
            f"{results.of_product(each):.0%}",
            *ratios,
        )
    return table


def _order(case: Case) -> tuple[bool, str, str, int, int, int, int]:
    return case.lengths != "equal", case.lengths, case.dtype, case.s_q, case.heads, case.context, case.batch


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


def _versions(results: "Outcome | Sweep") -> str:
    return ", ".join(f"{name} {version}" for name, version in results.versions.items())
