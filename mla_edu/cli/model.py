"""``mla-edu train`` and ``mla-edu generate``. Nothing heavy is imported before a command runs."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mla_edu.cli.bench import need_torch
from mla_edu.words import digits, duration, size

if TYPE_CHECKING:
    from mla_edu.models import Decoder


def train(
    config: Annotated[Path, typer.Argument(help="YAML with the model and how it learns: see configs/.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and model.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the file's num_steps.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; else a GPU where there is one.")] = None,
) -> None:
    """Train a model that a YAML file describes; Ctrl-C saves, --resume goes on."""
    need_torch()
    from mla_edu.models import save_model
    from mla_edu.train.run import train_into
    from mla_edu.train.settings import RunConfig, TrainConfig

    settings = RunConfig.from_yaml(config)
    if steps is not None:
        learning = TrainConfig(**settings.train.model_dump() | {"num_steps": steps})
        settings = RunConfig(model=settings.model, train=learning)
    with _progress(settings.train.num_steps) as show:

        def note(line: dict[str, Any]) -> None:
            words = f"{line['bits_per_byte']:.3f} bits per byte, {line['tokens_per_second']:,.0f} tokens a second"
            show(line["step"], words)

        stages = train_into(out, settings, resume=resume, device=_device(device), note=note, choice=_say_threads)
        next(stages)
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
    """One live line on a terminal; elsewhere, and in a notebook, a line for each tenth of the steps."""
    if sys.stdout.isatty() and "JPY_PARENT_PID" not in os.environ:  # a notebook's commands believe they have a terminal
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps, {task.fields[words]}"), TimeRemainingColumn())
        with Progress(*columns) as progress:
            task = progress.add_task("", total=num_steps, words="")
            yield lambda step, words: progress.update(task, completed=step, words=words)
        return

    def show(step: int, words: str) -> None:
        if 10 * step // num_steps > 10 * (step - 1) // num_steps:
            typer.echo(f"step {step} of {num_steps}: {words}")

    yield show


def _device(name: str | None) -> str:
    """A device that is there."""
    import torch

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name is None else name
    try:
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ValueError(f"--device is {chosen!r}; expected one that is there: {reason}") from None
    return chosen


def generate(
    folder: Annotated[Path, typer.Argument(help="A checkpoint: config.json beside safetensors files.")],
    prompt: Annotated[str, typer.Option(help="How the text begins.")],
    max_new_tokens: Annotated[int, typer.Option(help="The text ends after so many.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token, more draws more freely.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from as few tokens as have this probability together.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; else a GPU where there is one.")] = None,
) -> None:
    """Let the model in a folder write on, and say what its cache took."""
    need_torch()
    from mla_edu.models import generate as tokens_of
    from mla_edu.models import load_model
    from mla_edu.models.text import Tokens

    chosen = _device(device)
    if (folder / "state.safetensors").is_file():
        raise ValueError(f"{folder} is the folder of a training run; expected a model, such as its model-N")
    model = load_model(folder, device=chosen)
    text = Tokens(folder, model.config.vocab_size)
    known = text.encode(prompt)
    try:
        cache = model.new_cache(max_seq_len=max(1, len(known) + max(0, max_new_tokens)))
    except (RuntimeError, TypeError) as error:  # torch, of memory or of a number that it cannot hold
        raise ValueError(f"--max-new-tokens is {max_new_tokens}; expected a cache for which there is memory") from error
    stream = tokens_of(
        model,
        known,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop_tokens=text.stop_tokens,
        cache=cache,
    )
    letters, written, start = text.stream(), 0, time.perf_counter()
    for token in stream:
        typer.echo(letters(token), nl=False)
        written += 1
    seconds = time.perf_counter() - start
    typer.echo(f"\n{written} tokens, {digits(written / seconds)} a second; cache: {cache_words(model, cache.length)}")


def cache_words(model: "Decoder", num_tokens: int) -> str:
    """What so many tokens take in a cache, and what they would with keys and values for every head."""
    from mla_edu.config import Mamba2Config

    itemsize = model.embed_tokens.weight.itemsize
    parts = [model.config.part(layer) for layer in range(len(model.config.layers))]
    kept = sum(part.elements_per_token for part in parts if not isinstance(part, Mamba2Config)) * itemsize
    states = sum(part.state_elements for part in parts if isinstance(part, Mamba2Config)) * 4
    words = f"{size(num_tokens * kept)} for {num_tokens} tokens"
    if whole := sum(
        part.num_attention_heads * (part.qk_head_dim + part.v_head_dim) for part in parts if part.kind == "mla"
    ):
        latents = sum(part.elements_per_token for part in parts if part.kind == "mla") * itemsize
        words += (
            f", {size(num_tokens * (kept - latents + whole * itemsize))} if keys and values were kept for every head"
        )
    return words + (f"; states: {size(states)}" if states else "")
