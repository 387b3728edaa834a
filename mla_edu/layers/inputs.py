"""What models and attention layers do first: check their input, and take their place in a cache's step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor

from mla_edu.cache.layer import LayerCache, check_dtype
from mla_edu.validation import check_device, shown


def check_hidden_states(hidden_states: Tensor, hidden_size: int, weight: Tensor) -> None:
    """Raise an error unless ``hidden_states`` can be multiplied by a layer's weight.

    Args:
        hidden_states: ``[batch, seq, hidden_size]``.
        hidden_size: of the layer.
        weight: one of it, whose dtype and device are the layer's.

    Raises:
        TypeError: it is no tensor.
        ValueError: its shape, its dtype or its device is another.
    """
    check_tensor("hidden_states", hidden_states)
    if hidden_states.ndim != 3 or hidden_states.shape[-1] != hidden_size:
        shape = list(hidden_states.shape)
        raise ValueError(f"hidden_states has shape {shape}; expected [batch, seq, {hidden_size}]")
    if hidden_states.dtype != weight.dtype:
        raise ValueError(f"hidden_states is {hidden_states.dtype}; expected {weight.dtype}, as the weights")
    if hidden_states.device != weight.device:
        raise ValueError(f"hidden_states is on {hidden_states.device}; expected {weight.device}, as the weights")


def check_weights(dtype: torch.dtype | None, device: torch.device | str | None) -> None:
    """Raise an error unless a layer's weights can be of a dtype and lie on a device; None is torch's default.

    Raises:
        TypeError: one of them is of the wrong type.
        ValueError: a layer does not compute in this dtype, or there is no such device.
    """
    if dtype is not None:
        check_dtype(dtype)
    check_device(device)


def check_tensor(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {shown(value)}; expected a tensor")


@contextmanager
def step_of(
    cache: LayerCache | None, hidden_states: Tensor, kinds: tuple[type[LayerCache], ...], config: object
) -> Iterator[tuple[Int[Tensor, "batch_or_1 seq"], int]]:
    """The step that new tokens make in a cache, or take part in: their positions, and the longest sequence after it.

    Args:
        cache: None for tokens that nothing precedes.
        hidden_states: ``[batch, seq, hidden]``, the new tokens.
        kinds: of caches that the layer can fill.
        config: of the layer.

    Raises:
        TypeError: the cache is of another kind, or for a layer of another kind.
        ValueError: the batch, the dtype or the device is not the cache's, or there is no room.
    """
    batch, seq, _ = hidden_states.shape
    if cache is None:
        yield torch.arange(seq, device=hidden_states.device)[None], seq
        return
    if not isinstance(cache, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"cache is a {type(cache).__name__}; expected a {expected}")
    if type(cache.config) is not type(config):
        made, own = type(cache.config).__name__, type(config).__name__
        raise TypeError(f"cache is a {type(cache).__name__} for a {made}; expected one for a {own}")
    cache.check(hidden_states.dtype, hidden_states.device)
    with cache.step(seq) as step:
        if batch != len(step.sequences):
            raise ValueError(f"batch size is {batch}; expected {len(step.sequences)}, as the step in the cache")
        yield step.positions, max(step.lengths)


def check_tokens(tokens: Tensor, vocab_size: int) -> None:
    """Raise ``TypeError`` unless ``tokens`` is a tensor, ``ValueError`` unless it has ids of the vocabulary."""
    check_tensor("tokens", tokens)
    if tokens.ndim != 2 or tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"tokens is {tokens.dtype} of shape {list(tokens.shape)}; expected integers [batch, seq]")
    if tokens.device.type == "cpu" and tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise ValueError(f"tokens lie from {int(tokens.min())} to {int(tokens.max())}; expected 0 to {vocab_size - 1}")
