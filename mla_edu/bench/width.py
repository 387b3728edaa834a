"""How wide a latent: small models of one size, which differ in what attention keeps of a token, trained and compared.

Every model reads bytes of Python's standard library and has as many parameters as the others, by the width of its
feed-forward part. Models of one seed see the same text in the same order, so that they can be compared in pairs.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, ValidationError

import mla_edu.bench.run as bench
from mla_edu.bench.results import CPU, MEASURED, write_whole
from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.layers.gqa import GroupedQueryAttention
from mla_edu.models import Decoder, ModelConfig
from mla_edu.train.corpus import standard_library
from mla_edu.train.loop import draw_windows
from mla_edu.train.run import Run
from mla_edu.train.settings import RunConfig, TrainConfig
from mla_edu.validation import check_integer

FILE = "latent-width.json"
HIDDEN, LAYERS, HEADS, HEAD_DIM, MLP = 128, 4, 8, 16, 344  # MLP: of the model with a key and a value for each head
WINDOWS = 128  # of the text for validation, always the same
RATE, RATES = 0.02, (0.01, 0.04)  # of Muon: for all, and tried on a few beside it
STEPS, SHORT = 120, 50
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 97.5 %, 1 to 9 degrees
RANKS = (8, 16, 32, 64, 128)  # kept of the keys and values of a trained model


def gqa(kv_heads: int) -> GQAConfig:
    """The attention whose key/value heads are shared; 8 are one for each query head."""
    return GQAConfig(hidden_size=HIDDEN, num_attention_heads=HEADS, num_key_value_heads=kv_heads, head_dim=HEAD_DIM)


def mla(kv_lora_rank: int, qk_rope_head_dim: int, rotated: bool = True) -> MLAConfig:
    """The attention over a latent; not rotated, it has the shared key but no word of positions."""
    return MLAConfig(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        q_lora_rank=None,
        kv_lora_rank=kv_lora_rank,
        qk_nope_head_dim=HEAD_DIM,
        qk_rope_head_dim=qk_rope_head_dim,
        v_head_dim=HEAD_DIM,
        rope_theta=10000.0 if rotated else None,
    )


POINTS: dict[str, GQAConfig | MLAConfig] = {
    **{f"gqa-{heads}": gqa(heads) for heads in (8, 4, 2, 1)},
    **{f"mla-{rank}+16": mla(rank, 16) for rank in (8, 16, 32, 64, 128)},
    **{f"mla-48+{width}": mla(48, width) for width in (0, 4, 8, 16, 32)},
    "mla-48+16-unrotated": mla(48, 16, rotated=False),
}
TUNED = ("gqa-2", "mla-48+16")  # on which other rates are tried
PAIR = ("mla-48+16", "mla-48+0")  # which a reader trains for a few steps


def num_parameters(config: ModelConfig) -> int:
    """Of all weights of a model."""
    return sum(weight.numel() for weight in Decoder(config, device="meta").parameters())


def model_of(point: str) -> ModelConfig:
    """The model with the attention of a point, as large as the one with ``gqa-8``, within half a per cent.

    Args:
        point: one of ``POINTS``.

    Raises:
        ValueError: there is no such point.
    """
    if point not in POINTS:
        raise ValueError(f"point is {point!r}; expected one of {', '.join(POINTS)}")

    def model(name: str, mlp: int) -> ModelConfig:
        part = POINTS[name]
        kind = "mla" if isinstance(part, MLAConfig) else "gqa"
        values = {kind: part, "layers": (kind,) * LAYERS, "intermediate_size": mlp}
        return ModelConfig(vocab_size=256, hidden_size=HIDDEN, **values)  # type: ignore[arg-type]

    wanted, without = num_parameters(model("gqa-8", MLP)), num_parameters(model(point, 1))
    found = model(point, 1 + round((wanted - without) / (3 * HIDDEN * LAYERS)))
    assert abs(num_parameters(found) / wanted - 1) < 0.005
    return found


class Key(NamedTuple):
    """Which training: all that decides its result on one machine."""

    point: str
    seed: int = 0
    steps: int = STEPS
    muon_rate: float = RATE


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Trial(_Record):
    """One trained model."""

    point: str
    seed: int  # of the weights and of the order of the text
    steps: int
    muon_rate: PositiveFloat
    parameters: int
    loss: PositiveFloat  # nats per byte, on text that it has not seen
    seconds: PositiveFloat
    truncated: dict[int, float] | None = None  # loss with keys and values of so many directions; of "gqa-8" alone

    @property
    def key(self) -> Key:
        """Which training it was."""
        return Key(self.point, self.seed, self.steps, self.muon_rate)


class Sweep(_Record):
    """What has been trained on one machine and one text."""

    machine: CPU
    versions: dict[str, str]
    date: str
    corpus_sha256: str
    corpus_files: int
    trials: tuple[Trial, ...] = ()

    @property
    def hours(self) -> float:
        """That all trainings took together."""
        return sum(trial.seconds for trial in self.trials) / 3600

    def losses(self, point: str, steps: int = STEPS, muon_rate: float = RATE) -> dict[int, float]:
        """Loss of each seed, in nats per byte."""
        wanted = [t for t in self.trials if t.key == Key(point, t.seed, steps, muon_rate)]
        return {trial.seed: trial.loss for trial in wanted}

    def differences(self, point: str, reference: str, steps: int = STEPS) -> list[float]:
        """Loss of a point minus that of a reference, of each seed that both have."""
        mine, theirs = self.losses(point, steps), self.losses(reference, steps)
        return [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_whole(path, self.model_dump_json(indent=1, exclude_none=True) + "\n")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of a few normal values, and how far the true one may be from it: the 95 % interval of Student (1908).

    Args:
        values: two to ten, independent of each other.

    Raises:
        ValueError: there are fewer or more.
    """
    count = len(values)
    if count not in range(2, 2 + len(T_QUANTILES)):
        raise ValueError(f"values has {count}; expected 2 to {1 + len(T_QUANTILES)}")
    return mean(values), T_QUANTILES[count - 2] * stdev(values) / count**0.5


