"""The recurrence of Mamba-2, token by token and in chunks (Dao and Gu 2024, "Transformers are SSMs").

Per head a state ``S_t = a_t S_{t-1} + x_t b_t^T`` forgets by a factor and takes in an outer product; the output is
``y_t = S_t c_t``. Read as attention, ``c`` is the query, ``b`` the key, ``x`` the value, and in place of a softmax
stands the product of the factors between the two tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def scan_step(
    x: Float[Tensor, "batch heads dim"],
    log_decay: Float[Tensor, "batch heads"],
    b: Float[Tensor, "batch groups state"],
    c: Float[Tensor, "batch groups state"],
    state: Float[Tensor, "batch heads dim state"],
) -> tuple[Float[Tensor, "batch heads dim"], Float[Tensor, "batch heads dim state"]]:
    """One token: its output, and the state after it.

    Args:
        x: what is taken in, already times the step size.
        log_decay: logarithm of what the state keeps, at most 0.
        b: the direction in which ``x`` is written; the heads of a group share it.
        c: the direction in which the state is read; likewise.
        state: before the token.
    """
    heads_per_group = x.shape[1] // b.shape[1]
    b, c = (each.repeat_interleave(heads_per_group, dim=1) for each in (b, c))
    state = log_decay.exp()[..., None, None] * state + x[..., None] * b[:, :, None]
    return torch.einsum("bhpn,bhn->bhp", state, c), state


def chunked_scan(
    x: Float[Tensor, "batch seq heads dim"],
    log_decay: Float[Tensor, "batch seq heads"],
    b: Float[Tensor, "batch seq groups state"],
    c: Float[Tensor, "batch seq groups state"],
    state: Float[Tensor, "batch heads dim state"],
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "batch seq heads dim"], Float[Tensor, "batch heads dim state"]]:
    """``scan_step`` for all tokens: as attention within a chunk, through the state between chunks.

    Args:
        x: as in ``scan_step``, of all tokens; likewise ``log_decay``, ``b`` and ``c``.
        log_decay: logarithms.
        b: directions of writing.
        c: directions of reading.
        state: before the first token.
        chunk_size: tokens that are computed at once.
    """
    if not x.shape[1]:
        return x, state
    heads_per_group = x.shape[2] // b.shape[2]
    outputs = []
    for x_, decay, b_, c_ in zip(*(each.split(chunk_size, dim=1) for each in (x, log_decay, b, c)), strict=True):
        b_, c_ = (each.repeat_interleave(heads_per_group, dim=2) for each in (b_, c_))
        total = decay.cumsum(dim=1).transpose(1, 2)  # [batch, heads, tokens]: from the chunk's start to each token
        future = torch.ones(total.shape[-1], total.shape[-1], dtype=torch.bool, device=x.device).triu(1)
        kept = (total[..., :, None] - total[..., None, :]).masked_fill(future, float("-inf")).exp()
        inside = torch.einsum("bshn,bthn,bhst,bthp->bshp", c_, b_, kept, x_)
        before = torch.einsum("bshn,bhpn,bhs->bshp", c_, state, total.exp())
        outputs.append(inside + before)
        to_the_end = (total[..., -1:] - total).exp()
        state = total[..., -1].exp()[..., None, None] * state + torch.einsum("bthp,bthn,bht->bhpn", x_, b_, to_the_end)
    return torch.cat(outputs, dim=1), state
