"""``mla-edu train``. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

from mla_edu.cli.bench import need_torch


def train(
    config: Annotated[Path, typer.Argument(help="YAML with the model and how it learns: see configs/.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and model.")],
    steps: Annotated[int | None, typer.Option(help="Instead of the file's num_steps.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; else a GPU where there is one.")] = None,
) -> None:
    """Train a model that a YAML file describes; Ctrl-C saves, --resume goes on."""
    need_torch()
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mla_edu.models import save_model
    from mla_edu.train.run import train_into
    from mla_edu.train.settings import RunConfig, TrainConfig

    settings = RunConfig.from_yaml(config)
    if steps is not None:
        learning = TrainConfig(**settings.train.model_dump() | {"num_steps": steps})
        settings = RunConfig(model=settings.model, train=learning)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps, {task.fields[words]}"), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=settings.train.num_steps, words="")

        def note(line: dict[str, float]) -> None:
            words = f"{line['bits_per_byte']:.3f} bits per byte, {line['tokens_per_second']:,.0f} tokens a second"
            progress.update(task, completed=line["step"], words=words)

        stages = train_into(out, settings, resume=resume, device=chosen_device(device), note=note)
        run = next(stages)
        progress.update(task, completed=run.step)
        next(stages)
    if run.step < settings.train.num_steps:
        typer.echo(f"stopped after step {run.step}; to go on: mla-edu train {config} --out {out} --resume")
        return
    target = out / f"model-{run.step}"
    kind = "already there" if target.exists() else save_model(run.model, target)
    loss = run.validation_loss()
    typer.echo(f"{target} ({kind}): {loss / 0.6931471805599453:.3f} bits per byte on text that it has not seen")


def chosen_device(name: str | None) -> str:
    """A device that is there."""
    import torch

    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device is {chosen!r}; expected one that is there: {str(error).splitlines()[0]}") from None
    return chosen
