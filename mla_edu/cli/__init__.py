"""The ``mla-edu`` command: what a model's cache takes, what its kernel compiles to and how fast it is; models."""

import io
import re
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer
import typer.core
from pydantic import ValidationError

import mla_edu
from mla_edu import cost
from mla_edu.cli import bench
from mla_edu.cli.cache import cache
from mla_edu.cli.doctor import doctor
from mla_edu.cli.generate import generate
from mla_edu.cli.kernels import kernels
from mla_edu.cli.model import train
from mla_edu.cli.show import new_console, new_table, say
from mla_edu.registry import get_model, list_models
from mla_edu.validation import describe, shown
from mla_edu.words import size

INTERRUPTED = 130  # by Ctrl-C: 128 and the signal's number
_UsageError: type[Any] = typer.BadParameter.__bases__[0]  # of click, or of the copy of it that typer brings


class _Commands(typer.core.TyperGroup):
    """Commands that say in one line what is wrong with their input, and end with 2."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a name of a file may have letters that it cannot write
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
                status = super().main(*args, **options | {"standalone_mode": False})
        except typer.Abort:
            status = INTERRUPTED
        except _UsageError as error:
            status = 2
            say(_told(error))
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            status = 2
            say(str(error))
        except MemoryError:
            status = 2
            say("there is not enough memory for that")
        if status == INTERRUPTED:  # as typer says it, too
            say("interrupted")
        sys.exit(status)


def _told(error: Any) -> str:
    """What is wrong with the words of a command; typer leaves out the value that an option was given."""
    if type(error).__name__ == "MissingParameter":
        return f"{error.param.opts[0]} is missing; expected: {error.param.help}"
    if type(error).__name__ == "BadOptionUsage" and "requires" in error.message:
        return f"{error.option_name} has no value; expected one after it"
    if not isinstance(error.__cause__, ValidationError):
        return str(error.format_message())
    found = describe(error.__cause__).partition(", unable to")[0]
    found = re.sub(r"^.* is not one of (.*)\.$", r"expected one of \1", found)
    return f"{error.param.opts[0]} is {shown(error.__cause__.errors()[0]['input'])}; {found}"


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(bench.app, name="bench")
app.command()(cache)
app.command()(doctor)
app.command()(train)
app.command()(generate)
app.command()(kernels)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mla-edu {mla_edu.__version__}")
        raise typer.Exit


@app.callback(help=(__doc__ or "").replace("`", ""), invoke_without_command=True)
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
    """List the registry: kind, parameters and cache per token in bf16."""
    table = new_table("model", "kind", "parameters", "per token")
    table.columns[0].no_wrap, table.columns[1].justify = True, "left"
    for name in list_models():
        spec = get_model(name)
        parameters = "unknown" if spec.num_parameters is None else f"{spec.num_parameters / 1e9:,.1f} B"
        table.add_row(name, spec.kind, parameters, size(cost.kv_cache_bytes(spec, 1)))
    new_console().print(table)
