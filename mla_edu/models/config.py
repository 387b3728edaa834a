"""A whole model in numbers: which layers it has, and what each is made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mla_edu.config import GQAConfig, Mamba2Config, MLAConfig, MoEConfig
from mla_edu.files import parse_user_yaml, read_text
from mla_edu.hf.model import model_values
from mla_edu.validation import Checked, Flag, NonNegativeInt, PositiveInt, PositiveNumber, check_flag, kind_of, shown

Mixer = Literal["gqa", "mla", "mamba2"]
FeedForward = Literal["dense", "moe"]
PARTS = ("gqa", "mla", "mamba2", "moe")


class ModelConfig(Checked):
    """A causal language model, layer by layer.

    Raises:
        ValueError: a value is out of range, a layer has no numbers, or numbers have no layer; names the argument, the
            value and what was expected.
    """

    vocab_size: PositiveInt  # tokens; 256 for bytes
    hidden_size: PositiveInt  # width of the residual stream; the parts below need not repeat it
    layers: tuple[Mixer, ...]  # what mixes the tokens in each layer
    feed_forward: tuple[FeedForward, ...] = Field(
        default=(), validate_default=True
    )  # what follows in each; () is dense
    intermediate_size: PositiveInt | None = None  # width inside a dense feed-forward part
    gqa: GQAConfig | None = None
    mla: MLAConfig | None = None
    mamba2: Mamba2Config | None = None
    moe: MoEConfig | None = None
    num_mtp_layers: NonNegativeInt = Field(default=0, le=1)  # modules that guess one token further
    rms_norm_eps: PositiveNumber = 1e-6  # of the norms before each part and before the head
    tie_word_embeddings: Flag = False  # the head is the embedding
    embedding_scale: PositiveNumber = 1.0  # what the embeddings are multiplied by (MiniCPM)
    residual_scale: PositiveNumber = 1.0  # what each part's result is multiplied by before it is added
    logit_scale: PositiveNumber = 1.0  # what the head's input is multiplied by

    @model_validator(mode="before")
    @classmethod
    def _one_width(cls, values: Any) -> Any:
        """The parts have the model's hidden_size where they name none."""
        if not isinstance(values, dict) or "hidden_size" not in values:
            return values
        shared = {"hidden_size": values["hidden_size"]}
        parts = {name: shared | values[name] for name in PARTS if isinstance(values.get(name), Mapping)}
        return values | parts

    @field_validator("layers")
    @classmethod
    def _some_layers(cls, kinds: tuple[Mixer, ...]) -> tuple[Mixer, ...]:
        if not kinds:
            raise ValueError("expected at least one layer")
        return kinds

    @field_validator("feed_forward")
    @classmethod
    def _of_each_layer(cls, kinds: tuple[FeedForward, ...], info: Any) -> tuple[FeedForward, ...]:
        layers = info.data.get("layers", ())
        if kinds and layers and len(kinds) != len(layers):
            raise ValueError(f"expected one for each of the {len(layers)} layers, {len(kinds)} were given")
        dense: FeedForward = "dense"
        return kinds or (dense,) * len(layers)

    @model_validator(mode="after")
    def _layers_have_their_numbers(self) -> "ModelConfig":
        used = {*self.layers, *self.feed_forward}
        for name in PARTS:
            part = getattr(self, name)
            if (part is None) == (name in used):
                raise ValueError(
                    f"{name} is not given; expected its numbers, since a layer has it"
                    if part is None
                    else f"{name} is given; expected a layer that has it"
                )
            if part is not None and part.hidden_size != self.hidden_size:
                raise ValueError(f"{name}.hidden_size is {part.hidden_size}; expected the model's, {self.hidden_size}")
        if (self.intermediate_size is None) == ("dense" in used):
            raise ValueError(
                "intermediate_size is not given; expected it, since a layer has a dense feed-forward part"
                if self.intermediate_size is None
                else f"intermediate_size is {self.intermediate_size}; expected a layer with a dense feed-forward part"
            )
        return self

    @classmethod
    def from_yaml(cls, path: str | Path) -> "ModelConfig":
        """The model that a YAML file describes, alone or under ``model`` in the file of a training run.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
            TypeError: ``path`` is not a path.
            ValueError: it is no YAML mapping, or a value is wrong; names the file, the key, the value and what was
                expected.
        """
        values = read_mapping(path)
        inner = values.get("model")
        try:
            return cls(**inner if isinstance(inner, dict) else values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_hf(cls, source: str | Path | Mapping[str, Any], *, mtp: bool = False) -> "ModelConfig":
        """The model of a Hugging Face ``config.json``, its folder or its dict, as transformers 5.23 reads it.

        Args:
            source: the file, a folder that holds it, its contents, or a configuration of transformers.
            mtp: with the module for one token further, where ``num_nextn_predict_layers`` is 1; it is no part of the
                model itself, and a file may name it beside weights that lack it.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError: ``source`` is not one of these, or ``mtp`` neither True nor False.
            ValueError: the family is none of those whose every layer is ours, or a value is missing, out of range, or
                makes another model of it.
        """
        check_flag("mtp", mtp)
        values = model_values(source)
        return cls(**values if mtp else values | {"num_mtp_layers": 0})

    def part(self, layer: int) -> GQAConfig | MLAConfig | Mamba2Config:
        """The numbers of what mixes the tokens in a layer.

        Args:
            layer: from 0; below 0 counted from the end.

        Raises:
            IndexError: there is no such layer.
        """
        most = len(self.layers) - 1
        if not isinstance(layer, int) or not -most - 1 <= layer <= most:
            raise IndexError(f"layer is {shown(layer)}; expected an integer from 0 to {most}, or below 0 from the end")
        part: GQAConfig | MLAConfig | Mamba2Config = getattr(self, self.layers[layer])
        return part


def read_mapping(path: str | Path) -> dict[str, Any]:
    """What a YAML file holds.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        TypeError: ``path`` is not a path.
        ValueError: it is no file, too large, not YAML, or no mapping of names to values.
    """
    text = read_text(path, "a YAML file, such as those of the book's configs/", 2**20)
    try:
        values = parse_user_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path} holds {kind_of(values)}; expected a mapping of names to values")
    return values
