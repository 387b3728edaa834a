"""What every layer asks of its input."""

import torch
from torch import Tensor


def check_hidden_states(hidden_states: Tensor, hidden_size: int, dtype: torch.dtype) -> None:
    """Raise ``ValueError`` unless ``hidden_states`` is ``[batch, seq, hidden_size]`` of ``dtype``."""
    if hidden_states.ndim != 3 or hidden_states.shape[-1] != hidden_size:
        shape = list(hidden_states.shape)
        raise ValueError(f"hidden_states has shape {shape}; expected [batch, seq, {hidden_size}]")
    if hidden_states.dtype != dtype:
        raise ValueError(f"hidden_states is {hidden_states.dtype}; expected {dtype}, as the weights")
