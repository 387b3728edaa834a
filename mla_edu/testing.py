"""What the tests and the chapters check with: relative errors, poisoned caches, random configurations."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mla_edu.config import GQAConfig

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from mla_edu.cache.contiguous import KVCache


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute expected value; infinite where ``actual`` has NaN.

    Raises:
        ValueError: the shapes differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"actual has shape {list(actual.shape)}; expected {list(expected.shape)}")
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    return math.inf if math.isnan(error) else error


def poison(cache: "KVCache") -> None:
    """Fill all memory past the cache's length with NaN: whoever reads it shows."""
    cache.keys[:, cache.length :] = float("nan")
    cache.values[:, cache.length :] = float("nan")


def randomize(layer: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter of ``layer`` random values, norms and biases included; returns the layer.

    A norm weight left at 1 or a bias left at 0 would hide that it is ignored.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            width = parameter.shape[-1] if parameter.ndim > 1 else 1
            parameter.copy_(values / width**0.5)
    return layer


def gqa_configs() -> "SearchStrategy[GQAConfig]":
    """Small layers of every kind, with widths that are no powers of two."""
    from hypothesis import strategies as st

    @st.composite
    def draw_config(draw) -> GQAConfig:
        num_key_value_heads = draw(st.integers(1, 4))
        group_size = draw(st.integers(1, 4))
        num_attention_heads = num_key_value_heads * group_size
        return GQAConfig(
            # Llama's configuration class wants a multiple of the heads.
            hidden_size=num_attention_heads * draw(st.integers(2, 9)),
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads,
            head_dim=2 * draw(st.integers(1, 11)),
            rope_theta=draw(st.sampled_from([100.0, 10000.0, 500000.0])),
            rope_scaling=draw(st.sampled_from(_SCALINGS)),
            qkv_bias=(bias := draw(st.booleans())),
            o_bias=bias,
        )

    return draw_config()


_SCALINGS = [
    None,
    {"rope_type": "linear", "factor": 3.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 32, "beta_fast": 4.0},
]
