"""How the rotary angles are stretched for contexts longer than the one of pre-training."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mla_edu.validation import Checked, Flag, Number, PositiveInt, PositiveNumber


class LinearScaling(Checked):
    """Position interpolation: every angle is divided by ``factor`` (Chen et al. 2023)."""

    rope_type: Literal["linear"] = "linear"
    factor: PositiveNumber


class Llama3Scaling(Checked):
    """Llama 3.1's stretch: slow pairs are divided by ``factor``, fast ones kept, those between blended."""

    rope_type: Literal["llama3"] = "llama3"
    factor: PositiveNumber
    low_freq_factor: PositiveNumber
    high_freq_factor: PositiveNumber
    original_max_position_embeddings: PositiveInt

    @model_validator(mode="after")
    def _band_is_not_empty(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor is {self.high_freq_factor}; expected more than "
                f"low_freq_factor, {self.low_freq_factor}"
            )
        return self


class YarnScaling(Checked):
    """YaRN (Peng et al. 2023): interpolation by frequency band, and a factor on the softmax.

    ``mscale`` and ``mscale_all_dim`` are DeepSeek's two knobs for that factor; see ``rope.yarn_mscale``.
    """

    rope_type: Literal["yarn"] = "yarn"
    factor: PositiveNumber
    original_max_position_embeddings: PositiveInt
    beta_fast: PositiveNumber = 32.0  # rotations within the original context above which a pair is left alone
    beta_slow: PositiveNumber = 1.0  # rotations below which a pair is interpolated in full
    mscale: Number | None = None
    mscale_all_dim: Number | None = None
    attention_factor: PositiveNumber | None = None  # where given, replaces the factor derived from mscale
    truncate: Flag = True  # round the band's two ends outwards to whole pairs


class LongRopeScaling(Checked):
    """LongRoPE (Ding et al. 2024): the angle of each pair is divided by a factor of its own.

    Past the original context the pairs take their ``long_factor``, all tokens of the sequence anew. Keys that lie
    rotated in a cache cannot follow, so where the two lists differ the range ends with the original context.
    """

    rope_type: Literal["longrope"] = "longrope"
    short_factor: tuple[PositiveNumber, ...]
    long_factor: tuple[PositiveNumber, ...]
    factor: PositiveNumber  # longest context over the original one
    original_max_position_embeddings: Annotated[PositiveInt, Field(gt=1)]
    attention_factor: PositiveNumber | None = None  # where given, replaces the magnitude derived from factor


RopeScaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling, Field(discriminator="rope_type")]
