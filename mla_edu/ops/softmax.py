"""Softmax attention, written out: the specification that every faster path is held to."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mla_edu.validation import check_integer


def causal_mask(
    num_queries: int,
    num_keys: int,
    *,
    sliding_window: int | None = None,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "queries keys"]:
    """True where a query may look, with the last query aligned to the last key.

    Query i stands at position ``num_keys - num_queries + i``: it sees the cached keys and those of its own chunk up
    to itself. (PyTorch's ``is_causal=True`` aligns the *first* query to the first key instead.)

    Args:
        num_queries: new tokens.
        num_keys: cached tokens, the new ones included.
        sliding_window: a query sees at most this many keys, its own included.
        device: where the mask is made.

    Raises:
        ValueError: a number is out of range, or there are more queries than keys.
    """
    check_integer("num_queries", num_queries, lowest=0)
    check_integer("num_keys", num_keys, lowest=0)
    if sliding_window is not None:
        check_integer("sliding_window", sliding_window)
    if num_queries > num_keys:
        raise ValueError(f"num_queries is {num_queries}; expected at most num_keys, {num_keys}")
    query_positions = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    key_positions = torch.arange(num_keys, device=device)
    mask = key_positions <= query_positions
    if sliding_window is not None:
        mask &= key_positions > query_positions - sliding_window
    return mask


def attention(
    q: Float[Tensor, "batch queries heads qk_dim"],
    k: Float[Tensor, "batch keys kv_heads qk_dim"],
    v: Float[Tensor, "batch keys kv_heads v_dim"],
    *,
    sm_scale: float,
    mask: Bool[Tensor, "queries keys"],
) -> Float[Tensor, "batch queries heads v_dim"]:
    """``softmax(sm_scale q k^T) v`` for every head, at least in float32.

    Query head h reads key/value head ``h // (heads / kv_heads)``; with as many of both this is multi-head attention
    (Vaswani et al. 2017, sec. 3.2.2), with one key/value head multi-query attention (Shazeer 2019).

    Raises:
        ValueError: ``kv_heads`` does not divide ``heads``.
    """
    scores, values = _scores_and_values(q, k, v, sm_scale, mask)
    out = torch.bmm(scores.softmax(dim=-1), values)
    return out.view(*q.transpose(1, 2).shape[:3], v.shape[-1]).transpose(1, 2).to(q.dtype)


def partial_attention(
    q: Float[Tensor, "batch queries heads qk_dim"],
    k: Float[Tensor, "batch keys kv_heads qk_dim"],
    v: Float[Tensor, "batch keys kv_heads v_dim"],
    *,
    sm_scale: float,
    mask: Bool[Tensor, "queries keys"],
) -> tuple[Float[Tensor, "batch queries heads v_dim"], Float[Tensor, "batch queries heads"]]:
    """``attention`` over some of the keys, and the logarithm of the sum of their exponentials, for ``merge``.

    A query that sees none of them gets 0 and -inf.
    """
    scores, values = _scores_and_values(q, k, v, sm_scale, mask)
    lse = scores.logsumexp(dim=-1)
    weights = torch.exp(scores - lse.clamp(min=torch.finfo(lse.dtype).min)[..., None])
    rows = q.transpose(1, 2).shape[:3]
    out = torch.bmm(weights, values).view(*rows, v.shape[-1])
    return out.transpose(1, 2), lse.view(rows).transpose(1, 2)


def merge(
    parts: Sequence[tuple[Float[Tensor, "*rows v_dim"], Float[Tensor, "*rows"]]],
) -> tuple[Float[Tensor, "*rows v_dim"], Float[Tensor, "*rows"]]:
    """Attention over all keys, from attention over each part of them (Milakov and Gimelshein 2018, sec. 3.1).

    Args:
        parts: results, and the logarithm of the sum of exponentials, natural, -inf where no key was seen.
    """
    outs, lses = (torch.stack(each) for each in zip(*parts, strict=True))
    weights, lse = merge_weights(lses)
    return (weights[..., None] * outs).sum(dim=0), lse


def merge_weights(
    lses: Float[Tensor, "parts ..."],
) -> tuple[Float[Tensor, "parts ..."], Float[Tensor, "..."]]:
    """What the result over each part of the keys counts for in that over all, and the log-sum-exp over all.

    Args:
        lses: of each part, natural, -inf where no key was seen.
    """
    lse = lses.logsumexp(dim=0)
    return torch.exp(lses - lse.clamp(min=torch.finfo(lse.dtype).min)), lse


def _scores_and_values(
    q: Tensor, k: Tensor, v: Tensor, sm_scale: float, mask: Tensor
) -> tuple[Float[Tensor, "batch_kv_heads group_queries keys"], Float[Tensor, "batch_kv_heads keys v_dim"]]:
    """For each key/value head the scores of its group's queries, which stand below each other, and its values."""
    (batch, num_queries, heads, qk_dim), kv_heads = q.shape, k.shape[2]
    if heads % kv_heads:
        raise ValueError(f"k has {kv_heads} heads; expected a divisor of the {heads} heads of q")
    dtype = torch.promote_types(q.dtype, torch.float32)
    group = heads // kv_heads
    queries = (q.to(dtype) * sm_scale).transpose(1, 2).reshape(batch * kv_heads, group * num_queries, qk_dim)
    keys, values = (x.to(dtype).transpose(1, 2).flatten(0, 1) for x in (k, v))
    unseen = torch.zeros(mask.shape, dtype=dtype, device=q.device).masked_fill(~mask, float("-inf")).repeat(group, 1)
    return torch.baddbmm(unseen.expand(batch * kv_heads, -1, -1), queries, keys.mT), values