def read_sweep(path: Path = MEASURED / FILE) -> Sweep:
    """A file of results; without a path the one that comes with the package.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no such file, with the first thing that is wrong.
    """
    try:
        return Sweep.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path} at {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def plan(seeds: int) -> list[Key]:
    """All trainings: other rates for some, then seed by seed every point and a reader's short ones.

    Raises:
        ValueError: ``seeds`` is not positive.
    """
    check_integer("seeds", seeds)
    found = [Key(point, muon_rate=rate) for point in TUNED for rate in RATES]
    for seed in range(seeds):
        found += [Key(point, seed) for point in POINTS]
        found += [Key(point, seed, SHORT) for point in PAIR]
    return found


def train_point(key: Key) -> Trial:
    """Train one model.

    Raises:
        ValueError: there is no such point, or a number is out of range.
    """
    start = time.perf_counter()
    learning = TrainConfig(num_steps=key.steps, muon_rate=key.muon_rate, adam_rate=key.muon_rate / 4, seed=key.seed)
    run = Run(RunConfig(model=model_of(key.point), train=learning))
    while run.step < key.steps:
        run.advance()
    loss, seconds = run.validation_loss(WINDOWS), time.perf_counter() - start
    return Trial(
        **key._asdict(),
        parameters=num_parameters(run.config.model),
        loss=loss,
        seconds=seconds,
        truncated=_truncated_losses(run) if key.point == "gqa-8" else None,
    )


@torch.no_grad()
def _truncated_losses(run: Run) -> dict[int, float]:
    """Loss of a trained model when keys and values of each layer keep only their strongest directions.

    The directions are those of the keys and values of all heads, stacked, before the rotation: the ones with most of
    their squared length over 4,128 bytes of the text that was learnt from. So keys and values would all follow from a
    latent of that many numbers. The model is left cut.
    """
    layers = [m for m in run.model.modules() if isinstance(m, GroupedQueryAttention)]
    inputs: dict[GroupedQueryAttention, torch.Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: inputs.__setitem__(layer, args[0].flatten(0, 1)))
        for layer in layers
    ]
    generator = torch.Generator().manual_seed(1)
    run.model(draw_windows(run.corpus.train, 32, run.config.train.seq_len, generator))
    for hook in hooks:
        hook.remove()
    whole = {layer: torch.cat((layer.k_proj.weight, layer.v_proj.weight)) for layer in layers}
    directions = {layer: torch.linalg.svd((inputs[layer] @ whole[layer].T).T)[0] for layer in layers}
    losses = {}
    for rank in RANKS:
        for layer in layers:
            strongest = directions[layer][:, :rank]
            keys, values = (strongest @ (strongest.T @ whole[layer])).chunk(2)
            layer.k_proj.weight.copy_(keys)
            layer.v_proj.weight.copy_(values)
        losses[rank] = run.validation_loss(WINDOWS)
    return losses


def sweep(path: Path, keys: Sequence[Key], note: Callable[[Trial], None]) -> Sweep:
    """Train what the file has not yet; it is written anew after each training.

    Args:
        path: of the file; made if it is not there.
        keys: what to train, in this order.
        note: gets each new trial.

    Raises:
        ValueError: the file is of another text, other versions or another machine, or no file of such results.
    """
    text = standard_library()
    found = Sweep(
        machine=bench.describe_cpu(),
        versions=bench.versions(),
        date=bench.today(),
        corpus_sha256=text.sha256,
        corpus_files=text.num_files,
    )
    if path.exists():
        before = read_sweep(path)
        for name in ("corpus_sha256", "versions", "machine"):
            if (old := getattr(before, name)) != (now := getattr(found, name)):
                raise ValueError(f"{path} has {name} {old}; expected that of this run, {now}")
        found = before
    done = {trial.key for trial in found.trials}
    for key in keys:
        if key in done:
            continue
        trial = train_point(key)
        found = found.model_copy(update={"trials": (*found.trials, trial)})
        found.write(path)
        note(trial)
    return found
