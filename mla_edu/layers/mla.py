"""Multi-head latent attention (DeepSeek-V2 paper, sec. 2.1), with keys and values rebuilt or never built."""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mla_edu.cache.contiguous import LatentCache
from mla_edu.config import MLAConfig
from mla_edu.cost import cheaper_mode
from mla_edu.layers.inputs import check_hidden_states
from mla_edu.ops.latent import latent_attention
from mla_edu.ops.rope import check_positions, rope_frequencies, rope_magnitude, rotate, softmax_factor
from mla_edu.ops.softmax import attention, causal_mask

Mode = Literal["expanded", "absorbed", "auto"]
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
    """

    def __init__(
        self,
        config: MLAConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.config = config
        options = {"dtype": dtype, "device": device}
        hidden_size, bias = config.hidden_size, config.attention_bias
        q_width = config.num_attention_heads * config.qk_head_dim
        up_width = config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim)
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden_size, q_width, bias=False, **options)
        else:
            self.q_a_proj = nn.Linear(hidden_size, config.q_lora_rank, bias=bias, **options)
            self.q_a_layernorm = nn.RMSNorm(config.q_lora_rank, eps=LATENT_NORM_EPS, **options)
            self.q_b_proj = nn.Linear(config.q_lora_rank, q_width, bias=False, **options)
        self.kv_a_proj_with_mqa = nn.Linear(hidden_size, config.elements_per_token, bias=bias, **options)
        self.kv_a_layernorm = nn.RMSNorm(config.kv_lora_rank, eps=LATENT_NORM_EPS, **options)
        self.kv_b_proj = nn.Linear(config.kv_lora_rank, up_width, bias=False, **options)
        self.o_proj = nn.Linear(config.num_attention_heads * config.v_head_dim, hidden_size, bias=bias, **options)
        self.sm_scale = config.qk_head_dim**-0.5 * softmax_factor(config.rope_scaling)
        if config.rope_theta is not None:
            # A plain attribute: as a buffer it would be rounded whenever the layer is cast to a smaller dtype.
            self.frequencies = rope_frequencies(config.qk_rope_head_dim, config.rope_theta, config.rope_scaling)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        cache: LatentCache | None = None,
        mode: Mode = "auto",
    ) -> Float[Tensor, "batch seq hidden"]:
        """Causal attention of the new tokens over the cached ones and themselves.

        Args:
            hidden_states: the new tokens.
            cache: where earlier tokens lie; the new ones are appended. Positions follow from its length.
            mode: ``"expanded"`` rebuilds the keys and values of every head from the latents, ``"absorbed"`` takes
                the queries to the latents instead and never builds them, ``"auto"`` does what costs less.

        Raises:
            TypeError: ``cache`` is not a ``LatentCache``.
            ValueError: ``mode`` is none of the three, ``hidden_states`` or ``cache`` does not fit the layer, or the
                positions run past the range of the rotary scaling; the cache is left as it was.
        """
        config = self.config
        if mode not in get_args(Mode):
            raise ValueError(f"mode is {mode!r}; expected 'expanded', 'absorbed' or 'auto'")
        check_hidden_states(hidden_states, config.hidden_size, self.o_proj.weight.dtype)
        batch, seq, _ = hidden_states.shape
        start = 0
        if cache is not None:
            if not isinstance(cache, LatentCache):
                raise TypeError(f"cache is a {type(cache).__name__}; expected a LatentCache")
            cache.check_room(batch, seq, hidden_states.dtype, hidden_states.device)
            start = cache.length
        check_positions(start + seq, config.rope_scaling)

        positions = torch.arange(start, start + seq, device=hidden_states.device)
        q_nope, q_pe = self._queries(hidden_states, positions)
        c_kv, k_pe = self._latents(hidden_states, positions)
        rows = torch.cat((c_kv, k_pe), dim=-1) if cache is None else cache.append(c_kv, k_pe)

        if mode == "auto":
            mode = cheaper_mode(config, seq, start + seq)
        attend = self._absorbed if mode == "absorbed" else self._expanded
        return self.o_proj(attend(q_nope, q_pe, rows).flatten(2))

    def _queries(
        self, hidden_states: Float[Tensor, "batch seq hidden"], positions: Int[Tensor, " seq"]
    ) -> tuple[Float[Tensor, "batch seq heads nope"], Float[Tensor, "batch seq heads rope"]]:
        config = self.config
        if config.q_lora_rank is None:
            q = self.q_proj(hidden_states)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
        if config.mla_scale_q_lora:
            q = q * (config.hidden_size / config.q_lora_rank) ** 0.5
        if config.llama_4_scaling_beta:
            contexts = positions // config.rope_scaling.original_max_position_embeddings
            growth = 1 + config.llama_4_scaling_beta * torch.log1p(contexts.double())
            q = q * growth[:, None].to(q.dtype)
        q = q.unflatten(-1, (config.num_attention_heads, config.qk_head_dim))
        q_nope, q_pe = q.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
        return q_nope, self._rotate(q_pe, positions)

    def _latents(
        self, hidden_states: Float[Tensor, "batch seq hidden"], positions: Int[Tensor, " seq"]
    ) -> tuple[Float[Tensor, "batch seq kv_lora_rank"], Float[Tensor, "batch seq rope"]]:
        config = self.config
        widths = (config.kv_lora_rank, config.qk_rope_head_dim)
        c_kv, k_pe = self.kv_a_proj_with_mqa(hidden_states).split(widths, dim=-1)
        c_kv = self.kv_a_layernorm(c_kv)
        if config.mla_scale_kv_lora:
            c_kv = c_kv * (config.hidden_size / config.kv_lora_rank) ** 0.5
        return c_kv, self._rotate(k_pe.unsqueeze(2), positions).squeeze(2)

    def _rotate(self, x: Float[Tensor, "batch seq heads rope"], positions: Int[Tensor, " seq"]):
        config = self.config
        if config.rope_theta is None:
            return x
        pairing = "interleaved" if config.rope_interleave else "halves"
        return rotate(x, positions, self.frequencies, pairing=pairing) * rope_magnitude(config.rope_scaling)

    def _expanded(
        self,
        q_nope: Float[Tensor, "batch seq heads nope"],
        q_pe: Float[Tensor, "batch seq heads rope"],
        rows: Float[Tensor, "batch keys row"],
    ) -> Float[Tensor, "batch seq heads v_dim"]:
        """Keys and values of every head, from all cached latents: multi-head attention."""
        config = self.config
        c_kv, k_pe = rows.split((config.kv_lora_rank, config.qk_rope_head_dim), dim=-1)
        up = self.kv_b_proj(c_kv).unflatten(-1, (config.num_attention_heads, -1))
        k_nope, v = up.split((config.qk_nope_head_dim, config.v_head_dim), dim=-1)
        k_pe = k_pe.unsqueeze(2).expand(-1, -1, config.num_attention_heads, -1)
        q, k = torch.cat((q_nope, q_pe), dim=-1), torch.cat((k_nope, k_pe), dim=-1)
        mask = causal_mask(q.shape[1], k.shape[1], device=q.device)
        return attention(q, k, v, sm_scale=self.sm_scale, mask=mask)

    def _absorbed(
        self,
        q_nope: Float[Tensor, "batch seq heads nope"],
        q_pe: Float[Tensor, "batch seq heads rope"],
        rows: Float[Tensor, "batch keys row"],
    ) -> Float[Tensor, "batch seq heads v_dim"]:
        """Queries through W_UK to the latents, results back through W_UV: multi-query attention over the rows."""
        config = self.config
        up = self.kv_b_proj.weight.unflatten(0, (config.num_attention_heads, -1))
        w_uk, w_uv = up.split((config.qk_nope_head_dim, config.v_head_dim), dim=1)  # [heads, nope or v, latent]
        q = torch.cat((torch.einsum("bshn,hnc->bshc", q_nope, w_uk), q_pe), dim=-1)
        latent = latent_attention(q, rows, kv_lora_rank=config.kv_lora_rank, sm_scale=self.sm_scale)
        return torch.einsum("bshc,hvc->bshv", latent, w_uv)
