"""Attention of absorbed queries over latents: multi-query attention whose values are part of its keys."""

import torch
from jaxtyping import Float
from torch import Tensor

from mla_edu.ops.softmax import causal_mask


def latent_attention(
    q: Float[Tensor, "batch queries heads row"],
    rows: Float[Tensor, "batch keys row"],
    *,
    kv_lora_rank: int,
    sm_scale: float,
) -> Float[Tensor, "batch queries heads kv_lora_rank"]:
    """Causal attention of absorbed queries over cache rows, whose first ``kv_lora_rank`` numbers are the values too.

    Two matrix products over the rows as they lie; neither is copied for a head. The products have the dtype of the
    rows, the softmax at least float32.

    Args:
        q: latent part first, then the rotary part.
        rows: cached tokens, the new ones included.
        kv_lora_rank: width of the latent part.
        sm_scale: what the scores are multiplied by.
    """
    queries, heads = q.shape[1:3]
    rows = rows.squeeze(0)  # one sequence: plain matrix products, on a CPU many times as fast as a batch of one
    scores = (q * sm_scale).flatten(1, 2) @ rows.mT  # [batch, queries * heads, keys]
    if queries > 1:  # a single new token sees every key
        mask = causal_mask(queries, rows.shape[-2], device=q.device)
        scores = scores.masked_fill(~mask.repeat_interleave(heads, dim=0), float("-inf"))
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    out: Tensor = (weights @ rows[..., :kv_lora_rank]).unflatten(1, (queries, heads))
    return out
