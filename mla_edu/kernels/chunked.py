"""Stage 1 of the decode step, with the latent in four chunks: for small GPUs, for fp32, and for the fp8 cache.

Each chunk is a product of its own, so that less must lie in shared memory and registers at a time; and each chunk of
an fp8 row has one scale, which is taken out of both products: q . (s c) = s (q . c), and p (s c) = (p s) c.

In the comments: B sequences, H rows of queries, N tokens, C numbers of a chunk, R rotary numbers.
"""

import triton
import triton.language as tl

from mla_edu.kernels.blocks import matmul, row_slots, softmax_step, split_range, store_columns, store_lse


@triton.jit
def load_chunk(p_rows, o_c, m_n, stride_kd, RANK: tl.constexpr, FP8: tl.constexpr, UPCAST: tl.constexpr):
    """Columns o_c of a tile. A number in e4m3 comes as 2**-8 of itself: ``load_scale`` makes up for it."""
    b_c = tl.load(
        p_rows[:, None] + o_c[None, :] * stride_kd, mask=m_n[:, None] & (o_c < RANK)[None, :], other=0
    )  # [N, C]
    if FP8:  # the sign, four bits of exponent and three of fraction go where fp16 has them: exact on every GPU
        b_c = b_c.to(tl.uint16)
        b_c = (((b_c & 0x80) << 8) | ((b_c & 0x7F) << 7)).to(tl.float16, bitcast=True)
    if FP8 and not UPCAST:
        b_c = b_c.to(tl.bfloat16)
    return b_c


@triton.jit
def load_scale(p_scales, o_slot, m_n, CHUNK: tl.constexpr, RANK: tl.constexpr, BLOCK_C: tl.constexpr):
    """What the numbers of a chunk, as ``load_chunk`` gives them, are to be multiplied by, for each token."""
    GROUP: tl.constexpr = min(CHUNK * BLOCK_C, RANK - 1) // 128
    return tl.load(p_scales + o_slot + GROUP, mask=m_n, other=0.0) * 256.0  # [N]


