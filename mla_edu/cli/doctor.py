"""``mla-edu doctor``: what a cache should weigh, and which known mistake explains what was seen."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mla_edu import cost
from mla_edu import doctor as doctors
from mla_edu.cli.cache import OPTIONS, Context, Data, Experts, Pipeline, Tensor, read_layout
from mla_edu.cli.named import model_of
from mla_edu.cli.show import a_path, naming_options, new_console, new_table, of_option
from mla_edu.words import parse_count


def doctor(
    model: Annotated[
        str, typer.Argument(help="A name of the registry; a config.json or its folder; ORG/NAME; - for stdin.")
    ],
    observed: Annotated[str | None, typer.Option(help='What was seen on a GPU: "7.4 GiB", "812 MB".')] = None,
    log: Annotated[
        Path | None,
        typer.Option(parser=a_path, help="A log of llama.cpp, ollama, vLLM, SGLang or TensorRT-LLM that says it."),
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens per sequence: 4096, 128k, 1m; else the log's.")] = None,
    batch: Annotated[str, typer.Option(help="Sequences.")] = "1",
    dtype: Annotated[str, typer.Option(help=f"Cache format: fp32, fp16, bf16, fp8, {', '.join(cost.ROWS)}.")] = "bf16",
    gpus: Annotated[str | None, typer.Option(help="GPUs: what the layout multiplies to; without one, 1.")] = None,
    tp: Tensor = None,
    dp: Data = None,
    cp: Context = None,
    pp: Pipeline = None,
    ep: Experts = None,
    tolerance: Annotated[float, typer.Option(help="How near an explanation must come.")] = doctors.TOLERANCE,
    as_json: Annotated[bool, typer.Option("--json", help="Exact integers, for programs.")] = False,
) -> None:
    """What a cache should weigh, and what explains another weight.

    One GPU, unless a layout is given. Of the known mistakes the fewest that come near enough are shown, the nearest
    first.
    """
    if observed is not None and log is not None:
        raise ValueError("--observed and --log are both given; expected one of them")
    spec, batch_size = model_of(model), parse_count(batch, "--batch")
    with of_option("--log"):
        reading = None if log is None else doctors.read_log(log)
    figure = None if reading is None else reading.figure
    if observed is not None:
        figure = doctors.parse_figure(observed, "--observed")
    num_tokens = None if reading is None else reading.tokens
    if tokens is not None:
        num_tokens = parse_count(tokens, "--tokens")
    if num_tokens is None:
        where = f"{log} does not say for how many tokens; " if log else ""
        raise ValueError(f"{where}--tokens is missing; expected those that the cache holds, such as 8192")
    with naming_options(OPTIONS):
        cached = cost.cache_format(dtype)
        num_gpus, layout = read_layout(gpus, tp, dp, cp, pp, ep)
    if layout is None and num_gpus not in (None, 1):
        raise ValueError(f"--gpus is {num_gpus} without a layout; expected --tp, --dp or --cp beside it")
    with naming_options(OPTIONS):
        found = doctors.diagnose(spec, num_tokens, figure, layout, batch_size, cached, tolerance)
    if as_json:
        typer.echo(json.dumps(_record(found, reading), indent=2))
    else:
        _show(found, reading, new_console())


def _record(found: doctors.Diagnosis, reading: doctors.Reading | None) -> dict[str, object]:
    return {
        "model": found.model.name,
        "num_tokens": found.num_tokens,
        "batch_size": found.batch_size,
        "dtype": found.dtype,
        "layout": dataclasses.asdict(found.layout),
        "tool": reading and reading.tool,
        "expected_bytes": found.expected,
        "observed_bytes": found.observed and found.observed.bytes,
        "tolerance": found.tolerance,
        "agrees": found.agrees,
        "explanations": [dataclasses.asdict(each) for each in found.explanations],
    }


def _gib(num_bytes: int) -> str:
    """Both units, since they are the first thing that is mistaken."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if num_bytes >= 2**shift:
            return f"{num_bytes / 2**shift:,.3f} {unit} ({num_bytes:,} bytes)"
    return f"{num_bytes:,} bytes"


def _show(found: doctors.Diagnosis, reading: doctors.Reading | None, console: Console) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False)

    of = f"{found.batch_size:,} x {found.num_tokens:,} tokens; cache {found.dtype}; {found.layout}"
    say(f"{found.model.name}: {of}")
    where = "on each GPU" if found.layout.num_gpus > 1 else "in all"
    say(f"expected {where}: {_gib(found.expected)}")
    if found.observed is None:
        say(found.model.why)
        return
    ratio = found.observed.bytes / found.expected if found.expected else 0
    by = f" ({reading.tool})" if reading else ""
    say(f"observed{by}: {_gib(found.observed.bytes)}, {ratio:.3g} times that")
    if found.agrees:
        say(f"As it should be, {found.explanations[0].error:+.1%}.")
        return
    if not found.explanations:
        say(f"None of these: no one or two known mistakes come within {100 * found.tolerance:.3g}% of it.")
        return
    table = new_table("explained by", "would be", "off by")
    for each in found.explanations:
        table.add_row("; ".join(each.mistakes), _gib(each.bytes).partition(" (")[0], f"{each.error:+.1%}")
    console.print(table)
    say(f"Within {100 * found.tolerance:.3g}%, or the figure's rounding; fewest mistakes, nearest first.")
    if any(abs(each.error) > found.tolerance for each in found.explanations):
        ends = [found.observed.bytes + side * found.observed.rounding for side in (-1, 1)]
        say(f"Its last digit leaves {' to '.join(_gib(end).partition(' (')[0] for end in ends)}; more digits say more.")
