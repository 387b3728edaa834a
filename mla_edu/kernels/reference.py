"""The decode step, written out: the specification that the kernels are held to."""

import torch
from torch import Tensor

from mla_edu.ops.fp8 import unpack_fp8
from mla_edu.ops.softmax import causal_mask


@torch.no_grad()
def decode(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    kv_lora_rank: int,
    sm_scale: float,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """``mla_decode`` in plain PyTorch, one sequence after the other; float64 for float64 queries, else float32."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    batch, s_q, num_heads, _ = q.shape
    out = torch.zeros(batch, s_q, num_heads, kv_lora_rank, dtype=dtype, device=q.device)
    lse = torch.full((batch, num_heads, s_q), float("-inf"), dtype=dtype, device=q.device)
    for b, length in enumerate(seq_lens.tolist()):
        pages = block_table[b, : -(-length // kv_cache.shape[1])].long()
        rows = kv_cache[pages].flatten(0, 1)[:length]
        rows = (unpack_fp8(rows, kv_lora_rank) if rows.dtype == torch.uint8 else rows).to(dtype)  # [keys, row]
        scores = torch.einsum("shd,nd->hsn", q[b].to(dtype), rows) * sm_scale
        values = rows[:, :kv_lora_rank]
        if not rows.sum().isfinite():  # NaN and inf pass through a sum: one look at all rows first
            broken = ~rows.isfinite().all(dim=-1)  # [keys]: whoever sees one of them gets NaN, and nobody else
            scores = scores.masked_fill(broken, float("nan"))
            values = values.masked_fill(broken[:, None], 0)  # a weight of 0 times NaN would be NaN
        if causal:
            # A table of more queries than keys has rows that see nothing.
            mask = causal_mask(s_q, max(length, s_q), device=q.device)[:, max(s_q - length, 0) :]
            scores = scores.masked_fill(~mask, float("-inf"))
        lse[b] = scores.logsumexp(dim=-1)
        weights = torch.exp(scores - lse[b].clamp(min=torch.finfo(dtype).min)[..., None])  # 0 where nothing is seen
        out[b] = torch.einsum("hsn,nc->shc", weights, values)
    return out.to(q.dtype), lse.to(torch.float32 if dtype == torch.float32 else dtype)
