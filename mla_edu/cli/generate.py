"""``mla-edu generate``: one prompt or many through an engine. Nothing heavy is imported before the command runs."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mla_edu.cli.bench import need_torch
from mla_edu.cli.model import chosen_device
from mla_edu.cli.show import a_path, naming_options, new_console, of_option, working
from mla_edu.files import check_folder
from mla_edu.words import digits, size

if TYPE_CHECKING:
    from mla_edu.models.text import Tokens
    from mla_edu.serving import Engine, Request

PAGE_SIZE = 64
MOST_AT_ONCE = 32  # requests for whom there are pages; the others wait
# What the arguments of a request are called on the command line.
OPTIONS = {
    "max_new_tokens": "--max-new-tokens",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "seed": "--seed",
}


def generate(
    folder: Annotated[Path, typer.Argument(parser=a_path, help="A checkpoint: config.json beside safetensors files.")],
    prompt: Annotated[str | None, typer.Option(help="How the text begins.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(parser=a_path, help="A file of prompts, one a line; .jsonl: objects.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The text ends after so many.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token, more draws more freely.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from as few tokens as have this probability together.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    mla: Annotated[Literal["latent", "expanded"], typer.Option(help="What MLA layers keep of a token.")] = "latent",
    speculate: Annotated[Literal["ngram", "mtp"] | None, typer.Option(help="Guess tokens, and verify them.")] = None,
    prefix_cache: Annotated[bool, typer.Option(help="Share the pages of equal beginnings.")] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; else a GPU where there is one.")] = None,
) -> None:
    """Let the model in a folder write on, and say what that took.

    Answers to a file of prompts are JSON lines on stdout; what they took is then said on stderr.
    """
    if (prompt is None) == (prompts is None):
        raise ValueError("expected --prompt or --prompts, one of the two")
    if prompt == "":
        raise ValueError("--prompt is ''; expected how the text begins")
    if prompt is not None and temperature == 0 and top_p != 1:
        raise ValueError(f"--top-p is {top_p} at temperature 0, which draws nothing; expected a higher --temperature")
    check_folder("folder", folder, "a checkpoint: config.json beside safetensors files")
    need_torch()
    from mla_edu.cache.table import MOST
    from mla_edu.models import load_model
    from mla_edu.models.text import Tokens
    from mla_edu.serving import Engine, MTPDrafter, NGramDrafter, SamplingParams
    from mla_edu.serving.prompts import read_prompts

    with naming_options(OPTIONS):
        params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    with of_option("--prompts"):
        asked = read_prompts(prompts, params) if prompts else []
    new_tokens = [one.max_new_tokens for one in asked] or [max_new_tokens]
    no_memory = f"--max-new-tokens is {max_new_tokens}; expected a cache for which there is memory"
    if _pages(new_tokens) * PAGE_SIZE > MOST:
        raise ValueError(no_memory)
    chosen = chosen_device(device)
    if (folder / "state.safetensors").is_file():
        raise ValueError(f"{folder} is the folder of a training run; expected a model, such as its model-N")
    with working(f"loading {folder}"), naming_options({"mtp is True": "--speculate is 'mtp'"}):
        model = load_model(folder, device=chosen, mtp=speculate == "mtp")
    text = Tokens(folder, model.config.vocab_size)
    stops = {"stop_tokens": tuple(sorted(text.stop_tokens))}
    known = [(text.encode(prompt), params)] if prompt is not None else [(text.encode(one.prompt), one) for one in asked]
    num_pages = _pages(len(tokens) + one.max_new_tokens for tokens, one in known)
    if num_pages * PAGE_SIZE > MOST:
        raise ValueError(no_memory)
    try:
        with naming_options({"a drafter": "--speculate"}):
            engine = Engine(
                model,
                num_pages=num_pages,
                page_size=PAGE_SIZE,
                mla=mla,
                drafter={"ngram": NGramDrafter(), "mtp": MTPDrafter(), None: None}[speculate],
                share_prefixes=None if prefix_cache else False,
            )
    except (RuntimeError, TypeError, MemoryError, OverflowError) as error:  # of memory, or a number it cannot hold
        raise ValueError(no_memory) from error
    requests = [engine.submit(tokens, one.model_copy(update=stops)) for tokens, one in known]
    start, done = time.perf_counter(), 0
    if prompt is not None:
        _stream(engine, requests[0], text)
    else:
        with working(f"prompts to answer: {len(asked)}", len(asked)) as note:
            while not engine.is_idle:
                finished = sum(event.kind == "finished" for event in engine.step())
                note(done := done + finished)
    seconds = time.perf_counter() - start
    for one, request in zip(asked, requests, strict=False):
        letters = text.stream()
        typer.echo(
            json.dumps({"prompt": one.prompt, "text": "".join(map(letters, request.output))}, ensure_ascii=False)
        )
    new_console(stderr=prompt is None).print(_table(engine, requests, seconds))


def _pages(lengths: Iterable[int]) -> int:
    """Pages for texts of these lengths: as many of the longest as are written at once."""
    return sum(sorted(-(-length // PAGE_SIZE) for length in lengths)[-MOST_AT_ONCE:])


def _stream(engine: "Engine", request: "Request", text: "Tokens") -> None:
    """Print the letters of a single request as they come."""
    letters, told = text.stream(), 0
    with working(f"reading the prompt's {len(request.prompt):,} tokens"):
        while not (request.output or engine.is_idle):
            engine.step()
    while told < len(request.output) or not engine.is_idle:
        typer.echo("".join(map(letters, request.output[told:])), nl=False)
        told = len(request.output)
        if not engine.is_idle:
            engine.step()
    typer.echo()


def _table(engine: "Engine", requests: list["Request"], seconds: float) -> Table:
    stats, prompt = engine.stats, sum(len(request.prompt) for request in requests)
    page = engine.cache.nbytes // engine.table.allocator.num_pages
    rows = {
        "requests": str(len(requests)),
        "tokens in": f"{prompt:,}",
        "of them found in kept pages": f"{stats.found:,} ({stats.found / prompt:.0%})",
        "tokens out": f"{stats.output:,}",
        "tokens out a second": digits(stats.output / seconds),
        "preemptions": str(stats.preempted),
        "guesses that were right": f"{stats.accepted:,} of {stats.drafted:,}",
        "most pages held": f"{stats.peak_pages:,} of {PAGE_SIZE} tokens each, {size(stats.peak_pages * page)}",
    } | _bytes_of_a_token(engine)
    table = Table(box=SIMPLE_HEAD, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _bytes_of_a_token(engine: "Engine") -> dict[str, str]:
    """What a token takes as it is kept, and as MLA layers would otherwise keep it; and what states take."""
    from mla_edu.config import GQAConfig, Mamba2Config, MLAConfig

    config, itemsize = engine.model.config, engine.model.embed_tokens.weight.itemsize
    parts = [config.part(layer) for layer in range(len(config.layers))]
    kept = {"latent": 0, "expanded": 0}
    for part in parts:
        if isinstance(part, GQAConfig | MLAConfig):
            kept["latent"] += part.elements_per_token * itemsize
            whole = part.expanded_elements_per_token if isinstance(part, MLAConfig) else part.elements_per_token
            kept["expanded"] += whole * itemsize
    rows = {"cache of a token": size(kept[engine.mla])}
    if config.mla is not None:
        other = "with latents alone" if engine.mla == "expanded" else "with keys and values of every head"
        rows[other] = size(kept["latent" if engine.mla == "expanded" else "expanded"])
    if states := sum(part.state_elements for part in parts if isinstance(part, Mamba2Config)):
        rows["states of a request"] = size(states * 4)
    return rows
