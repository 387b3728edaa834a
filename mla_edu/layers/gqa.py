"""Grouped-query attention; multi-head and multi-query attention are its two ends."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mla_edu.cache.kv import KVCache, PagedKVCache
from mla_edu.cache.layer import check_config
from mla_edu.config import GQAConfig
from mla_edu.layers.inputs import check_hidden_states, check_weights, step_of
from mla_edu.layers.rotary import Rotary
from mla_edu.ops.rope import check_positions
from mla_edu.ops.softmax import attention, causal_mask


class GroupedQueryAttention(nn.Module):
    """One attention layer in which each key/value head serves a group of query heads (Ainslie et al. 2023).

    The projections bear the names of Hugging Face checkpoints, and rotation uses their pairing, halves.

    Args:
        config: the layer's numbers; kept as ``layer.config``.
        dtype: of the weights; None for torch's default.
        device: of the weights; None for torch's default.

    Raises:
        TypeError: ``config`` is not a ``GQAConfig``, or ``dtype`` or ``device`` not one.
        ValueError: a layer does not compute in ``dtype``, or there is no such ``device``.
    """

    def __init__(
        self,
        config: GQAConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        check_config(config, GQAConfig)
        check_weights(dtype, device)
        self.config = config
        self.sm_scale = config.head_dim**-0.5
        q_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim

        def linear(num_in: int, num_out: int, bias: bool) -> nn.Linear:
            return nn.Linear(num_in, num_out, bias=bias, dtype=dtype, device=device)

        self.q_proj = linear(config.hidden_size, q_width, config.qkv_bias)
        self.k_proj = linear(config.hidden_size, kv_width, config.qkv_bias)
        self.v_proj = linear(config.hidden_size, kv_width, config.qkv_bias)
        self.o_proj = linear(q_width, config.hidden_size, config.o_bias)
        self.rotary = Rotary(config.head_dim, config.rope_theta, config.rope_scaling, "halves")

    def forward(
        self, hidden_states: Float[Tensor, "batch seq hidden"], cache: KVCache | PagedKVCache | None = None
    ) -> Float[Tensor, "batch seq hidden"]:
        """Causal attention of the new tokens over the cached ones and themselves.

        Args:
            hidden_states: the new tokens; one row for each sequence of the cache, or of the step under way.
            cache: where earlier tokens lie, any number in each sequence; the new ones are appended. Positions follow
                from its lengths.

        Raises:
            TypeError: ``cache`` is neither a ``KVCache`` nor a ``PagedKVCache``.
            ValueError: ``hidden_states`` or ``cache`` does not fit the layer, or the positions run past the range of
                the rotary scaling; the cache is left as it was.
        """
        check_hidden_states(hidden_states, self.config.hidden_size, self.q_proj.weight)
        with step_of(cache, hidden_states, (KVCache, PagedKVCache), self.config) as (positions, end):
            check_positions(end, self.config.rope_scaling)
            q, k, v = self.queries_keys_values(hidden_states, positions)
            if cache is None:
                mask = causal_mask(end, end, sliding_window=self.config.sliding_window, device=q.device)
                out = attention(q, k, v, sm_scale=self.sm_scale, mask=mask)
            else:
                cache.append(k, v)
                out = cache.attend(q, self.sm_scale, self.config.sliding_window)
            projected: Tensor = self.o_proj(out.flatten(2))
            return projected

    if TYPE_CHECKING:  # torch types a call of any module as one of any arguments

        def __call__(self, hidden_states: Tensor, cache: KVCache | PagedKVCache | None = None) -> Tensor:
            """As ``forward``."""

    def queries_keys_values(
        self, hidden_states: Float[Tensor, "batch seq hidden"], positions: Int[Tensor, "batch_or_1 seq"]
    ) -> tuple[
        Float[Tensor, "batch seq heads dim"],
        Float[Tensor, "batch seq kv_heads dim"],
        Float[Tensor, "batch seq kv_heads dim"],
    ]:
        """Of each head; queries and keys rotated."""
        heads = (-1, self.config.head_dim)
        q = self.rotary(self.q_proj(hidden_states).unflatten(-1, heads), positions)
        k = self.rotary(self.k_proj(hidden_states).unflatten(-1, heads), positions)
        return q, k, self.v_proj(hidden_states).unflatten(-1, heads)