@triton.jit
def attend_chunked(
    p_q, p_kv, p_scales, p_rope, p_table, p_lens, p_out, p_lse, p_partial, p_partial_lse,
    scale, num_splits, min_split,
    stride_qb, stride_qs, stride_qh, stride_qd,
    stride_kp, stride_kn, stride_kd, stride_sp, stride_rp, stride_rd,
    stride_tb, stride_tp, stride_len,
    NUM_HEADS: tl.constexpr, S_Q: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr,
    STRIDE_SN: tl.constexpr, STRIDE_RN: tl.constexpr,  # fp8: no multiples of 16, yet rows that are aligned
    PAGE_SIZE: tl.constexpr, CAUSAL: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr, FP8: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """As ``attend``; p_scales and p_rope look into the rows of p_kv, in numbers of their own dtype."""
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
    b_q0 = load_chunk(p_queries, o_c, m_row, stride_qd, RANK, False, UPCAST)  # [H, C]
    b_q1 = load_chunk(p_queries, o_c + BLOCK_C, m_row, stride_qd, RANK, False, UPCAST)
    b_q2 = load_chunk(p_queries, o_c + 2 * BLOCK_C, m_row, stride_qd, RANK, False, UPCAST)
    b_q3 = load_chunk(p_queries, o_c + 3 * BLOCK_C, m_row, stride_qd, RANK, False, UPCAST)
    if ROPE > 0:
        b_qr = load_chunk(p_queries + RANK * stride_qd, o_r, m_row, stride_qd, ROPE, False, UPCAST)  # [H, R]

    b_max = tl.full([BLOCK_H], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_H], tl.float32)
    b_acc0 = tl.zeros([BLOCK_H, BLOCK_C], tl.float32)
    b_acc1 = tl.zeros([BLOCK_H, BLOCK_C], tl.float32)
    b_acc2 = tl.zeros([BLOCK_H, BLOCK_C], tl.float32)
    b_acc3 = tl.zeros([BLOCK_H, BLOCK_C], tl.float32)
    p_table += batch * stride_tb
    for n in range(start, end, BLOCK_N):
        o_n = n + tl.arange(0, BLOCK_N)
        m_n = o_n < end  # what lies past the end may be NaN, and 0 * NaN is NaN: it is never loaded
        p_rows = p_kv + row_slots(p_table, n, m_n, stride_tp, stride_kp, stride_kn, PAGE_SIZE, BLOCK_N)
        b_none = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
        b_c0 = load_chunk(p_rows, o_c, m_n, stride_kd, RANK, FP8, UPCAST)  # [N, C]
        b_c1 = load_chunk(p_rows, o_c + BLOCK_C, m_n, stride_kd, RANK, FP8, UPCAST)
        b_c2 = load_chunk(p_rows, o_c + 2 * BLOCK_C, m_n, stride_kd, RANK, FP8, UPCAST)
        b_c3 = load_chunk(p_rows, o_c + 3 * BLOCK_C, m_n, stride_kd, RANK, FP8, UPCAST)
        if FP8:
            o_scale = row_slots(p_table, n, m_n, stride_tp, stride_sp, STRIDE_SN, PAGE_SIZE, BLOCK_N)
            b_g0 = load_scale(p_scales, o_scale, m_n, 0, RANK, BLOCK_C)  # [N]
            b_g1 = load_scale(p_scales, o_scale, m_n, 1, RANK, BLOCK_C)
            b_g2 = load_scale(p_scales, o_scale, m_n, 2, RANK, BLOCK_C)
            b_g3 = load_scale(p_scales, o_scale, m_n, 3, RANK, BLOCK_C)
            b_s = matmul(b_q0, tl.trans(b_c0), b_none, UPCAST) * b_g0[None, :]  # [H, N]
            b_s += matmul(b_q1, tl.trans(b_c1), b_none, UPCAST) * b_g1[None, :]
            b_s += matmul(b_q2, tl.trans(b_c2), b_none, UPCAST) * b_g2[None, :]
            b_s += matmul(b_q3, tl.trans(b_c3), b_none, UPCAST) * b_g3[None, :]
        else:
            b_s = matmul(b_q0, tl.trans(b_c0), b_none, UPCAST)
            b_s = matmul(b_q1, tl.trans(b_c1), b_s, UPCAST)
            b_s = matmul(b_q2, tl.trans(b_c2), b_s, UPCAST)
            b_s = matmul(b_q3, tl.trans(b_c3), b_s, UPCAST)
        if ROPE > 0:
            p_rotary = p_rope + row_slots(p_table, n, m_n, stride_tp, stride_rp, STRIDE_RN, PAGE_SIZE, BLOCK_N)
            b_r = load_chunk(p_rotary, o_r, m_n, stride_rd, ROPE, False, UPCAST)  # [N, R]
            b_s = matmul(b_qr, tl.trans(b_r), b_s, UPCAST)
        m_s = m_n[None, :]
        if CAUSAL and S_Q > 1:  # the last token sees all keys, the one before it all but one, ...
            m_s = m_s & (o_n[None, :] <= (seq_len - S_Q + o_token)[:, None])
        b_s = tl.where(m_s, b_s * scale, float("-inf"))
        b_p, b_shrink, b_max, b_sum = softmax_step(b_s, b_max, b_sum)
        b_acc0 = matmul(b_p * b_g0[None, :] if FP8 else b_p, b_c0, b_acc0 * b_shrink[:, None], UPCAST)
        b_acc1 = matmul(b_p * b_g1[None, :] if FP8 else b_p, b_c1, b_acc1 * b_shrink[:, None], UPCAST)
        b_acc2 = matmul(b_p * b_g2[None, :] if FP8 else b_p, b_c2, b_acc2 * b_shrink[:, None], UPCAST)
        b_acc3 = matmul(b_p * b_g3[None, :] if FP8 else b_p, b_c3, b_acc3 * b_shrink[:, None], UPCAST)

    is_final = used <= 1
    o_out = batch * NUM_ROWS + o_row  # [H]
    o_partial = (batch * num_splits + split) * NUM_ROWS + o_row
    store_lse(p_lse, p_partial_lse, b_max, b_sum, batch, o_row, o_partial, is_final, m_row, NUM_HEADS, S_Q, SPLIT)
    store_columns(p_out, p_partial, b_acc0, b_sum, o_out, o_partial, o_c, is_final, m_row, RANK, SPLIT)
    store_columns(p_out, p_partial, b_acc1, b_sum, o_out, o_partial, o_c + BLOCK_C, is_final, m_row, RANK, SPLIT)
    store_columns(p_out, p_partial, b_acc2, b_sum, o_out, o_partial, o_c + 2 * BLOCK_C, is_final, m_row, RANK, SPLIT)
    store_columns(p_out, p_partial, b_acc3, b_sum, o_out, o_partial, o_c + 3 * BLOCK_C, is_final, m_row, RANK, SPLIT)
