"""Writing with a model: token after token, through its cache."""

import math
from collections.abc import Collection, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mla_edu.cache.table import MOST
from mla_edu.models.cache import ModelCache
from mla_edu.models.decoder import Decoder
from mla_edu.validation import check_integer, shown

LEAST = 1e-30  # of what a smaller temperature or top_p asks for, float32 has the same


def generate(
    model: Decoder,
    prompt_tokens: Sequence[int],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop_tokens: Collection[int] = (),
    cache: ModelCache | None = None,
) -> Iterator[int]:
    """The tokens that follow a prompt, each as soon as it is chosen.

    Args:
        model: in the mode and on the device that it is.
        prompt_tokens: at least one.
        max_new_tokens: after so many it ends.
        temperature: what the logits are divided by before one is drawn; 0 takes the largest.
        top_p: only the likeliest tokens are drawn, as few as have this probability together.
        seed: of the draws; None for torch's own generator.
        stop_tokens: the text ends before one of them.
        cache: empty, of one sequence; None for a new one that fits.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a number is out of range, the prompt is empty or has a token that is not of the vocabulary, or
            prompt and new tokens do not fit into the cache. Before anything is computed.
    """
    if not isinstance(model, Decoder):
        raise TypeError(f"model is a {type(model).__name__}; expected a Decoder")
    if not isinstance(cache, ModelCache | None):
        raise TypeError(f"cache is a {type(cache).__name__}; expected a ModelCache, from model.new_cache")
    if not isinstance(prompt_tokens, Sequence):
        raise TypeError(f"prompt_tokens is {shown(prompt_tokens)}; expected a list of tokens")
    check_integer("max_new_tokens", max_new_tokens, lowest=0)
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} is {shown(value)}; expected a number")
    if not isinstance(stop_tokens, Collection):
        raise TypeError(f"stop_tokens is {shown(stop_tokens)}; expected several tokens")
    for token in stop_tokens:
        check_integer("a token of stop_tokens", token, 0)
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; expected at least 0, and finite")
    if seed is not None:
        check_integer("seed", seed, 0, 2**63 - 1)
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; expected more than 0 and at most 1")
    vocab_size = model.config.vocab_size
    if not prompt_tokens:
        raise ValueError("prompt_tokens is empty; expected at least one token")
    for token in prompt_tokens:
        check_integer("a token of prompt_tokens", token, 0, vocab_size - 1)
    length = len(prompt_tokens) + max_new_tokens
    if cache is None:
        check_integer("max_new_tokens", max_new_tokens, 0, MOST - len(prompt_tokens))
        cache = model.new_cache(max_seq_len=length)
    if cache.lengths != [0] or cache.table.max_seq_len < length:
        raise ValueError(
            f"cache holds {cache.lengths} tokens of {cache.table.max_seq_len}; expected an empty one of one sequence, "
            f"for {len(prompt_tokens)} tokens of prompt_tokens and max_new_tokens = {max_new_tokens}"
        )
    return _generate(model, list(prompt_tokens), max_new_tokens, temperature, top_p, seed, stop_tokens, cache)


@torch.no_grad()
def _generate(
    model: Decoder,
    tokens: list[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    stop_tokens: Collection[int],
    cache: ModelCache,
) -> Iterator[int]:
    device = model.embed_tokens.weight.device
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    for _ in range(max_new_tokens):
        logits = model(torch.tensor([tokens], device=device), cache)[0, -1]
        token = choose(logits, temperature, top_p, generator)
        if token in stop_tokens:
            return
        yield token
        tokens = [token]


def choose(
    logits: Float[Tensor, " vocab"], temperature: float, top_p: float, generator: torch.Generator | None = None
) -> int:
    """One token: the likeliest at temperature 0, otherwise drawn from the likeliest ones.

    Args:
        logits: of the vocabulary.
        temperature: what they are divided by.
        top_p: drawn from as few tokens as have this probability together (Holtzman et al. 2019).
        generator: of the draw; None for torch's own.

    Raises:
        ValueError: a logit is not finite.
    """
    largest = logits.max().item()
    if not math.isfinite(largest):
        raise ValueError(f"the largest logit is {largest}; expected a finite one: a weight may be damaged")
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(probabilities(logits, temperature, top_p), 1, generator=generator))


def probabilities(logits: Float[Tensor, " vocab"], temperature: float, top_p: float) -> Float[Tensor, " vocab"]:
    """What ``choose`` draws from at a temperature above 0; at least float32."""
    temperature, top_p = max(float(temperature), LEAST), max(float(top_p), LEAST)
    softmax = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).softmax(-1)
    if top_p == 1:
        return softmax
    largest, order = softmax.sort(descending=True)
    before = largest.cumsum(-1) - largest
    kept = torch.zeros_like(softmax).scatter(-1, order, largest.masked_fill(before >= top_p, 0))
    return kept / kept.sum()
