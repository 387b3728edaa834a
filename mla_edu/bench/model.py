"""Training and generation of a whole model on a CPU, beside the model of transformers that it is saved as.

Both have the same weights, learn from the same tokens with the same optimizer and write the same text, which is checked
before they are timed. They take turns, so that what else the machine does falls on both alike.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import mla_edu.bench.run as bench
from mla_edu.bench.clock import Call
from mla_edu.bench.libraries import Unsupported, load
from mla_edu.bench.results import CPU, write_whole
from mla_edu.bench.transformers_layer import EXTRA, probe_transformers
from mla_edu.hf.own import OWN
from mla_edu.models import Decoder, ModelCache, save_model
from mla_edu.testing import randomize
from mla_edu.train.settings import RunConfig
from mla_edu.train.threads import thread_count

NAMES = ("ours", "transformers")
PARTS = {  # by the last name of a module
    "self_attn": "attention",
    "mlp": "feed-forward",
    "input_layernorm": "norms",
    "post_attention_layernorm": "norms",
    "norm": "norms",
    "embed_tokens": "embedding and head",
    "lm_head": "embedding and head",
}
LOSS_BOUND = 1e-4  # on how far the two losses may be apart, relative; the models are in float32


class Pair(NamedTuple):
    """What takes turns."""

    ours: Call
    transformers: Call


class Rates(BaseModel):
    """Tokens a second of both, and how many times as fast ours is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: PositiveInt
    ours: PositiveFloat  # tokens a second in the median round
    transformers: PositiveFloat
    ratio: PositiveFloat  # the median of the rounds' ratios
    ratio_of_fastest: PositiveFloat  # of the two fastest rounds, which other processes disturbed least


