"""The ``mla-edu`` command: how much cache a model needs, and what of it fits on which GPU."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mla_edu import cost
from mla_edu.hf import ModelSpec, spec_from_hf
from mla_edu.registry import GPUSpec, get_gpu, get_model, list_models

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, help=__doc__
)


def parse_count(text: str, option: str) -> int:
    """``"4096"``, ``"128k"`` (131 072) or ``"1m"`` (1 048 576) as a number.

    Raises:
        ValueError: anything else, and zero.
    """
    match = re.fullmatch(r"([1-9]\d*)([km]?)", text.strip().casefold())
    if match is None:
        raise ValueError(f"{option} is {text!r}; expected a positive number such as 4096, 128k or 1m")
    return int(match[1]) * {"": 1, "k": 2**10, "m": 2**20}[match[2]]


def human(num_bytes: int | None) -> str:
    """Three digits and a decimal unit: 70 272 is ``"70.3 kB"``."""
    if num_bytes is None:
        return "unknown"
    value, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    digits = 0 if units[0] == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {units[0]}"


def _find(name: str) -> ModelSpec:
    path = Path(name)
    if path.exists() or path.suffix == ".json":
        return spec_from_hf(path)
    return get_model(name)


def _answer(
    model: ModelSpec, num_tokens: int, batch_size: int, dtype: str, weights_dtype: str, gpu: GPUSpec | None
) -> dict[str, Any]:
    """All figures of one row, in bytes."""
    state = cost.state_bytes(model)
    per_sequence = cost.sequence_bytes(model, num_tokens, dtype)
    fit = gpu and cost.fit(model, gpu, num_tokens, batch_size, dtype, weights_dtype)
    return {
        "name": model.name,
        "kind": model.kind,
        "bytes_per_token": cost.kv_cache_bytes(model, 1, 1, dtype),
        "kv_bytes_per_sequence": cost.kv_cache_bytes(model, num_tokens, 1, dtype),
        "index_bytes_per_sequence": cost.index_cache_bytes(model, num_tokens, 1, dtype),
        "state_bytes_per_sequence": state,
        "bytes_per_sequence": per_sequence,
        "bytes_in_all": batch_size * per_sequence,
        "weight_bytes": cost.weight_bytes(model, weights_dtype),
        "fit": fit and dataclasses.asdict(fit),
        "why": model.why,
    }


def _fail(error: Exception) -> typer.Exit:
    typer.echo(f"mla-edu: {' '.join(str(error).split())}", err=True)
    return typer.Exit(2)


@app.command()
def cache(
    models: Annotated[list[str], typer.Argument(help="Names of the registry; paths to a config.json or its folder.")],
    tokens: Annotated[str, typer.Option(help="Tokens per sequence: 4096, 128k, 1m.")] = "128k",
    batch: Annotated[str, typer.Option(help="Sequences.")] = "1",
    gpu: Annotated[str | None, typer.Option(help="What fits on this GPU, e.g. h200.")] = None,
    dtype: Annotated[str, typer.Option(help="Cache format: fp32, fp16, bf16, fp8 or fp8_mla.")] = "bf16",
    weights_dtype: Annotated[str, typer.Option(help="Weight format: fp32, fp16, bf16 or fp8.")] = "bf16",
    as_json: Annotated[bool, typer.Option("--json", help="Exact integers, for programs.")] = False,
) -> None:
    """How much cache models need, and what fits beside their weights."""
    try:
        num_tokens, batch_size = parse_count(tokens, "--tokens"), parse_count(batch, "--batch")
        card = None if gpu is None else get_gpu(gpu)
        rows = [_answer(_find(name), num_tokens, batch_size, dtype, weights_dtype, card) for name in models]
    except (ValueError, OSError) as error:
        raise _fail(error) from None
    if as_json:
        question = {"num_tokens": num_tokens, "batch_size": batch_size, "dtype": dtype, "weights_dtype": weights_dtype}
        typer.echo(json.dumps(question | {"gpu": card and card.name, "models": rows}, indent=2))
        return
    _print_cache(rows, num_tokens, batch_size, dtype, weights_dtype, card)


def _print_cache(
    rows: list[dict[str, Any]], num_tokens: int, batch_size: int, dtype: str, weights_dtype: str, gpu: GPUSpec | None
) -> None:
    console = Console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("model", overflow="fold")
    headings = ["per token", "per sequence", "in all", "weights", *(["GPUs", "fit"] if gpu else [])]
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        sizes = [row[key] for key in ("bytes_per_token", "bytes_per_sequence", "bytes_in_all", "weight_bytes")]
        room = []
        if gpu:
            fit = row["fit"]
            room = ["?", "?"] if fit is None else [f"{fit['num_gpus']:,}", _many(fit["max_sequences"])]
        table.add_row(row["name"], *map(human, sizes), *room)
    console.print(f"{batch_size:,} x {num_tokens:,} tokens; cache {dtype}, weights {weights_dtype}", highlight=False)
    console.print(table)
    for note in _notes(rows, gpu):
        console.print(note, highlight=False, style="dim")


def _many(max_sequences: int | None) -> str:
    return "no limit" if max_sequences is None else f"{max_sequences:,}"


def _notes(rows: list[dict[str, Any]], gpu: GPUSpec | None) -> list[str]:
    notes = ["1 GB = 10**9 bytes. per token: the first one, before a window is full."]
    extras = [row["name"] for row in rows if row["index_bytes_per_sequence"] or row["state_bytes_per_sequence"]]
    if extras:
        notes.append(f"per sequence includes index keys and fp32 states: {', '.join(extras)}.")
    if unknown := [row["name"] for row in rows if row["state_bytes_per_sequence"] is None]:
        notes.append(f"recurrent state not known, not included: {', '.join(unknown)}.")
    if gpu:
        notes.append(f"GPUs: fewest {gpu.title} that hold the weights. fit: sequences beside them.")
        if any(row["fit"] is None for row in rows):
            notes.append("?: the number of parameters is not known.")
    return notes


@app.command()
def models() -> None:
    """List the registry: name, kind of attention, parameters, cache per token in 16 bit."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("kind")
    table.add_column("parameters", justify="right")
    table.add_column("per token", justify="right")
    for name in list_models():
        spec = get_model(name)
        parameters = "unknown" if spec.num_parameters is None else f"{spec.num_parameters / 1e9:,.1f} B"
        table.add_row(name, spec.kind, parameters, human(cost.kv_cache_bytes(spec, 1)))
    Console().print(table)


