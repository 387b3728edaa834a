"""Mamba-2 (Dao and Gu 2024): a recurrence in the place of attention."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv1d, silu, softplus

from mla_edu.cache.layer import check_config
from mla_edu.cache.state import StateCache
from mla_edu.config import Mamba2Config
from mla_edu.layers.inputs import check_hidden_states, check_weights, step_of
from mla_edu.ops.scan import chunked_scan, scan_step


class GatedRMSNorm(nn.Module):
    """RMSNorm of ``x * silu(gate)`` over each group of heads, with a learned factor per entry."""

    def __init__(self, config: Mamba2Config, dtype: torch.dtype | None, device: torch.device | str | None):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.ones(config.inner_width, dtype=dtype, device=device))

    def forward(
        self, x: Float[Tensor, "batch seq width"], gate: Float[Tensor, "batch seq width"]
    ) -> Float[Tensor, "batch seq width"]:
        """In the dtype of ``x``, computed at least in float32."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        gated = (x.to(dtype) * silu(gate.to(dtype))).unflatten(-1, (self.config.n_groups, -1))
        normed = gated * (gated.square().mean(-1, keepdim=True) + self.config.norm_eps).rsqrt()
        out: Tensor = self.weight * normed.flatten(-2).to(x.dtype)
        return out


class Mamba2(nn.Module):
    """One Mamba-2 layer; the parameters bear the names of ``transformers``.

    ``in_proj`` makes of each token a gate, the inputs of the convolution (what the heads take in, the directions of
    writing and of reading) and a step size per head.

    Args:
        config: the layer's numbers; kept as ``layer.config``.
        dtype: of the weights; None for torch's default.
        device: of the weights; None for torch's default.

    Raises:
        TypeError: ``config`` is not a ``Mamba2Config``, or ``dtype`` or ``device`` not one.
        ValueError: a layer does not compute in ``dtype``, or there is no such ``device``.
    """

    def __init__(
        self,
        config: Mamba2Config,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        check_config(config, Mamba2Config)
        check_weights(dtype, device)
        self.config = config
        heads, width = config.num_heads, config.conv_width
        self.in_proj = nn.Linear(
            config.hidden_size, config.inner_width + width + heads, bias=False, dtype=dtype, device=device
        )
        self.conv1d = nn.Conv1d(
            width, width, config.conv_kernel, groups=width, bias=config.conv_bias, dtype=dtype, device=device
        )
        self.dt_bias = nn.Parameter(torch.empty(heads, dtype=dtype, device=device))
        self.A_log = nn.Parameter(torch.empty(heads, dtype=dtype, device=device))
        self.D = nn.Parameter(torch.ones(heads, dtype=dtype, device=device))
        self.norm = GatedRMSNorm(config, dtype, device)
        self.out_proj = nn.Linear(config.inner_width, config.hidden_size, bias=False, dtype=dtype, device=device)
        with torch.no_grad():  # rates from 1 to the number of heads, step sizes from a thousandth to a tenth
            spread = torch.linspace(0, 1, heads, dtype=torch.float64)
            steps = 1e-3 * 100**spread
            self.A_log.copy_(torch.arange(1, heads + 1).log())
            self.dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(
        self, hidden_states: Float[Tensor, "batch seq hidden"], cache: StateCache | None = None
    ) -> Float[Tensor, "batch seq hidden"]:
        """What each new token reads from the state that the tokens up to it have left.

        Args:
            hidden_states: the new tokens; one row for each sequence of the cache, or of the step under way.
            cache: what earlier tokens have left; None where there are none.

        Raises:
            TypeError: ``cache`` is not a ``StateCache``.
            ValueError: ``hidden_states`` or ``cache`` does not fit the layer; the cache is left as it was.
        """
        config = self.config
        check_hidden_states(hidden_states, config.hidden_size, self.out_proj.weight)
        with step_of(cache, hidden_states, (StateCache,), self.config):
            dtype = torch.promote_types(hidden_states.dtype, torch.float32)
            batch, seq, _ = hidden_states.shape
            if cache is None:
                past = hidden_states.new_zeros(batch, config.conv_kernel - 1, config.conv_width)
                shape = (batch, config.num_heads, config.head_dim, config.state_size)
                state = torch.zeros(shape, dtype=dtype, device=hidden_states.device)
            else:
                past, state = cache.read()
            widths = (config.inner_width, config.conv_width, config.num_heads)
            gate, inputs, step_size = self.in_proj(hidden_states).split(widths, dim=-1)
            inputs = torch.cat((past, inputs), dim=1)
            mixed = conv1d(inputs.mT, self.conv1d.weight, self.conv1d.bias, groups=config.conv_width).mT
            directions = config.n_groups * config.state_size
            x, b, c = silu(mixed).to(dtype).split((config.inner_width, directions, directions), dim=-1)
            x = x.unflatten(-1, (config.num_heads, config.head_dim))
            b, c = (each.unflatten(-1, (config.n_groups, config.state_size)) for each in (b, c))
            step_size = softplus(step_size.to(dtype) + self.dt_bias.to(dtype))
            log_decay = -self.A_log.to(dtype).exp() * step_size
            taken = x * step_size[..., None]
            if seq == 1:
                out, state = scan_step(taken[:, 0], log_decay[:, 0], b[:, 0], c[:, 0], state)
                out = out[:, None]
            else:
                out, state = chunked_scan(taken, log_decay, b, c, state)
            out = out + self.D.to(dtype)[:, None] * x
            if cache is not None:
                cache.write(inputs[:, seq:], state)
            projected: Tensor = self.out_proj(self.norm(out.flatten(2).to(hidden_states.dtype), gate))
            return projected

    if TYPE_CHECKING:  # torch types a call of any module as one of any arguments

        def __call__(self, hidden_states: Tensor, cache: StateCache | None = None) -> Tensor:
            """As ``forward``."""
