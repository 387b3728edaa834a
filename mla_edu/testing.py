"""What the tests and the chapters check with: relative errors, poisoned caches, random weights."""

import math
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mla_edu.cache.layer import LayerCache

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


def below(error: float, bound: float | None = None) -> str:
    """An error in words that are the same on every processor: which limit it stays ten times under.

    Errors of rounding differ from one processor to the next. Those of float64 stay far below 1e-12, those of float32
    below 1e-5; what is larger is no error of rounding, and comes with one digit.

    Args:
        error: what a check saw.
        bound: what it has to stay under, named too.

    Raises:
        AssertionError: it does not.
    """
    if bound is not None:
        assert error < bound, f"the error is {error:.1e}; expected less than {bound:.0e}"
    seen = next((f"below {limit:.0e}" for limit in (1e-12, 1e-5) if 10 * error < limit), f"{error:.0e}")
    return seen if bound is None or seen == f"below {bound:.0e}" else f"{seen} (bound {bound:.0e})"


def poison(cache: "LayerCache") -> None:
    """Fill all memory of a cache that holds no token with NaN: whoever reads it shows."""
    shape = cache.table.memory_shape
    places = torch.arange(math.prod(shape), device=cache.memory[0].device).view(shape)
    is_free = torch.ones_like(places, dtype=torch.bool)
    for _, (held,) in cache.table.read(places):
        is_free.view(-1)[held.flatten()] = False
    for memory in cache.memory:
        memory[is_free] = 0xFF if memory.dtype == torch.uint8 else torch.nan  # bytes of 0xFF are NaN in every format


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
