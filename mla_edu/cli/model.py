"""``mla-edu generate``: a model writes. Nothing heavy is imported before a command runs."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mla_edu.cli.bench import need_torch
from mla_edu.words import digits, size

if TYPE_CHECKING:
    from mla_edu.models import Decoder


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
    import torch

    from mla_edu.models import generate as tokens_of
    from mla_edu.models import load_model
    from mla_edu.models.text import Tokens

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device is {chosen!r}; expected one that is there: {str(error).splitlines()[0]}") from None
    model = load_model(folder, device=chosen)
    text = Tokens(folder, model.config.vocab_size)
    known = text.encode(prompt)
    cache = model.new_cache(max_seq_len=max(1, len(known) + max(0, max_new_tokens)))
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
