"""The same texts written by the engine, by the plain loop of transformers, and by its continuous batching."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mla_edu.bench.libraries import Unsupported, load
from mla_edu.bench.transformers_layer import EXTRA
from mla_edu.models import Decoder
from mla_edu.models.save import hf_config
from mla_edu.serving import Engine, SamplingParams

PAGE_SIZE = 64


@contextmanager
def watched(engine: Engine) -> Iterator[list[float]]:
    """While it lasts, the seconds of each call of a part of the model that the engine's steps call, or of a graph."""
    taken: list[float] = []
    under_way: list[bool] = []
    on_gpu = engine.table.seq_lens.is_cuda

    def timed(part: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if under_way:  # a graph runs the model's parts
                return part(*arguments)
            under_way.append(True)
            try:
                start = time.perf_counter()
                out = part(*arguments)
                if on_gpu:
                    torch.cuda.synchronize()
                taken.append(time.perf_counter() - start)
            finally:
                under_way.pop()
            return out

        return call

    parts: list[tuple[Any, str]] = [(engine.model, "hidden_states"), (engine.model, "logits")]
    if engine.graphs is not None:
        parts.append((engine.graphs, "run"))
    for owner, name in parts:
        vars(owner)[name] = timed(getattr(owner, name))
    try:
        yield taken
    finally:
        for owner, name in parts:
            del vars(owner)[name]


def engine_loop(
    engine: Engine, prompts: Sequence[Sequence[int]], num_new: int
) -> tuple[list[list[int]], list[float], float]:
    """Greedy texts by an engine.

    Args:
        engine: idle; its first step takes the prompts whole.
        prompts: of one length, whose beginnings it has not seen.
        num_new: tokens that each is written on with, two or more.

    Returns:
        The new tokens of each, the seconds after which each token of all of them was there, and what share of the
        steps behind the first one passed outside of the model.
    """
    start, stamps = time.perf_counter(), []
    requests = [engine.submit(prompt, SamplingParams(max_new_tokens=num_new)) for prompt in prompts]
    with watched(engine) as taken:
        while not engine.is_idle:
            engine.step()
            stamps.append(time.perf_counter() - start)
    outside = 1 - sum(taken[2:]) / (stamps[-1] - stamps[0])
    return [request.output for request in requests], stamps, outside


def check_same(ours: Any, theirs: Any, where: str) -> None:
    """Raise ``RuntimeError`` unless two texts are the same."""
    if ours != theirs:
        raise RuntimeError(f"{where}: the texts are {ours} and {theirs}; expected the same tokens")


def same_share(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """The share of tokens that stand before the first one in which two texts differ."""
    alike = 0
    for one, other in zip(ours, theirs, strict=True):
        differs = [a != b for a, b in zip(one, other, strict=True)]
        alike += differs.index(True) if True in differs else len(one)
    return alike / sum(map(len, ours))


def transformers_model(model: Decoder) -> Any:
    """The model of transformers that a model of ours is: its weights are the very memory of ours.

    Raises:
        Unsupported: the installed version names its weights otherwise.
    """
    transformers, weight = load("transformers", EXTRA), model.embed_tokens.weight
    values = hf_config(model.config)
    config = transformers.AutoConfig.for_model(**values)
    with torch.device("meta"):
        found = transformers.AutoModelForCausalLM.from_config(config, dtype=weight.dtype)
    weights = {
        name if name.startswith("lm_head") else f"model.{name}": each for name, each in model.state_dict().items()
    }
    try:
        found.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise Unsupported(" ".join(str(error).split())[:200]) from None
    rotary = found.model.rotary_emb
    found.model.rotary_emb = type(rotary)(found.config).to(weight.device)  # its angles are no weights
    return found.eval()


@torch.no_grad()
def logits_error(model: Decoder, theirs: Any, tokens: Tensor) -> float:
    """How far the logits behind some prompts are from those of transformers, relative, in the Euclidean norm."""
    expected = theirs(tokens, use_cache=False).logits[:, -1].double()
    return float((model(tokens)[:, -1].double() - expected).norm() / expected.norm())


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
    tokens = torch.tensor(prompts, device=model.device)
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
