"""Rotary position embedding: turn each pair of numbers by an angle that grows with the position.

The score of a rotated query and a rotated key depends on their distance alone (Su et al. 2021, sec. 3.4.2).
Two pairings are in use: ``"interleaved"`` turns neighbours 2i and 2i + 1 (the paper, Llama as Meta published it, and
DeepSeek's checkpoints), ``"halves"`` turns number i with number i + width/2 (Hugging Face's port of Llama, whose
conversion permutes the rows of the weights to match).
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mla_edu.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)
from mla_edu.validation import shown

Pairing = Literal["halves", "interleaved"]


def rope_frequencies(
    width: int, theta: float = 10000.0, scaling: RopeScaling | None = None
) -> Float64[Tensor, " pairs"]:
    """Angle per position of each pair, in radians: ``theta ** (-2i / width)``, stretched by ``scaling``.

    Args:
        width: how many numbers are rotated; even.
        theta: the base.
        scaling: how the angles are stretched for a longer context; None for not at all.

    Raises:
        TypeError: ``scaling`` is of another kind.
        ValueError: ``width`` is odd or negative, or LongRoPE's lists have not one factor for each pair.
    """
    if not isinstance(width, int) or not 0 <= width < 2**31 or width % 2:
        raise ValueError(f"width is {shown(width)}; expected an even number, since rotation turns pairs of numbers")
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / max(width, 1)
    frequencies = theta**-exponents
    match scaling:
        case None:
            return frequencies
        case LinearScaling():
            return frequencies / scaling.factor
        case Llama3Scaling():
            rotations = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            keep = ((rotations - low) / (high - low)).clamp(0, 1)
        case LongRopeScaling():
            for name in ("short_factor", "long_factor"):
                if len(getattr(scaling, name)) != width // 2:
                    given = len(getattr(scaling, name))
                    raise ValueError(f"{name} has {given} numbers; expected {width // 2}, one for each pair")
            return frequencies / torch.tensor(scaling.short_factor, dtype=torch.float64)
        case YarnScaling():
            keep = _yarn_kept_share(width, theta, scaling)
        case _:
            raise TypeError(f"scaling is {shown(scaling)}; expected a RopeScaling, such as a YarnScaling, or None")
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def _yarn_kept_share(width: int, theta: float, scaling: YarnScaling) -> Float64[Tensor, " pairs"]:
    """1 for pairs that YaRN leaves alone, 0 for those it interpolates in full (Peng et al. 2023, sec. 3.2)."""

    def pair_with(rotations: float) -> float:  # the pair that turns this often within the original context
        wavelength = scaling.original_max_position_embeddings / rotations
        return width * math.log(wavelength / (2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = (torch.arange(width // 2, dtype=torch.float64) - low) / ((high - low) or 0.001)
    return 1 - ramp.clamp(0, 1)


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's growth of the logits with the stretch: ``0.1 mscale ln(factor) + 1``, and 1 where nothing is stretched."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rope_magnitude(scaling: RopeScaling | None) -> float:
    """What the rotated vectors are multiplied by; 1 without YaRN or LongRoPE.

    Rotated queries and rotated keys both carry it, so their scores carry its square. With both of DeepSeek's
    knobs given it is the ratio of their factors (1 in every released DeepSeek model), and the rest of the growth
    sits in ``softmax_factor``. With one knob alone this is transformers' reading; DeepSeek's own code would read a
    missing ``mscale`` as 1 and a missing ``mscale_all_dim`` as 0.
    """
    if isinstance(scaling, LongRopeScaling):
        if scaling.attention_factor is not None:
            return scaling.attention_factor
        stretch = math.log(max(scaling.factor, 1.0)) / math.log(scaling.original_max_position_embeddings)
        return math.sqrt(1 + stretch)
    if not isinstance(scaling, YarnScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return yarn_mscale(scaling.factor)


def softmax_factor(scaling: RopeScaling | None) -> float:
    """What MLA multiplies its softmax scale ``1/sqrt(d_nope + d_rope)`` by: mscale squared under YaRN, else 1.

    Source: ``softmax_scale`` in DeepSeek-V3's ``inference/model.py``. Forgotten, it leaves position 0 exact, since
    a softmax over one key ignores its scale, and every later position wrong.
    """
    if not isinstance(scaling, YarnScaling) or not scaling.mscale_all_dim:
        return 1.0
    return yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2


def check_positions(end: int, scaling: RopeScaling | None) -> None:
    """Raise ``ValueError`` unless positions 0 to ``end - 1`` lie in the range that ``scaling`` stretches to.

    YaRN and LongRoPE reach ``factor`` times the original context. LongRoPE with two different lists of factors
    reaches the original context only, see ``LongRopeScaling``.
    """
    if not isinstance(scaling, YarnScaling | LongRopeScaling):
        return
    longest = round(scaling.factor * scaling.original_max_position_embeddings)
    if isinstance(scaling, LongRopeScaling) and scaling.short_factor != scaling.long_factor:
        longest = scaling.original_max_position_embeddings
    if end > longest:
        raise ValueError(
            f"the new tokens reach position {end - 1}; expected at most {longest - 1}, "
            f"where the range of {scaling.rope_type} ends"
        )


def rotate(
    x: Float[Tensor, "batch seq heads width"],
    positions: Int[Tensor, "batch_or_1 seq"],
    frequencies: Float64[Tensor, " pairs"],
    *,
    pairing: Pairing = "halves",
) -> Float[Tensor, "batch seq heads width"]:
    """Each pair of ``x`` turned by its frequency times the position.

    Angles are taken in float64: at position 10**6 a float32 angle would be off by hundredths of a radian.

    Args:
        x: queries or keys.
        positions: of each token, counted from the start of its sequence; one row serves a batch whose sequences stand
            at the same place.
        frequencies: from ``rope_frequencies``, one for each pair.
        pairing: which numbers make a pair.

    Raises:
        ValueError: ``pairing`` is neither ``"halves"`` nor ``"interleaved"``, or ``positions`` does not fit ``x``.
    """
    if pairing not in ("halves", "interleaved"):
        raise ValueError(f"pairing is {pairing!r}; expected 'halves' or 'interleaved'")
    batch, seq = x.shape[:2]
    if positions.shape not in ((batch, seq), (1, seq)):
        raise ValueError(f"positions has shape {list(positions.shape)}; expected [{batch}, {seq}] or [1, {seq}]")
    angles = positions[..., None, None] * frequencies.to(positions.device)  # [batch or 1, seq, 1, pairs]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    if pairing == "halves":
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
