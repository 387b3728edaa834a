"""``mla-edu bench``: one command for each grid. Nothing heavy is imported before a command runs."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from mla_edu.cli.show import a_path, naming_options, new_console, telling, working
from mla_edu.files import read_text
from mla_edu.words import parse_count

if TYPE_CHECKING:
    from mla_edu.bench.grid import Axes, Case
    from mla_edu.bench.results import Run

app = typer.Typer(rich_markup_mode=None)
Parts = Annotated[list[str] | None, typer.Argument(help="A part of the grid, such as dtype=bf16 context=4k,64k.")]
Toy = Annotated[bool, typer.Option(help="At toy size, on a CPU if need be: the times mean nothing.")]
Seconds = Annotated[float | None, typer.Option(help="Start no case after so many seconds.")]
Folder = Annotated[Path | None, typer.Option(parser=a_path, help="Folder for the file of results.")]


@app.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    """Time kernel, layers, a model or the engine on this machine. Beside them stand others, and the limit."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def need_torch() -> None:
    """Raise ``ImportError`` in words where torch is not installed."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError("this command needs torch: pip install torch") from None


@app.command("kernel")
def bench_kernel(parts: Parts = None, toy: Toy = False, seconds: Seconds = None, results: Folder = None) -> None:
    """Time the decode kernel on this machine's GPU. Beside it, other kernels that are installed.

    A part of the grid is named by heads, s_q, context, batch, dtype and lengths, and by the kernels:
    heads=16,128 dtype=fp8_mla lengths=uniform kernels=ours,flashinfer-fa3. With --results, parts that are measured one
    after the other are joined in one file.
    """
    need_torch()
    import torch

    from mla_edu.bench.grid import GRID, TOY, WHOLE, Case, cases
    from mla_edu.book.goals import GOALS, judge

    has_gpu = torch.cuda.is_available()
    whole = [TOY] if toy else list(WHOLE)
    axes = dict(TOY if toy else GRID)
    if has_gpu and torch.cuda.get_device_capability() < (8, 0):
        half = {"dtype": ("fp16",)}  # no bf16, in which an fp8 cache is multiplied
        whole, axes = [{**each, **half} for each in whole], axes | half
    listed = [part.partition("=")[2] for part in parts or () if part.startswith("kernels=")]
    chosen_parts = [part for part in parts or () if not part.startswith("kernels=")]
    grids = [_parts(axes, chosen_parts, Case)] if chosen_parts else whole
    chosen = [case for each in grids for case in cases(each, Case)]
    _check_options(seconds, results)
    if not toy and not has_gpu:
        raise ValueError("no GPU; expected one, or --toy for the same steps at toy size on the CPU")
    if not has_gpu:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported: not before here
    from mla_edu.bench import kernel
    from mla_edu.bench.peers import PEERS
    from mla_edu.bench.report import print_report
    from mla_edu.bench.results import GLUON, OURS

    options: dict[str, Any] = {"names": _kernels(listed[-1], list(PEERS))} if listed else {}
    if parts:
        options["folder"] = results
    with telling(f"cases to measure: {len(chosen)}"):
        found = kernel.run(chosen, torch.device("cuda" if has_gpu else "cpu"), toy=toy, seconds=seconds, **options)
    verdicts = [f"{goal.text:>13} {goal.title}: {judge(goal, found).text}" for goal in GOALS]
    console = new_console(120, soft_wrap=True)
    print_report(found, console, verdicts)
    _finish(found, [OURS, GLUON], console, results)


def _kernels(text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise ValueError(f"kernels is {name!r}; expected some of {', '.join(known)}")
    return [name for name in known if name in names]


@app.command("carry")
def bench_carry(
    environment: Annotated[
        Path,
        typer.Argument(
            parser=a_path, help="What 'pip freeze' or 'pip list' printed on the other machine; or names, a line each."
        ),
    ],
    python: Annotated[str, typer.Option(help="Of the other machine.")] = "3.12",
) -> None:
    """List the packages that a machine without a network lacks.

    For the kernel's benchmark; with the commands that fetch and install them.
    """
    if not re.fullmatch(r"3\.\d{1,2}", python):
        raise ValueError(f"--python is {python!r}; expected one like 3.12")
    from mla_edu.bench.carry import download_command, luggage, read_environment

    found = luggage(read_environment(read_text(environment, "a list of packages").splitlines()), python)
    for heading, names in (
        ("this package needs", found.ours),
        ("kernels of others", found.others),
        ("older there than asked for", found.outdated),
    ):
        typer.echo(f"{heading}: {', '.join(names) or 'nothing'}")
    typer.echo("\nHere, where there is a network:")
    typer.echo(download_command([*found.ours, *found.others], python))
    typer.echo("\nThere, beside this package's source, and with it in PYTHONPATH:")
    typer.echo("python -m pip install --no-index --no-deps --upgrade --target site wheels/*.whl")


@app.command("layer")
def bench_layer(parts: Parts = None, toy: Toy = False, seconds: Seconds = None, results: Folder = None) -> None:
    """Time a decode step of a layer, on a GPU or else the CPU. Beside it, the layer of transformers.

    A part of the grid is named by context and dtype: context=4k,16k dtype=fp32.
    """
    need_torch()
    import torch

    from mla_edu.bench.grid import LAYER_GRID, LAYER_TOY, LayerCase, cases

    has_gpu = torch.cuda.is_available()
    axes = dict(LAYER_TOY if toy else LAYER_GRID)
    if has_gpu and not toy and torch.cuda.get_device_capability() < (8, 0):
        axes["dtype"] = ("fp32", "fp16")
    chosen = list(cases(_parts(axes, parts, LayerCase), LayerCase))
    _check_options(seconds, results)
    from mla_edu.bench import layer
    from mla_edu.bench.report import print_layer_report
    from mla_edu.bench.results import LAYERS

    with telling(f"cases to measure: {len(chosen)}"):
        found = layer.run(chosen, torch.device("cuda" if has_gpu else "cpu"), toy=toy, seconds=seconds)
    console = new_console(120, soft_wrap=True)
    print_layer_report(found, console)
    _finish(found, LAYERS, console, None if parts else results)


def _parts(axes: "Axes", parts: Sequence[str] | None, kind: "type[Case]") -> "Axes":
    """The axes, with the values that the parts name."""
    from mla_edu.bench.grid import words

    return {**axes, **dict(parse_part(part, axes, words(kind)) for part in parts or ())}


def parse_part(
    text: str, axes: Mapping[str, Any], words: Mapping[str, Sequence[str]]
) -> tuple[str, list[int] | list[str]]:
    """``"context=1k,64k"`` as an axis of the grid and its values: ``("context", [1024, 65536])``.

    Raises:
        ValueError: no such axis, or a value that it cannot have.
    """
    name, _, values = text.partition("=")
    if name not in axes or not values:
        raise ValueError(f"the part is {text!r}; expected one like context=4k,64k of {', '.join(axes)}")
    if known := words.get(name):
        for value in values.split(","):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; expected {', '.join(known[:-1])} or {known[-1]}")
        return name, values.split(",")
    return name, [parse_count(value, name) for value in values.split(",")]


def _check_options(seconds: float | None, results: Path | None) -> None:
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(f"--seconds is {seconds}; expected a finite number of at least 0")
    if results is not None and not (results.is_dir() and os.access(results, os.W_OK)):
        raise ValueError(f"--results is {results}; expected a folder that exists and can be written to")


def _finish(found: "Run", ours: Sequence[str], console: Console, folder: Path | None) -> None:
    """Write the results, and fail if what is ours is wrong or fails anywhere."""
    if folder is not None:
        console.print(f"written to {found.write(folder)}")
    faults = [each for each in found.measurements if each.kernel in ours and each.why_not]
    faults = [each for each in faults if str(each.why_not).startswith(("wrong", "failed"))]
    if faults:
        first = f"{faults[0].case}: {faults[0].why_not}"
        raise ValueError(f"{faults[0].kernel} is wrong or fails in {len(faults)} cases, first {first}")


@app.command("serving")
def bench_serving(
    toy: Toy = False,
    rounds: Annotated[int, typer.Option(help="Of each part; the times are medians over them.")] = 5,
    results: Folder = None,
) -> None:
    """Time the engine beside transformers.

    On a GPU with DeepSeek-V2-Lite's sizes, in 60 GB, or else on the CPU, in 3. The weights are random, and on a CPU
    the layers two. A GPU's steps are timed captured and uncaptured.
    """
    need_torch()
    import torch

    _check_options(None, results)
    from mla_edu.bench import serving
    from mla_edu.bench.report import print_serving_report

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with working("measuring the engine"), naming_options({"rounds": "--rounds"}):
        found = serving.run(toy=toy, rounds=rounds, device=device)
    console = new_console(120, soft_wrap=True)
    print_serving_report(found, console)
    if results is not None:
        console.print(f"written to {found.write(results)}")


@app.command("distributed")
def bench_distributed(
    ranks: Annotated[str, typer.Option(help="Numbers of ranks, such as 2,4; at most one a head.")] = "2,4",
    toy: Toy = False,
    rounds: Annotated[int, typer.Option(help="Of each step; the times are medians over them.")] = 5,
    results: Folder = None,
) -> None:
    """Time layers that are dealt over several processes.

    Counts what passes between them; torchrun starts them.
    """
    need_torch()
    _check_options(None, results)
    sizes = [parse_count(each, "--ranks") for each in ranks.split(",")]
    from mla_edu.bench import distributed
    from mla_edu.bench.report import print_distributed_report

    on = f"{ranks} ranks" if sizes != [1] else "one rank"
    with working(f"measuring on {on}"), naming_options({"ranks": "--ranks", "rounds": "--rounds"}):
        found = distributed.run(sizes, toy=toy, rounds=rounds)
    console = new_console(120, soft_wrap=True)
    print_distributed_report(found, console)
    if results is not None:
        console.print(f"written to {found.write(results)}")


@app.command("load")
def bench_load() -> None:
    """Measure the memory that loading a model takes. The model is random, of 1.2 GB, in a process of its own."""
    need_torch()
    from mla_edu.bench.load import measure_load
    from mla_edu.words import size

    with working("loading a model of 1.2 GB"):
        found = measure_load()
    typer.echo(
        f"weights {size(found.weights)}, largest tensor {size(found.largest_tensor)}, peak {size(found.peak)}: "
        f"without the largest tensor {found.share:.2f} of the weights"
    )


@app.command("model")
def bench_model(
    config: Annotated[Path, typer.Argument(parser=a_path, help="YAML of a training run: see configs/.")] = Path(
        "configs/mla-moe.yaml"
    ),
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 2,
    results: Folder = None,
) -> None:
    """Time training and generation of a model on the CPU. Beside it, the same model of transformers."""
    need_torch()
    _check_options(None, results)
    from mla_edu.models.config import read_mapping

    read_mapping(config)  # refused before a line says that it is measured
    from mla_edu.bench import model
    from mla_edu.bench.report import print_model_report

    with working(f"measuring the model of {config}"):
        found = model.run(config, threads=threads)
    console = new_console(120, soft_wrap=True)
    print_model_report(found, console)
    if results is not None:
        console.print(f"written to {found.write(results)}")


@app.command("latent-width")
def bench_latent_width(
    results: Annotated[
        Path, typer.Option(parser=a_path, help="Folder for the file of results; what it holds is not done again.")
    ],
    seeds: Annotated[str, typer.Option(help="Of each model, one after another.")] = "5",
) -> None:
    """Train small models with latents of several widths.

    They have one size, and differ in what attention keeps of a token.
    """
    need_torch()
    _check_options(None, results)
    from mla_edu.bench import width
    from mla_edu.bench.report import print_width_report

    def note(trial: width.Trial) -> None:
        point, seed, steps, rate = trial.key
        typer.echo(f"{point}, seed {seed}, {steps} steps, rate {rate}: {trial.loss:.3f} nats a byte")

    found = width.sweep(results / width.FILE, width.plan(parse_count(seeds, "--seeds")), note)
    print_width_report(found, new_console(120, soft_wrap=True))
