"""A training run in numbers, as its YAML file gives them: the model, the text, and how it learns."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from mla_edu.models.config import ModelConfig, read_mapping
from mla_edu.validation import Checked, NonNegativeInt, NonNegativeNumber, PositiveInt, PositiveNumber

Seed = Annotated[NonNegativeInt, Field(lt=2**32)]  # each step's own is made of it


class TrainConfig(Checked):
    """How a model learns.

    Raises:
        ValueError: a value is out of range; names the argument, the value and what was expected.
    """

    num_steps: PositiveInt
    batch_size: PositiveInt = 8  # windows of text in a step
    seq_len: PositiveInt = 128  # tokens of a window whose next token is to be known
    muon_rate: PositiveNumber = 0.02  # of the matrices within the layers
    adam_rate: PositiveNumber = 0.005  # of all else
    warmup_steps: NonNegativeInt = 20  # in which the rates rise
    decay_share: NonNegativeNumber = 0.4  # of the steps, at the end, in which they fall to zero
    clip_norm: PositiveNumber = 1.0  # the gradients are at most so long
    balance_loss: NonNegativeNumber = 0.0  # factor of the experts' balance loss (V2: 0.001 to 0.003)
    bias_rate: NonNegativeNumber = 0.001  # how far a step moves the routers' bias (V3: 0.001)
    mtp_weight: NonNegativeNumber = 0.3  # factor of the loss one token further (V3 report, sec. 4.2: 0.3, at last 0.1)
    text: tuple[str, ...] = ()  # files or folders of text; none named: Python's standard library
    save_every: PositiveInt = 100  # steps between two checkpoints
    threads: Annotated[PositiveInt, Field(le=256)] | None = (
        None  # of torch on a processor; None: its own number or one, whichever is faster
    )
    seed: Seed = 0  # of the weights and of the order of the text

    @model_validator(mode="after")
    def _schedule_fits(self) -> "TrainConfig":
        if self.decay_share > 1:
            raise ValueError(f"decay_share is {self.decay_share}; expected at most 1")
        return self

    def rate(self, step: int) -> float:
        """What the rates are multiplied by in a step, counted from 0: it rises, stays, falls."""
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        falling = self.decay_share * self.num_steps
        fall = min(1.0, (self.num_steps - step) / falling) if falling else 1.0
        return min(rise, fall)


class RunConfig(Checked):
    """What a YAML file for training holds.

    Raises:
        ValueError: a value is out of range; names the argument, the value and what was expected.
    """

    model: ModelConfig
    train: TrainConfig

    @model_validator(mode="after")
    def _window_reaches_further(self) -> "RunConfig":
        if self.train.seq_len <= self.model.num_mtp_layers:
            raise ValueError(f"train.seq_len is {self.train.seq_len}; expected at least 2 for model.num_mtp_layers = 1")
        return self

    @classmethod
    def from_yaml(cls, path: str | Path) -> "RunConfig":
        """The run that a YAML file describes.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
            TypeError: ``path`` is not a path.
            ValueError: it is no YAML mapping, or a value is wrong; names the file, the key, the value and what was
                expected.
        """
        values: dict[str, Any] = read_mapping(path)
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
