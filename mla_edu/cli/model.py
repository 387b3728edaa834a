"""``mla-edu train``. Nothing heavy is imported before a command runs."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mla_edu.cli.bench import need_torch
from mla_edu.cli.show import a_path, is_terminal, naming_options, working
from mla_edu.files import open_file
from mla_edu.validation import shown
from mla_edu.words import duration


def train(
    config: Annotated[Path, typer.Argument(parser=a_path, help="YAML with the model and how it learns: see configs/.")],
    out: Annotated[Path, typer.Option(parser=a_path, help="Folder for checkpoints, log and model.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the file's num_steps.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; else a GPU where there is one.")] = None,
) -> None:
    """Train a model that a YAML file describes. Ctrl-C saves, --resume goes on."""
    with open_file(config, "a YAML file, such as those of the book's configs/"):
        need_torch()  # which takes seconds: a wrong path is told before
    from mla_edu.models import save_model
    from mla_edu.train.run import train_into
    from mla_edu.train.settings import RunConfig, TrainConfig

    settings = RunConfig.from_yaml(config)
    if steps is not None:
        with naming_options({"num_steps": "--steps"}):
            learning = TrainConfig(**settings.train.model_dump() | {"num_steps": steps})
        settings = RunConfig(model=settings.model, train=learning)
    timed: dict[int, float] = {}
    with _progress(settings.train.num_steps) as show:

        def note(line: dict[str, Any]) -> None:
            words = f"{line['bits_per_byte']:.3f} bits per byte, {line['tokens_per_second']:,.0f} tokens a second"
            show(line["step"], words)

        def choice(_: int, seconds: dict[int, float]) -> None:
            timed.update(seconds)

        stages = train_into(out, settings, resume=resume, device=chosen_device(device), note=note, choice=choice)
        with working("trying a step"), naming_options({"num_steps": "--steps" if steps else "num_steps"}):
            run = next(stages)
        if timed:
            _say_threads(run.threads, timed)
        run = next(stages)
    if run.step < settings.train.num_steps:
        again = ["mla-edu", "train", str(config), "--out", str(out), "--resume"]
        again += [] if steps is None else ["--steps", str(steps)]
        again += [] if device is None else ["--device", device]
        typer.echo(f"stopped after step {run.step}; to go on: {shlex.join(again)}")
        return
    target = out / f"model-{run.step}"
    kind = "already there" if target.exists() else save_model(run.model, target)
    loss = run.validation_loss()
    typer.echo(f"{target} ({kind}): {loss / 0.6931471805599453:.3f} bits per byte on text that it has not seen")


def _say_threads(threads: int, seconds: dict[int, float]) -> None:
    """Which number of threads was faster."""
    taken = ", ".join(f"{duration(1e6 * each)} with {number}" for number, each in sorted(seconds.items()))
    typer.echo(f"threads: {threads} (a step takes {taken})")


@contextmanager
def _progress(num_steps: int) -> Iterator[Callable[[int, str], None]]:
    """One live line on a terminal, from the first step on; elsewhere a line for that step and each tenth of them."""
    if is_terminal("stdout"):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps, {task.fields[words]}"), TimeRemainingColumn())
        progress = Progress(*columns)
        task = progress.add_task("", total=num_steps, words="")

        def update(step: int, words: str) -> None:
            progress.start()
            progress.update(task, completed=step, words=words)

        try:
            yield update
        finally:
            progress.stop()
        return

    def show(step: int, words: str) -> None:
        if step == 1 or 10 * step // num_steps > 10 * (step - 1) // num_steps:
            typer.echo(f"step {step} of {num_steps}: {words}")

    yield show


def chosen_device(name: str | None) -> str:
    """A device that is there."""
    import torch

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    there = ["cuda", *gpus, "cpu"] if gpus else ["cpu"]
    if name is not None and name not in there:
        raise ValueError(f"--device is {shown(name)}; expected one that is there: {', '.join(there)}")
    return name or there[0]
