"""Stage 2 of the decode step: the partial results of a sequence's splits, merged by their log-sum-exp."""

import triton
import triton.language as tl

from mla_edu.kernels.blocks import split_range


@triton.jit
def merge(
    p_partial, p_partial_lse, p_lens, p_out, p_lse, num_splits, min_split, stride_len,
    NUM_HEADS: tl.constexpr, S_Q: tl.constexpr, RANK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One row of one sequence. Each partial result weighs 2 to the power of its log-sum-exp."""
    NUM_ROWS: tl.constexpr = NUM_HEADS * S_Q
    batch, row = (tl.program_id(0) // NUM_ROWS).to(tl.int64), tl.program_id(0) % NUM_ROWS
    seq_len = tl.load(p_lens + batch * stride_len)
    _, _, used = split_range(seq_len, 0, num_splits, min_split, BLOCK_N)
    if used <= 1:  # stage 1 has written the result
        return

    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < RANK
    largest, total = float("-inf"), 0.0
    b_acc = tl.zeros([BLOCK_C], tl.float32)
    for split in range(used):
        o_partial = (batch * num_splits + split) * NUM_ROWS + row
        lse = tl.load(p_partial_lse + o_partial)
        b_part = tl.load(p_partial + o_partial * RANK + o_c, mask=m_c, other=0.0)  # [C]
        new = tl.maximum(largest, lse)
        safe = tl.where(new == float("-inf"), 0.0, new)  # no key yet for this row: -inf - -inf is NaN
        weight, shrink = tl.exp2(lse - safe), tl.exp2(largest - safe)
        b_acc = b_acc * shrink + b_part * weight
        total = total * shrink + weight
        largest = new

    total_or_1 = tl.where(total > 0, total, 1.0)
    lse = tl.where(total > 0, largest + tl.log2(total_or_1), float("-inf"))
    tl.store(p_lse + (batch * NUM_HEADS + row % NUM_HEADS) * S_Q + row // NUM_HEADS, lse * 0.6931471805599453)
    tl.store(p_out + (batch * NUM_ROWS + row) * RANK + o_c, (b_acc / total_or_1).to(p_out.dtype.element_ty), mask=m_c)
