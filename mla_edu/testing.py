"""What the tests and the chapters check with: relative errors, poisoned caches, random weights."""

import math
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mla_edu.cache.contiguous import KVCache, LatentCache

Module = TypeVar("Module", bound=nn.Module)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute expected value; infinite where ``actual`` has NaN.

    Raises:
        ValueError: the shapes differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"actual has shape {list(actual.shape)}; expected {list(expected.shape)}")
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    return math.inf if math.isnan(error) else error


def poison(cache: "KVCache | LatentCache") -> None:
    """Fill all memory past the cache's length with NaN: whoever reads it shows."""
    for tensor in cache.tensors:
        tensor[:, cache.length :] = float("nan")


def randomize(layer: Module, seed: int = 0) -> Module:
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
