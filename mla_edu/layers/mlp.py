"""The feed-forward part of a decoder block."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from mla_edu.layers.inputs import check_weights
from mla_edu.validation import check_integer


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (Shazeer 2020).

    Args:
        hidden_size: width of what goes in and comes out.
        intermediate_size: width between.
        dtype: of the weights; None for torch's default.
        device: of the weights; None for torch's default.

    Raises:
        TypeError: ``dtype`` or ``device`` is not one.
        ValueError: a width is not positive, a layer does not compute in ``dtype``, or there is no such device.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        check_integer("hidden_size", hidden_size)
        check_integer("intermediate_size", intermediate_size)
        check_weights(dtype, device)
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False, dtype=dtype, device=device)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False, dtype=dtype, device=device)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False, dtype=dtype, device=device)

    def forward(self, x: Float[Tensor, "... hidden"]) -> Float[Tensor, "... hidden"]:
        """Each token by itself."""
        out: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return out
