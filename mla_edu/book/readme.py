"""What the README says of measurements, made from them."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from mla_edu.bench.grid import Case
from mla_edu.bench.results import CPU, OURS, Results
from mla_edu.bench.serving_results import ServingResults

QUOTED = [Case(heads=h, s_q=1, context=2**16, batch=b, dtype="bf16") for h in (16, 128) for b in (1, 32)]
QUOTED += [Case(heads=16, s_q=1, context=2**16, batch=32, dtype="fp8_mla")]


def measured_table(gpus: Sequence[Results], layer_steps: dict[str, Any], serving: Sequence[ServingResults] = ()) -> str:
    """What was really measured, on which hardware, as a table in Markdown.

    Args:
        gpus: results of the decode kernel; for none of them there is a line that says so.
        layer_steps: from ``layer_steps``; its float32 steps are quoted.
        serving: results of the engine; those of a GPU are quoted, with the fewest texts and with the most.
    """
    lines = ["| measured | on | case | time | of the limit | beside it |", "|---|---|---|--:|--:|---|"]
    for results in gpus:
        times = results.times()
        for case in filter(times.__contains__, QUOTED):
            beside = [
                f"{found.time / times[case].time:.2f}× as fast as {name}"
                for name in results.kernels
                if name not in (OURS, "transformers") and (found := results.times(name).get(case))
            ]
            shape = f"{case.heads} heads, {case.batch} × {case.context:,} tokens, {case.dtype}"
            time, share = f"{times[case].time:,.1f} µs", f"{results.fraction(times[case]):.0%}"
            cells = ["the decode kernel", results.machine.name, shape, time, share, ", ".join(beside)]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [line for served in serving if not isinstance(served.machine, CPU) for line in _engine_steps(served)]
    hardware = layer_steps["hardware"]
    for step in layer_steps["steps"]:
        if step["dtype"] == "float32":
            cells = [
                "a layer's decode step, absorbed",
                f"{hardware['cpu']}, {hardware['threads']} threads",
                f"16 heads, {step['cached_tokens']:,} tokens, float32",
                f"{step['absorbed_ms']:.1f} ms",
                f"{step['fraction_of_limit']:.0%}",
                f"{step['absorbed_speedup']:.1f}× as fast as transformers",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if not gpus:
        lines.append("| the decode kernel, on its grid | no GPU yet | | not measured yet | | |")
    return "\n".join(lines) + "\n"


def _engine_steps(served: ServingResults) -> list[str]:
    lines = []
    for each in (served.texts[0], served.texts[-1]):
        layers = f"{len(served.model.layers)} layers of DeepSeek-V2-Lite's sizes"
        case = f"{layers}, {each.batch} × {each.prompt_tokens} tokens, {served.dtype}"
        time = f"{1e3 * median(each.step_seconds['engine']):.1f} ms"
        beside = f"{each.step_speed_up('transformers'):.1f}× as fast as transformers' generate"
        lines.append(f"| the engine's step | {served.machine.name} | {case} | {time} | | {beside} |")
    return lines
