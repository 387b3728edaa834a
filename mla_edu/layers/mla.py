"""Multi-head latent attention (DeepSeek-V2 paper, sec. 2.1), with keys and values rebuilt or never built."""

from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mla_edu.cache.kv import KVCache, PagedKVCache
from mla_edu.cache.latent import LatentCache, PagedLatentCache
from mla_edu.cache.layer import check_config
from mla_edu.config import MLAConfig
from mla_edu.cost import cheaper_mode
from mla_edu.layers.inputs import check_hidden_states, check_weights, step_of
from mla_edu.layers.rotary import Rotary
from mla_edu.ops.latent import latent_attention
from mla_edu.ops.rope import Pairing, check_positions, softmax_factor
from mla_edu.ops.softmax import attention, causal_mask, merge, partial_attention
from mla_edu.rope_scaling import YarnScaling
from mla_edu.validation import shown

Mode = Literal["expanded", "absorbed", "auto"]
AnyCache = LatentCache | PagedLatentCache | KVCache | PagedKVCache
EXPANDED_AT_ONCE = 16_384  # tokens whose keys and values are rebuilt together; more come in parts, and are merged
LATENT_NORM_EPS = 1e-6  # of both latents in every family; rms_norm_eps in a config.json is for the other norms


class MultiHeadLatentAttention(nn.Module):
    """One attention layer whose keys and values all come from one cached latent per token.

    The projections bear the names of DeepSeek's checkpoints: ``q_a_proj`` and ``q_b_proj`` are W_DQ and W_UQ with
    W_QR below it (``q_proj`` where queries are not compressed), ``kv_a_proj_with_mqa`` is W_DKV with W_KR below it,
    ``kv_b_proj`` holds W_UK and W_UV head by head, ``o_proj`` is W_O.

    Args:
        config: the layer's numbers; kept as ``layer.config``.
        dtype: of the weights; None for torch's default.
        device: of the weights; None for torch's default.

    Raises:
        TypeError: ``config`` is not an ``MLAConfig``, or ``dtype`` or ``device`` not one.
        ValueError: a layer does not compute in ``dtype``, or there is no such ``device``.
    """

    def __init__(
        self,
        config: MLAConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        check_config(config, MLAConfig)
        check_weights(dtype, device)
        self.config = config
        self.sm_scale = config.qk_head_dim**-0.5 * softmax_factor(config.rope_scaling)
        hidden_size, bias = config.hidden_size, config.attention_bias
        q_width = config.num_attention_heads * config.qk_head_dim
        up_width = config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim)

        def linear(num_in: int, num_out: int, bias: bool = False) -> nn.Linear:
            return nn.Linear(num_in, num_out, bias=bias, dtype=dtype, device=device)

        def norm(width: int) -> nn.RMSNorm:
            return nn.RMSNorm(width, eps=LATENT_NORM_EPS, dtype=dtype, device=device)

        if config.q_lora_rank is None:
            self.q_proj = linear(hidden_size, q_width)
        else:
            self.q_a_proj = linear(hidden_size, config.q_lora_rank, bias)
            self.q_a_layernorm = norm(config.q_lora_rank)
            self.q_b_proj = linear(config.q_lora_rank, q_width)
        self.kv_a_proj_with_mqa = linear(hidden_size, config.elements_per_token, bias)
        self.kv_a_layernorm = norm(config.kv_lora_rank)
        self.kv_b_proj = linear(config.kv_lora_rank, up_width)
        self.o_proj = linear(config.num_attention_heads * config.v_head_dim, hidden_size, bias)
        pairing: Pairing = "interleaved" if config.rope_interleave else "halves"
        self.rotary = Rotary(config.qk_rope_head_dim, config.rope_theta, config.rope_scaling, pairing)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        cache: AnyCache | None = None,
        mode: Mode = "auto",
    ) -> Float[Tensor, "batch seq hidden"]:
        """Causal attention of the new tokens over the cached ones and themselves.

        Args:
            hidden_states: the new tokens; one row for each sequence of the cache, or of the step under way.
            cache: where earlier tokens lie, any number in each sequence; the new ones are appended. Positions follow
                from its lengths. A ``KVCache`` or ``PagedKVCache`` keeps the keys and values of every head instead of
                their latents; then nothing is left to choose.
            mode: ``"expanded"`` rebuilds the keys and values of every head from the latents, ``"absorbed"`` takes
                the queries to the latents instead and never builds them, ``"auto"`` does what costs less. Absorbed
                over pages runs ``mla_decode``, through which no gradient flows back.

        Raises:
            TypeError: ``cache`` is none of these.
            ValueError: ``mode`` is none of the three, ``hidden_states`` or ``cache`` does not fit the layer, or the
                positions run past the range of the rotary scaling; the cache is left as it was.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode is {shown(mode)}; expected 'expanded', 'absorbed' or 'auto'")
        check_hidden_states(hidden_states, self.config.hidden_size, self.o_proj.weight)
        with step_of(cache, hidden_states, get_args(AnyCache), self.config) as (positions, end):
            check_positions(end, self.config.rope_scaling)
            q_nope, q_pe = self.queries(hidden_states, positions)
            c_kv, k_pe = self.latents(hidden_states, positions)
            if mode == "auto":
                mode = cheaper_mode(self.config, hidden_states.shape[1], end)
            if cache is None:
                rows = torch.cat((c_kv, k_pe), dim=-1)
                if mode == "expanded":
                    return self._project(self._expanded(q_nope, q_pe, rows))
                q, rank = self.absorb(q_nope, q_pe), self.config.kv_lora_rank
                return self.output(latent_attention(q, rows, kv_lora_rank=rank, sm_scale=self.sm_scale))
            if isinstance(cache, KVCache | PagedKVCache):
                cache.append(*self.keys_values(torch.cat((c_kv, k_pe), dim=-1)))
                return self._project(cache.attend(torch.cat((q_nope, q_pe), dim=-1), self.sm_scale))
            cache.append(c_kv, k_pe)
            if mode == "absorbed":
                return self.output(cache.attend(self.absorb(q_nope, q_pe), self.sm_scale))
            outputs = [self._expanded(q_nope[place], q_pe[place], rows) for place, rows in cache.read()]
            return self._project(torch.cat(outputs))

    if TYPE_CHECKING:  # torch types a call of any module as one of any arguments

        def __call__(self, hidden_states: Tensor, cache: AnyCache | None = None, mode: Mode = "auto") -> Tensor:
            """As ``forward``."""

    def queries(
        self, hidden_states: Float[Tensor, "batch seq hidden"], positions: Int[Tensor, "batch_or_1 seq"]
    ) -> tuple[Float[Tensor, "batch seq heads nope"], Float[Tensor, "batch seq heads rope"]]:
        """The part of each head's query without rotation, and its rotated part (DeepSeek-V2 eq. 37-40)."""
        config = self.config
        if config.q_lora_rank is None:
            q = self.q_proj(hidden_states)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
            if config.mla_scale_q_lora:
                q = q * (config.hidden_size / config.q_lora_rank) ** 0.5
        scaling = config.rope_scaling
        if config.llama_4_scaling_beta and isinstance(scaling, YarnScaling):
            contexts = positions // scaling.original_max_position_embeddings
            growth = 1 + config.llama_4_scaling_beta * torch.log1p(contexts.double())
            q = q * growth[..., None].to(q.dtype)
        q = q.unflatten(-1, (config.num_attention_heads, config.qk_head_dim))
        q_nope, q_pe = q.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
        return q_nope, self.rotary(q_pe, positions)

    def latents(
        self, hidden_states: Float[Tensor, "batch seq hidden"], positions: Int[Tensor, "batch_or_1 seq"]
    ) -> tuple[Float[Tensor, "batch seq kv_lora_rank"], Float[Tensor, "batch seq rope"]]:
        """What a cache keeps: the latent after its norm, and the rotated key that all heads share (eq. 41, 43)."""
        config = self.config
        widths = (config.kv_lora_rank, config.qk_rope_head_dim)
        c_kv, k_pe = self.kv_a_proj_with_mqa(hidden_states).split(widths, dim=-1)
        c_kv = self.kv_a_layernorm(c_kv)
        if config.mla_scale_kv_lora:
            c_kv = c_kv * (config.hidden_size / config.kv_lora_rank) ** 0.5
        return c_kv, self.rotary(k_pe.unsqueeze(2), positions).squeeze(2)

    def absorb(
        self, q_nope: Float[Tensor, "batch seq heads nope"], q_pe: Float[Tensor, "batch seq heads rope"]
    ) -> Float[Tensor, "batch seq heads row"]:
        """Queries through W_UK into the space of the latents, the rotary part behind: as cache rows lie."""
        return torch.cat((head_by_head(q_nope, self.up()[0]), q_pe), dim=-1)

    def output(self, latent: Float[Tensor, "batch seq heads kv_lora_rank"]) -> Float[Tensor, "batch seq hidden"]:
        """Results of attention over latents, through W_UV and W_O."""
        return self._project(head_by_head(latent, self.up()[1].mT))

    def _project(self, heads: Float[Tensor, "batch seq heads v_dim"]) -> Float[Tensor, "batch seq hidden"]:
        out: Tensor = self.o_proj(heads.flatten(2))
        return out

    def up(self) -> tuple[Float[Tensor, "heads nope kv_lora_rank"], Float[Tensor, "heads v kv_lora_rank"]]:
        """W_UK and W_UV of each head."""
        up: Tensor = self.kv_b_proj.weight.unflatten(0, (self.config.num_attention_heads, -1))
        w_uk, w_uv = up.split((self.config.qk_nope_head_dim, self.config.v_head_dim), dim=1)
        return w_uk, w_uv

    def keys_values(
        self, rows: Float[Tensor, "batch keys row"]
    ) -> tuple[Float[Tensor, "batch keys heads qk_dim"], Float[Tensor, "batch keys heads v_dim"]]:
        """Keys and values of every head, rebuilt from cache rows; all heads share the rotary part (eq. 42, 44)."""
        config = self.config
        c_kv, k_pe = rows.split((config.kv_lora_rank, config.qk_rope_head_dim), dim=-1)
        up = self.kv_b_proj(c_kv).unflatten(-1, (config.num_attention_heads, -1))
        k_nope, v = up.split((config.qk_nope_head_dim, config.v_head_dim), dim=-1)
        k_pe = k_pe.unsqueeze(2).expand(-1, -1, config.num_attention_heads, -1)
        return torch.cat((k_nope, k_pe), dim=-1), v

    def _expanded(
        self,
        q_nope: Float[Tensor, "batch seq heads nope"],
        q_pe: Float[Tensor, "batch seq heads rope"],
        rows: Float[Tensor, "batch keys row"],
    ) -> Float[Tensor, "batch seq heads v_dim"]:
        """Multi-head attention over all cached latents, of many of them in parts."""
        q, num_keys = torch.cat((q_nope, q_pe), dim=-1), rows.shape[1]
        mask = causal_mask(q.shape[1], num_keys, device=q.device)
        if num_keys <= EXPANDED_AT_ONCE:
            k, v = self.keys_values(rows)
            return attention(q, k, v, sm_scale=self.sm_scale, mask=mask)
        parts = []
        for some, seen in zip(rows.split(EXPANDED_AT_ONCE, dim=1), mask.split(EXPANDED_AT_ONCE, dim=1), strict=True):
            k, v = self.keys_values(some)
            parts.append(partial_attention(q, k, v, sm_scale=self.sm_scale, mask=seen))
        return merge(parts)[0].to(q.dtype)


def head_by_head(
    x: Float[Tensor, "batch seq heads width"], matrices: Float[Tensor, "heads width out"]
) -> Float[Tensor, "batch seq heads out"]:
    """Each head's part through a matrix of its own."""
    out: Tensor = torch.bmm(x.flatten(0, 1).transpose(0, 1), matrices).transpose(0, 1).unflatten(0, x.shape[:2])
    return out
