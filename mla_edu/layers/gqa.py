"""Grouped-query attention; multi-head and multi-query attention are its two ends."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mla_edu.cache.contiguous import KVCache
from mla_edu.config import GQAConfig
from mla_edu.layers.inputs import check_hidden_states
from mla_edu.ops.rope import check_positions, rope_frequencies, rope_magnitude, rotate
from mla_edu.ops.softmax import attention, causal_mask


class GroupedQueryAttention(nn.Module):
    """One attention layer in which each key/value head serves a group of query heads (Ainslie et al. 2023).

    The projections bear the names of Hugging Face checkpoints, and rotation uses their pairing, halves.

    Args:
        config: the layer's numbers; kept as ``layer.config``.
        dtype: of the weights; None for torch's default.
        device: of the weights; None for torch's default.
    """

    def __init__(
        self,
        config: GQAConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.config = config
        options = {"dtype": dtype, "device": device}
        q_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_width, bias=config.qkv_bias, **options)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias, **options)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias, **options)
        self.o_proj = nn.Linear(q_width, config.hidden_size, bias=config.o_bias, **options)
        if config.rope_theta is not None:
            # A plain attribute: as a buffer it would be rounded whenever the layer is cast to a smaller dtype.
            self.frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)

    def forward(
        self, hidden_states: Float[Tensor, "batch seq hidden"], cache: KVCache | None = None
    ) -> Float[Tensor, "batch seq hidden"]:
        """Causal attention of the new tokens over the cached ones and themselves.

        Args:
            hidden_states: the new tokens.
            cache: where earlier tokens lie; the new ones are appended. Positions follow from its length.

        Raises:
            ValueError: ``hidden_states`` or ``cache`` does not fit the layer, or the positions run past the range of
                the rotary scaling; the cache is left as it was.
        """
        config = self.config
        check_hidden_states(hidden_states, config.hidden_size, self.q_proj.weight.dtype)
        batch, seq, _ = hidden_states.shape
        start = 0
        if cache is not None:
            cache.check_room(batch, seq, hidden_states.dtype, hidden_states.device)
            start = cache.length
        check_positions(start + seq, config.rope_scaling)

        q = self.q_proj(hidden_states).view(batch, seq, config.num_attention_heads, config.head_dim)
        k = self.k_proj(hidden_states).view(batch, seq, config.num_key_value_heads, config.head_dim)
        v = self.v_proj(hidden_states).view(batch, seq, config.num_key_value_heads, config.head_dim)
        if config.rope_theta is not None:
            positions = torch.arange(start, start + seq, device=hidden_states.device)
            magnitude = rope_magnitude(config.rope_scaling)
            q = rotate(q, positions, self.frequencies) * magnitude
            k = rotate(k, positions, self.frequencies) * magnitude
        if cache is not None:
            k, v = cache.append(k, v)

        mask = causal_mask(seq, k.shape[1], sliding_window=config.sliding_window, device=hidden_states.device)
        out = attention(q, k, v, sm_scale=config.head_dim**-0.5, mask=mask)
        return self.o_proj(out.flatten(2))