@app.command()
def kernels(
    archs: Annotated[list[str] | None, typer.Argument(help="sm_75 to sm_120, gfx942; all if none is named.")] = None,
    heads: Annotated[list[int] | None, typer.Option(help="Query heads, may be repeated; else 16 and 128.")] = None,
    s_q: Annotated[int, typer.Option(help="New tokens.")] = 1,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16, fp32, fp8_mla; else bf16, or fp16 on sm_75.")] = None,
) -> None:
    """Compile the decode kernel for GPUs that need not be there, and show what the compiler made of it."""
    from mla_edu.kernels.offline import ARCHITECTURES, Request, compile_reports

    requests = [
        Request(arch, dtype or ("fp16" if arch == "sm_75" else "bf16"), count, s_q)
        for arch in archs or ARCHITECTURES
        for count in heads or (16, 128)
    ]
    try:
        reports = compile_reports(requests)
    except (ValueError, ImportError, RuntimeError) as error:
        raise _fail(error) from None
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("GPU", no_wrap=True)
    table.add_column("dtype")
    for heading in ("heads", "tile", "regs", "spill", "shared", "occupancy"):
        table.add_column(heading, justify="right")
    table.add_column("tensor cores")
    for report in reports:
        tiles = report.tiles
        units = [f"{count} {name}" for name, count in report.tensor_core_instructions.items()]
        numbers = [report.num_heads, f"{tiles.block_h} x {tiles.block_n}", report.registers, report.spill_bytes]
        numbers += [f"{report.shared_bytes:,}", f"{report.occupancy:.0%}"]
        table.add_row(report.arch, report.dtype, *map(str, numbers), ", ".join(units) or "none")
    console = Console()
    console.print(table)
    for note in (
        "tile: rows of queries x tokens. regs, spill (bytes): per thread. shared (bytes): per block.",
        "tensor cores: instructions in the program text, where a loop counts once.",
    ):
        console.print(note, highlight=False, style="dim")


@app.command()
def bench(
    parts: Annotated[
        list[str] | None, typer.Argument(help="A part of the grid: heads=16,128 context=64k batch=1 s_q=1 dtype=fp8.")
    ] = None,
    toy: Annotated[bool, typer.Option(help="At toy size, on a CPU interpreted: the times mean nothing.")] = False,
    seconds: Annotated[float | None, typer.Option(help="Start no case after so many seconds.")] = None,
    results: Annotated[Path | None, typer.Option(help="Folder for <gpu>.json; a part is only printed.")] = None,
) -> None:
    """Time the decode kernel on this machine's GPU, beside other kernels that are installed."""
    import torch

    from mla_edu.bench.grid import GRID, TOY, cases
    from mla_edu.bench.report import print_report
    from mla_edu.bench.run import run

    try:
        axes = TOY if toy else GRID
        if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
            axes = axes | {"dtype": ("fp16",)}  # no bf16, which the fp8 cache is multiplied in
        chosen = list(cases(axes | dict(parse_part(part, axes) for part in parts or [])))
        if not toy and not torch.cuda.is_available():
            raise ValueError("no GPU; expected one, or --toy for the same steps at toy size on the CPU")
        if results is not None and not results.is_dir():
            raise ValueError(f"--results is {results}; expected a folder that exists")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found = run(chosen, device, toy=toy, seconds=seconds)
    except (ValueError, ImportError) as error:
        raise _fail(error) from None
    console = Console()
    console = Console(width=max(console.width, 120), highlight=False, soft_wrap=True)
    print_report(found, console)
    if results is not None and not parts:
        console.print(f"written to {found.write(results)}")
    ours = [each for each in found.measurements if each.kernel == "ours" and each.why_not]
    if faults := [each for each in ours if each.why_not.startswith(("wrong", "failed"))]:
        first = f"{faults[0].case}: {faults[0].why_not}"
        raise _fail(ValueError(f"ours is wrong or fails in {len(faults)} cases, first {first}"))


def parse_part(text: str, axes: dict[str, Any]) -> tuple[str, list[int] | list[str]]:
    """``"context=1k,64k"`` as an axis of the grid and its values: ``("context", [1024, 65536])``.

    Raises:
        ValueError: no such axis, or a value that it cannot have.
    """
    name, _, values = text.partition("=")
    if name not in axes or not values:
        raise ValueError(f"the part is {text!r}; expected one like heads=16,128 of {', '.join(axes)}")
    if name == "dtype":
        unknown = [value for value in values.split(",") if value not in ("bf16", "fp16", "fp8")]
        if unknown:
            raise ValueError(f"dtype is {unknown[0]!r}; expected bf16, fp16 or fp8")
        return name, values.split(",")
    return name, [parse_count(value, name) for value in values.split(",")]


if __name__ == "__main__":
    app()
