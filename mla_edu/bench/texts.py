"""The same texts written by the engine, by the plain loop of transformers, and by its continuous batching."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mla_edu.bench.libraries import Unsupported, load
from mla_edu.bench.transformers_layer import EXTRA
from mla_edu.models import Decoder, save_model
from mla_edu.serving import Engine, SamplingParams

PAGE_SIZE = 64


@contextmanager
def watched(model: Decoder) -> Iterator[list[float]]:
    """While it lasts, the seconds of each call of the two parts of a model that an engine's step calls."""
    taken: list[float] = []

    def timed(part: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            start = time.perf_counter()
            out = part(*arguments)
            taken.append(time.perf_counter() - start)
            return out

        return call

    parts = ("hidden_states", "logits")
    vars(model).update({name: timed(getattr(model, name)) for name in parts})
    try:
        yield taken
    finally:
        for name in parts:
            del vars(model)[name]


def engine_loop(
    model: Decoder, prompts: Sequence[Sequence[int]], num_new: int
) -> tuple[list[list[int]], list[float], float]:
    """Greedy texts by an engine whose first step takes the prompts whole.

    Args:
        model: of ours.
        prompts: of one length.
        num_new: tokens that each is written on with, two or more.

    Returns:
        The new tokens of each, the seconds after which each token of all of them was there, and what share of the
        steps behind the first one passed outside of the model.
    """
    length = len(prompts[0])
    pages = len(prompts) * -(-(length + num_new) // PAGE_SIZE)
    engine = Engine(model, pages, PAGE_SIZE, max_batch_tokens=len(prompts) * length)
    start, stamps = time.perf_counter(), []
    requests = [engine.submit(prompt, SamplingParams(max_new_tokens=num_new)) for prompt in prompts]
    with watched(model) as taken:
        while not engine.is_idle:
            engine.step()
            stamps.append(time.perf_counter() - start)
    outside = 1 - sum(taken[2:]) / (stamps[-1] - stamps[0])
    return [request.output for request in requests], stamps, outside


def check_same(ours: Any, theirs: Any, where: str) -> None:
    """Raise ``RuntimeError`` unless two texts are the same."""
    if ours != theirs:
        raise RuntimeError(f"{where}: the texts are {ours} and {theirs}; expected the same tokens")


def transformers_model(model: Decoder) -> Any:
    """The model of transformers that a model of ours is, written into a temporary folder and read by it."""
    with tempfile.TemporaryDirectory() as parent:
        save_model(model, Path(parent) / "model")
        found = load("transformers", EXTRA).AutoModelForCausalLM.from_pretrained(Path(parent) / "model")
    return found.eval()


class _Stamps:
    """What ``generate`` hands each new token to: notes when."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: list[float] = []

    def put(self, _tokens: Tensor) -> None:
        self.seconds.append(time.perf_counter() - self.start)

    def end(self) -> None:
        pass


@torch.no_grad()
def plain_loop(model: Any, prompts: Sequence[Sequence[int]], num_new: int) -> tuple[list[list[int]], list[float]]:
    """Greedy texts by ``generate``.

    Args:
        model: of transformers.
        prompts: of one length.
        num_new: tokens that each is written on with.

    Returns:
        The new tokens of each, and the seconds after which each token of all of them was there.
    """
    tokens = torch.tensor(prompts)
    stamps = _Stamps()
    options = {"attention_mask": torch.ones_like(tokens), "do_sample": False, "pad_token_id": 0}
    whole = model.generate(tokens, max_new_tokens=num_new, streamer=stamps, **options)
    return whole[:, tokens.shape[1] :].tolist(), stamps.seconds[1:]  # the first that it puts are the prompts


class _Errors(logging.Filter):
    """Keeps a log's exceptions and lets nothing else through."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[BaseException] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            self.found.append(record.exc_info[1])
        return False


def continuous_batching(model: Any, prompts: Sequence[Sequence[int]], num_new: int) -> list[list[int]]:
    """Greedy texts by ``generate_batch``, whose own thread does the work: its errors end in a log.

    Args:
        model: of transformers.
        prompts: of any lengths.
        num_new: tokens that each is written on with.

    Raises:
        Unsupported: it fails; with the type and the first line of the error.
    """
    transformers, errors = load("transformers", EXTRA), _Errors()
    log = logging.getLogger("ContinuousBatchingLogger")
    log.addFilter(errors)
    pages = sum(-(-(len(prompt) + num_new) // PAGE_SIZE) for prompt in prompts)
    options = {"max_new_tokens": num_new, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
    try:
        found = model.generate_batch(
            inputs=[list(prompt) for prompt in prompts],
            generation_config=transformers.GenerationConfig(**options),
            continuous_batching_config=transformers.ContinuousBatchingConfig(
                page_size=PAGE_SIZE, num_blocks=pages, max_batch_tokens=max(512, sum(map(len, prompts)))
            ),
        )
    except Exception as error:  # whatever it raises
        errors.found.append(error)
        found = {}
    finally:
        log.removeFilter(errors)
    if errors.found:
        first_line = (str(errors.found[0]).splitlines() or [""])[0]
        raise Unsupported(f"{type(errors.found[0]).__name__}: {first_line}") from errors.found[0]
    if len(found) < len(prompts) or any(each.error for each in found.values()):
        raise Unsupported("it ended without all texts, and without saying why")
    return [list(each.generated_tokens) for each in found.values()]
