"""The ``mla-edu`` command: what a model's cache takes, what its kernel compiles to and how fast it is; models."""

import sys
from typing import Annotated, Any, NoReturn

import typer
import typer.core
from rich.console import Console

import mla_edu
from mla_edu import cost
from mla_edu.cli import bench
from mla_edu.cli.cache import cache
from mla_edu.cli.doctor import doctor
from mla_edu.cli.generate import generate
from mla_edu.cli.model import train
from mla_edu.cli.show import new_table
from mla_edu.registry import get_model, list_models
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
app.command()(cache)
app.command()(doctor)
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


@app.command()
def models() -> None:
    """List the registry: name, kind of attention, parameters, cache per token in 16 bit."""
    table = new_table("model", "kind", "parameters", "per token")
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
    table = new_table("GPU", "dtype", "heads", "tile", "regs", "spill", "shared", "occupancy", "tensor cores")
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
