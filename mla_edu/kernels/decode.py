"""Stage 1 of the decode step, with the latent whole: every tile of the cache is loaded once, as key and as value.

In the comments: B sequences, H rows of queries, N tokens, C latent numbers, R rotary numbers.
"""

import triton
import triton.language as tl

from mla_edu.kernels.blocks import matmul, row_slots, softmax_step, split_range, store_columns, store_lse


@triton.jit
def attend(
    p_q, p_kv, p_table, p_lens, p_out, p_lse, p_partial, p_partial_lse,
    scale, num_splits, min_split,
    stride_qb, stride_qs, stride_qh, stride_qd,
    stride_kp, stride_kn, stride_kd, stride_tb, stride_tp, stride_len,
    NUM_HEADS: tl.constexpr, S_Q: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr,
    PAGE_SIZE: tl.constexpr, CAUSAL: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One block of rows of one sequence over one split of its tokens; a row is one head of one new token."""
    NUM_ROWS: tl.constexpr = NUM_HEADS * S_Q
    NUM_BLOCKS: tl.constexpr = (NUM_ROWS + BLOCK_H - 1) // BLOCK_H
    batch = (tl.program_id(0) // NUM_BLOCKS).to(tl.int64)
    split = tl.program_id(1)
    seq_len = tl.load(p_lens + batch * stride_len)
    start, end, used = split_range(seq_len, split, num_splits, min_split, BLOCK_N)
    if split >= tl.maximum(used, 1):  # split 0 of an empty sequence writes the zeros
        return

    o_row = (tl.program_id(0) % NUM_BLOCKS) * BLOCK_H + tl.arange(0, BLOCK_H)  # [H]
    m_row = o_row < NUM_ROWS
    o_token = o_row // NUM_HEADS

    o_c, o_r = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    p_queries = p_q + batch * stride_qb + o_token * stride_qs + (o_row % NUM_HEADS) * stride_qh
    b_q = tl.load(
        p_queries[:, None] + o_c[None, :] * stride_qd, mask=m_row[:, None] & (o_c < RANK)[None, :], other=0.0
    )  # [H, C]
    if ROPE > 0:
        b_qr = tl.load(
            p_queries[:, None] + (RANK + o_r)[None, :] * stride_qd,
            mask=m_row[:, None] & (o_r < ROPE)[None, :],
            other=0.0,
        )  # [H, R]

    b_max = tl.full([BLOCK_H], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_H], tl.float32)
    b_acc = tl.zeros([BLOCK_H, BLOCK_C], tl.float32)
    p_table += batch * stride_tb
    for n in range(start, end, BLOCK_N):
        o_n = n + tl.arange(0, BLOCK_N)
        m_n = o_n < end  # what lies past the end may be NaN, and 0 * NaN is NaN: it is never loaded
        p_rows = p_kv + row_slots(p_table, n, m_n, stride_tp, stride_kp, stride_kn, PAGE_SIZE, BLOCK_N)
        b_c = tl.load(
            p_rows[:, None] + o_c[None, :] * stride_kd, mask=m_n[:, None] & (o_c < RANK)[None, :], other=0.0
        )  # [N, C], key and value
        b_s = matmul(b_q, tl.trans(b_c), tl.zeros([BLOCK_H, BLOCK_N], tl.float32), UPCAST)  # [H, N]
        if ROPE > 0:
            b_r = tl.load(
                p_rows[:, None] + (RANK + o_r)[None, :] * stride_kd,
                mask=m_n[:, None] & (o_r < ROPE)[None, :],
                other=0.0,
            )  # [N, R]
            b_s = matmul(b_qr, tl.trans(b_r), b_s, UPCAST)
        m_s = m_n[None, :]
        if CAUSAL and S_Q > 1:  # the last token sees all keys, the one before it all but one, ...
            m_s = m_s & (o_n[None, :] <= (seq_len - S_Q + o_token)[:, None])
        b_s = tl.where(m_s, b_s * scale, float("-inf"))
        b_p, b_shrink, b_max, b_sum = softmax_step(b_s, b_max, b_sum)
        b_acc = matmul(b_p, b_c, b_acc * b_shrink[:, None], UPCAST)

    is_final = used <= 1
    o_out = batch * NUM_ROWS + o_row  # [H]
    o_partial = (batch * num_splits + split) * NUM_ROWS + o_row
    store_lse(p_lse, p_partial_lse, b_max, b_sum, batch, o_row, o_partial, is_final, m_row, NUM_HEADS, S_Q, SPLIT)
    store_columns(p_out, p_partial, b_acc, b_sum, o_out, o_partial, o_c, is_final, m_row, RANK, SPLIT)
