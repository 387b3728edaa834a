"""What the kernels of the decode step share: who computes what, one step of the softmax, where results go."""

import triton
import triton.language as tl


@triton.jit
def split_range(seq_len, split, num_splits, min_split, BLOCK_N: tl.constexpr):
    """First and last token of a split, and how many splits have any: read by both stages, never by the host."""
    per_split = tl.maximum(tl.cdiv(tl.cdiv(seq_len, num_splits), BLOCK_N) * BLOCK_N, min_split)
    start = split * per_split
    return start, tl.minimum(start + per_split, seq_len), tl.cdiv(seq_len, per_split)


@triton.jit
def row_slots(
    p_table, n, m_n, stride_tp, stride_page, stride_row, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Where the cache rows of the tile at token n lie: their page through the block table, then their place in it."""
    o_n = tl.arange(0, BLOCK_N)
    if PAGE_SIZE % BLOCK_N == 0:  # the whole tile is in one page
        page = tl.load(p_table + (n // PAGE_SIZE) * stride_tp)
        # 64 bits: a pool of 4 GiB has offsets past 2**31.
        return page.to(tl.int64) * stride_page + (n % PAGE_SIZE + o_n) * stride_row
    else:
        b_page = tl.load(p_table + ((n + o_n) // PAGE_SIZE) * stride_tp, mask=m_n, other=0)  # [N]
        return b_page.to(tl.int64) * stride_page + ((n + o_n) % PAGE_SIZE) * stride_row


@triton.jit
def matmul(b_a, b_b, b_acc, UPCAST: tl.constexpr):
    """b_acc + b_a @ b_b in fp32. The interpreter multiplies the bit patterns of bf16, so there both are fp32."""
    if UPCAST:
        return tl.dot(b_a.to(tl.float32), b_b.to(tl.float32), b_acc, input_precision="ieee")
    else:
        return tl.dot(b_a.to(b_b.dtype), b_b, b_acc, input_precision="ieee")


@triton.jit
def softmax_step(b_s, b_max, b_sum):
    """Weights of one tile of scores, in base 2, and by how much all that was summed before shrinks."""
    b_new = tl.maximum(b_max, tl.max(b_s, 1))  # [H]
    b_safe = tl.where(b_new == float("-inf"), 0.0, b_new)  # a row that has seen no key: -inf - -inf is NaN
    b_p = tl.exp2(b_s - b_safe[:, None])  # [H, N]
    b_shrink = tl.exp2(b_max - b_safe)
    return b_p, b_shrink, b_new, b_sum * b_shrink + tl.sum(b_p, 1)


@triton.jit
def store_lse(
    p_lse, p_partial_lse, b_max, b_sum, batch, o_row, o_partial, is_final, m_row,
    NUM_HEADS: tl.constexpr, S_Q: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    b_lse = tl.where(b_sum > 0, b_max + tl.log2(tl.where(b_sum > 0, b_sum, 1.0)), float("-inf"))
    if SPLIT and not is_final:
        tl.store(p_partial_lse + o_partial, b_lse, mask=m_row)
    else:
        o_lse = (batch * NUM_HEADS + o_row % NUM_HEADS) * S_Q + o_row // NUM_HEADS  # [B, H, S]
        tl.store(p_lse + o_lse, b_lse * 0.6931471805599453, mask=m_row)


@triton.jit
def store_columns(
    p_out, p_partial, b_acc, b_sum, o_out, o_partial, o_c, is_final, m_row, WIDTH: tl.constexpr, SPLIT: tl.constexpr
):
    """Columns o_c of the result, to the output if this split is the only one, else to the partial results."""
    b_out = b_acc / tl.where(b_sum > 0, b_sum, 1.0)[:, None]
    m_out = m_row[:, None] & (o_c < WIDTH)[None, :]
    if SPLIT and not is_final:
        tl.store(p_partial + o_partial[:, None] * WIDTH + o_c[None, :], b_out, mask=m_out)
    else:
        tl.store(p_out + o_out[:, None] * WIDTH + o_c[None, :], b_out.to(p_out.dtype.element_ty), mask=m_out)
