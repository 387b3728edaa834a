"""The ``mla-edu`` command: what a model's cache takes, what its kernel compiles to and how fast it is; models."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import mla_edu
from mla_edu import cost
from mla_edu.cli import bench
from mla_edu.cli.generate import generate
from mla_edu.cli.model import train
from mla_edu.hf import spec_from_hf
from mla_edu.registry import GPUSpec, get_gpu, get_model, list_models
from mla_edu.words import parse_count, size

_UsageError: type[Any] = typer.BadParameter.__bases__[0]  # of click, or of the copy of it that typer brings


class _Commands(typer.core.TyperGroup):
    """Commands that say in one line what is wrong with their input, and end with 2."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        try:
            status = super().main(*args, **options | {"standalone_mode": False})
        except typer.Abort:
            status = 130
        except _UsageError as error:
            status = _say(error.format_message())
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            status = _say(str(error))
        sys.exit(status)


def _say(text: str) -> int:
    typer.echo(f"mla-edu: {' '.join(text.split())}", err=True)
    return 2


app = typer.Typer(cls=_Commands, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(bench.app, name="bench")
app.command()(train)
app.command()(generate)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mla-edu {mla_edu.__version__}")
        raise typer.Exit


@app.callback(help=__doc__, invoke_without_command=True)
def _about(
    context: typer.Context,
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _new_table(heading: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(heading, overflow="fold")
    for other in others:
        table.add_column(other, justify="right")
    return table


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
    num_tokens, batch_size = parse_count(tokens, "--tokens"), parse_count(batch, "--batch")
    card = None if gpu is None else get_gpu(gpu)
    cached, weights = cost.cache_format(dtype), cost.number_format(weights_dtype)
    rows: list[dict[str, Any]] = []
    for name in models:
        path = Path(name)
        model = spec_from_hf(path) if path.exists() or path.suffix == ".json" else get_model(name)
        per_sequence = cost.sequence_bytes(model, num_tokens, cached)
        fit = card and cost.fit(model, card, num_tokens, batch_size, cached, weights)
        rows.append(
            {
                "name": model.name,
                "kind": model.kind,
                "bytes_per_token": cost.kv_cache_bytes(model, 1, 1, cached),
                "kv_bytes_per_sequence": cost.kv_cache_bytes(model, num_tokens, 1, cached),
                "index_bytes_per_sequence": cost.index_cache_bytes(model, num_tokens, 1, cached),
                "state_bytes_per_sequence": cost.state_bytes(model),
                "bytes_per_sequence": per_sequence,
                "bytes_in_all": batch_size * per_sequence,
                "weight_bytes": cost.weight_bytes(model, weights),
                "fit": fit and dataclasses.asdict(fit),
                "why": model.why,
            }
        )
    if as_json:
        question = {"num_tokens": num_tokens, "batch_size": batch_size, "dtype": dtype, "weights_dtype": weights_dtype}
        typer.echo(json.dumps(question | {"gpu": card and card.name, "models": rows}, indent=2))
        return
    console = Console()
    console.print(f"{batch_size:,} x {num_tokens:,} tokens; cache {dtype}, weights {weights_dtype}", highlight=False)
    _print_cache(rows, card, console)


def _print_cache(rows: list[dict[str, Any]], gpu: GPUSpec | None, console: Console) -> None:
    headings = ["per token", "per sequence", "in all", "weights", *(["GPUs", "fit"] if gpu else [])]
    table = _new_table("model", *headings)
    for row in rows:
        sizes = [row[key] for key in ("bytes_per_token", "bytes_per_sequence", "bytes_in_all", "weight_bytes")]
        room = []
        if gpu:
            fit = row["fit"]
            room = ["?", "?"] if fit is None else [f"{fit['num_gpus']:,}", _many(fit["max_sequences"])]
        table.add_row(row["name"], *("unknown" if each is None else size(each) for each in sizes), *room)
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
    table = _new_table("model", "kind", "parameters", "per token")
    table.columns[0].no_wrap, table.columns[1].justify = True, "left"
    for name in list_models():
        spec = get_model(name)
        parameters = "unknown" if spec.num_parameters is None else f"{spec.num_parameters / 1e9:,.1f} B"
        table.add_row(name, spec.kind, parameters, size(cost.kv_cache_bytes(spec, 1)))
    Console().print(table)


@app.command()
def kernels(
    archs: Annotated[list[str] | None, typer.Argument(help="sm_75 to sm_120, gfx942; all if none is named.")] = None,
    heads: Annotated[list[str] | None, typer.Option(help="Query heads, may be repeated; else 16 and 128.")] = None,
    s_q: Annotated[str, typer.Option(help="New tokens.")] = "1",
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16, fp32, fp8_mla; else bf16, or fp16 on sm_75.")] = None,
) -> None:
    """Compile the decode kernel for GPUs that need not be there, and show what the compiler made of it."""
    counts, num_new = [parse_count(each, "--heads") for each in heads or ("16", "128")], parse_count(s_q, "--s-q")
    bench.need_torch()
    from mla_edu.kernels.offline import ARCHITECTURES, Request, compile_reports

    requests = [
        Request(arch, dtype or ("fp16" if arch == "sm_75" else "bf16"), count, num_new)
        for arch in archs or ARCHITECTURES
        for count in counts
    ]
    table = _new_table("GPU", "dtype", "heads", "tile", "regs", "spill", "shared", "occupancy", "tensor cores")
    table.columns[0].no_wrap, table.columns[1].justify, table.columns[-1].justify = True, "left", "left"
    for report in compile_reports(requests):
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