class ModelResults(BaseModel):
    """What was found of one model on one machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    machine: CPU
    versions: dict[str, str]
    date: str
    config: str  # name of the YAML file
    family: str  # model_type in transformers
    num_parameters: PositiveInt
    num_cached: PositiveInt  # tokens behind which it generates, one sequence at a time
    training: Rates
    generation: Rates
    generation_shares: dict[str, float]  # of a step, by the part that takes them

    def write(self, folder: Path) -> Path:
        """Write ``model-cpu.json`` into a folder, whole or not at all."""
        path = folder / f"model-{self.machine.slug}.json"
        write_whole(path, self.model_dump_json(indent=1) + "\n")
        return path


def run(
    path: Path, *, threads: int = 2, num_cached: int = 2000, num_new: int = 16, rounds: tuple[int, int] = (15, 30)
) -> ModelResults:
    """Measure the model of a YAML file, with random weights in float32.

    Args:
        path: of the file of a training run, whose batch and window are those of a training step.
        threads: of torch, while it is measured.
        num_cached: tokens behind which the models generate.
        num_new: tokens that they generate in a round, the likeliest ones.
        rounds: of training and of generation.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: transformers is not installed, or one that caches no latent.
        ValueError: the file is wrong, or no class of transformers is such a model.
        AssertionError: the two models do not learn or write the same.
    """
    config = RunConfig.from_yaml(path)
    try:
        version = probe_transformers()
    except Unsupported as reason:
        raise ImportError(f"the model is measured beside that of transformers: {reason}") from None
    ours = randomize(Decoder(config.model))
    theirs, family = _as_transformers(ours, path)
    draw = torch.Generator().manual_seed(0)
    prompt = torch.randint(config.model.vocab_size, (1, num_cached), generator=draw)
    shape = (config.train.batch_size, config.train.seq_len + 1)
    windows = torch.randint(config.model.vocab_size, shape, generator=draw)
    with thread_count(threads):
        cache = ours.new_cache(max_seq_len=num_cached + num_new)
        writing = Pair(_our_writing(ours, cache, prompt, num_new), _their_writing(theirs, prompt, num_new))
        check_same_text(writing)
        generation = rates(writing, num_new, rounds[1])
        shares = step_shares(ours, cache, prompt[:, -1:])
        learning = Pair(_learning(ours, ours, windows), _learning(theirs, lambda t: theirs(t).logits, windows))
        check_same_loss(learning)
        training = rates(learning, windows[:, 1:].numel(), rounds[0])
        machine = bench.describe_cpu()
    return ModelResults(
        machine=machine,
        versions=bench.versions() | {"transformers": version},
        date=bench.today(),
        config=path.name,
        family=family,
        num_parameters=sum(weight.numel() for weight in ours.parameters()),
        num_cached=num_cached,
        training=training,
        generation=generation,
        generation_shares=shares,
    )


def _as_transformers(ours: Decoder, path: Path) -> tuple[Any, str]:
    """The same model, loaded by transformers from what ``save_model`` writes."""
    with tempfile.TemporaryDirectory() as parent:
        family = save_model(ours, Path(parent) / "model")
        if family == OWN:
            raise ValueError(f"{path}: transformers has no such model; expected layers of MLA, or of gqa, alone")
        transformers = load("transformers", EXTRA)
        transformers.utils.logging.disable_progress_bar()
        return transformers.AutoModelForCausalLM.from_pretrained(Path(parent) / "model"), family


def _our_writing(model: Decoder, cache: ModelCache, prompt: Tensor, num_new: int) -> Call:
    """The likeliest tokens behind a prompt but for its last token, which is the first that each call takes."""
    with torch.inference_mode():
        model(prompt[:, :-1], cache)
    num_cached = cache.length

    @torch.inference_mode()
    def call() -> list[int]:
        cache.truncate(num_cached)
        token, written = prompt[:, -1:], []
        for _ in range(num_new):
            token = model(token, cache)[:, -1:].argmax(-1)
            written.append(int(token))
        return written

    return call


def _their_writing(model: Any, prompt: Tensor, num_new: int) -> Call:
    cache = load("transformers", EXTRA).DynamicCache(config=model.config)
    with torch.inference_mode():
        model(prompt[:, :-1], past_key_values=cache)

    @torch.inference_mode()
    def call() -> list[int]:
        token, written = prompt[:, -1:], []
        for _ in range(num_new):
            token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
            written.append(int(token))
        cache.crop(-num_new)
        return written

    return call


def _learning(model: nn.Module, logits: Callable[[Tensor], Tensor], windows: Tensor) -> Call:
    """A step of AdamW; the rate is too small to change what the next one computes."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-12, weight_decay=0.0)

    def call() -> float:
        optimizer.zero_grad()
        loss = cross_entropy(logits(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return call


def check_same_text(pair: Pair) -> None:
    """Raise ``AssertionError`` unless both write the same tokens."""
    mine, other = pair.ours(), pair.transformers()
    if mine != other:
        raise AssertionError(f"ours writes {mine}; expected {other}, as transformers")


def check_same_loss(pair: Pair) -> None:
    """Raise ``AssertionError`` unless both have the same loss."""
    mine, other = pair.ours(), pair.transformers()
    if not abs(mine - other) <= LOSS_BOUND * other:
        raise AssertionError(f"the loss of ours is {mine}; expected {other}, as transformers")


def rates(pair: Pair, num_tokens: int, rounds: int) -> Rates:
    """Time both once a round, each as often first as second, behind a tenth as many rounds that warm up.

    Args:
        pair: what takes turns.
        num_tokens: that a call of either deals with.
        rounds: how many.
    """
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    warm_up = -(-rounds // 10)
    for number in range(warm_up + rounds):
        for name in NAMES if number % 2 else reversed(NAMES):
            start = time.perf_counter()
            getattr(pair, name)()
            seconds[name].append(time.perf_counter() - start)
    mine, other = (seconds[name][warm_up:] for name in NAMES)
    return Rates(
        rounds=rounds,
        ours=num_tokens / statistics.median(mine),
        transformers=num_tokens / statistics.median(other),
        ratio=statistics.median(b / a for a, b in zip(mine, other, strict=True)),
        ratio_of_fastest=min(other) / min(mine),
    )


@torch.inference_mode()
def step_shares(model: Decoder, cache: ModelCache, token: Tensor, steps: int = 50) -> dict[str, float]:
    """How a step is shared by the parts of a model, each at its fastest; what is left is ``rest``.

    Args:
        model: that takes the steps.
        cache: with the tokens behind which it does.
        token: the new one, ``[1, 1]``.
        steps: how many, each from the same cached tokens.
    """
    spent: dict[str, float] = {}
    begun, num_cached, hooks = 0.0, cache.length, []

    def begin(*_: object) -> None:
        nonlocal begun
        begun = time.perf_counter()

    def end_of(part: str) -> Callable[..., None]:
        def end(*_: object) -> None:
            spent[part] = spent.get(part, 0.0) + time.perf_counter() - begun

        return end

    for name, module in model.named_modules():
        if part := PARTS.get(name.rpartition(".")[2] if name.count(".") in (0, 2) else ""):
            hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end_of(part))]
    found: list[dict[str, float]] = []
    try:
        for _ in range(steps):
            cache.truncate(num_cached)
            spent.clear()
            start = time.perf_counter()
            model(token, cache)
            whole = time.perf_counter() - start
            found.append(spent | {"rest": whole - sum(spent.values())})
    finally:
        for hook in hooks:
            hook.remove()
        cache.truncate(num_cached)
    fastest = {part: min(each[part] for each in found) for part in found[0]}
    return {part: seconds / sum(fastest.values()) for part, seconds in fastest.items()}
