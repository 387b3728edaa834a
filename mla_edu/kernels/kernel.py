"""The decode step in Triton: ``attend`` works on splits of the sequences (stage 1), ``merge`` joins them (stage 2).

A name begins with what it is: ``p_`` a pointer, ``b_`` a block of numbers, ``o_`` offsets, ``m_`` a mask. A stride is
how many numbers lie between neighbours: ``stride_kn`` between rows (``n``) of the cache (``k``). Of the other letters,
``q`` is the queries, ``t`` the block table; ``b`` a sequence, ``s`` a new token, ``h`` a head, ``p`` a page, ``d`` one
number. All offsets are in 64 bits, since a pool, and even a page, may be larger than 2**31 numbers. The comments give
shapes: H rows of queries, each one head of one new token; N tokens; C numbers of a chunk of the latent.

The latent comes whole or in four chunks. In chunks, less must lie in shared memory and registers at a time, for small
GPUs and fp32; and each chunk of an fp8 row has one scale, which is taken out of both products:
q . (g c) = g (q . c), and p (g c) = (p g) c.
"""

import triton
import triton.language as tl


@triton.jit
def split_range(seq_len, split, num_splits, min_split, BLOCK_N: tl.constexpr):
    """First and last token of a split, and how many splits have any: read by both stages, never by the host."""
    per_split = tl.maximum(tl.cdiv(tl.cdiv(seq_len, num_splits), BLOCK_N) * BLOCK_N, min_split)
    start = split * per_split
    return start, tl.minimum(start + per_split, seq_len), tl.cdiv(seq_len, per_split)


@triton.jit
def find_rows(
    p_kv, p_table, n, m_n, stride_tp, stride_kp, stride_kn, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Where the cache rows of the tile at token n begin: their page through the block table, then their place in it."""
    o_n = n + tl.arange(0, BLOCK_N)
    if PAGE_SIZE % BLOCK_N == 0:  # the whole tile is in one page
        page = tl.load(p_table + tl.cast(n // PAGE_SIZE, tl.int64) * stride_tp)
    else:
        page = tl.load(p_table + (o_n // PAGE_SIZE).to(tl.int64) * stride_tp, mask=m_n, other=0)  # [N]
    return p_kv + page.to(tl.int64) * stride_kp + (o_n % PAGE_SIZE).to(tl.int64) * stride_kn


@triton.jit
def load_columns(p_rows, m_rows, start, stride_d, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK numbers of each row from number ``start`` on; 0 for those past WIDTH."""
    o_d = start + tl.arange(0, BLOCK)
    m_d = m_rows[:, None] & (o_d < WIDTH)[None, :]
    return tl.load(p_rows[:, None] + o_d.to(tl.int64)[None, :] * stride_d, mask=m_d, other=0)


@triton.jit
def from_e4m3(b_c, UPCAST: tl.constexpr):
    """Bytes of e4m3 as 2**-8 of their numbers: ``load_scale`` makes up for it. Exact on every GPU.

    The sign, four bits of exponent and three of fraction go where fp16 has them. The code of NaN, all ones, carries
    over into the fifth bit of fp16's exponent, which makes it fp16's NaN.
    """
    b_c = b_c.to(tl.uint16)
    b_rest = b_c & 0x7F
    b_c = (((b_c & 0x80) << 8) | ((b_rest | ((b_rest + 1) & 0x80)) << 7)).to(tl.float16, bitcast=True)
    return b_c if UPCAST else b_c.to(tl.bfloat16)


@triton.jit
def load_scale(p_rows, m_rows, CHUNK: tl.constexpr, RANK: tl.constexpr, BLOCK_C: tl.constexpr):
    """What the numbers of a chunk, as ``from_e4m3`` gives them, are to be multiplied by, for each token."""
    GROUP: tl.constexpr = min(CHUNK * BLOCK_C, RANK - 1) // 128
    p_scales = (p_rows + RANK).to(tl.pointer_type(tl.float32), bitcast=True)
    return tl.load(p_scales + GROUP, mask=m_rows, other=0.0) * 256.0  # [N]


@triton.jit
def load_rows(
    p_rows, m_rows, stride_d, RANK: tl.constexpr, ROPE: tl.constexpr, FP8: tl.constexpr, UPCAST: tl.constexpr,
    NUM_CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Rows of queries or of the cache: a tuple of the latent's chunks and, if there is one, the rotary part."""
    b_rows = ()
    for i in tl.static_range(NUM_CHUNKS):
        b_c = load_columns(p_rows, m_rows, i * BLOCK_C, stride_d, RANK, BLOCK_C)
        b_rows += (from_e4m3(b_c, UPCAST) if FP8 else b_c,)
    if ROPE > 0:
        if FP8:  # after the latent's bytes, and four for the scale of each 128 of them
            p_rotary = (p_rows + (RANK + RANK // 32)).to(tl.pointer_type(tl.bfloat16), bitcast=True)
            b_rows += (load_columns(p_rotary, m_rows, 0, 1, ROPE, BLOCK_R),)
        else:
            b_rows += (load_columns(p_rows, m_rows, RANK, stride_d, RANK + ROPE, BLOCK_R),)
    return b_rows


@triton.jit
def matmul(b_a, b_b, b_acc, UPCAST: tl.constexpr):
    """b_acc + b_a @ b_b in fp32. The interpreter multiplies the bit patterns of bf16, so there both are fp32."""
    if UPCAST:
        return tl.dot(b_a.to(tl.float32), b_b.to(tl.float32), b_acc, input_precision="ieee")
    else:
        return tl.dot(b_a.to(b_b.dtype), b_b, b_acc, input_precision="ieee")


@triton.jit
def softmax_step(b_s, b_max, b_sum):
    """Weights of one tile of scores, in base 2, and by how much all that was summed before shrinks.

    A NaN among the scores stays in the sum, whatever the maximum makes of it.
    """
    b_new = tl.maximum(b_max, tl.max(b_s, 1))  # [H]
    b_safe = tl.where(b_new == float("-inf"), 0.0, b_new)  # a row that has seen no key: -inf - -inf is NaN
    b_p = tl.exp2(b_s - b_safe[:, None])  # [H, N]
    b_shrink = tl.exp2(b_max - b_safe)
    return b_p, b_shrink, b_new, b_sum * b_shrink + tl.sum(b_p, 1)


@triton.jit
def attend(
    p_q, p_kv, p_table, p_lens, p_out, p_lse, p_partial, p_partial_lse, scale, num_splits, min_split,
    stride_qb, stride_qs, stride_qh, stride_qd, stride_kp, stride_kn, stride_kd, stride_tb, stride_tp, stride_len,
    NUM_HEADS: tl.constexpr, S_Q: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, PAGE_SIZE: tl.constexpr,
    CAUSAL: tl.constexpr, UPCAST: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One block of rows of one sequence over one split of its tokens: every tile is loaded once, as key and value.

    Without p_partial there is one split.
    """
    FP8: tl.constexpr = p_kv.dtype.element_ty == tl.uint8
    NUM_ROWS: tl.constexpr = NUM_HEADS * S_Q
    NUM_BLOCKS: tl.constexpr = (NUM_ROWS + BLOCK_H - 1) // BLOCK_H
    batch = (tl.program_id(0) // NUM_BLOCKS).to(tl.int64)
    split = tl.program_id(1)
    seq_len = tl.load(p_lens + batch * stride_len)
    start, end, used = split_range(seq_len, split, num_splits, min_split, BLOCK_N)
    if split >= tl.maximum(used, 1):  # split 0 of an empty sequence writes the zeros
        return

    p_table += batch * stride_tb
    o_row = (tl.program_id(0) % NUM_BLOCKS) * BLOCK_H + tl.arange(0, BLOCK_H)  # [H]
    m_row = o_row < NUM_ROWS
    o_token, o_head = o_row // NUM_HEADS, o_row % NUM_HEADS
    o_last = seq_len - S_Q + o_token  # the last key that a row sees, if CAUSAL
    p_queries = p_q + batch * stride_qb + o_token.to(tl.int64) * stride_qs + o_head.to(tl.int64) * stride_qh
    b_q = load_rows(p_queries, m_row, stride_qd, RANK, ROPE, False, UPCAST, NUM_CHUNKS, BLOCK_C, BLOCK_R)  # [H, C]

    # A row does not see the newer ones of the new tokens. Should those hold a NaN, their weight of 0 would not keep it
    # from the row, for 0 * NaN is NaN: so no row reads on from the first of them, and those that see it become NaN.
    unseen = seq_len
    if CAUSAL and S_Q > 1:
        for n in range(tl.maximum(start, seq_len - S_Q + 1) // 16 * 16, end, 16):
            o_n = n + tl.arange(0, 16)
            m_n = (o_n >= start) & (o_n > seq_len - S_Q) & (o_n < end)
            p_rows = find_rows(p_kv, p_table, n, m_n, stride_tp, stride_kp, stride_kn, PAGE_SIZE, 16)
            b_kv = load_rows(p_rows, m_n, stride_kd, RANK, ROPE, FP8, UPCAST, NUM_CHUNKS, BLOCK_C, BLOCK_R)
            b_zero = tl.zeros([16], tl.float32)
            for i in tl.static_range(len(b_kv)):
                b_zero += tl.sum(b_kv[i].to(tl.float32) * 0.0, 1)  # NaN, unless all numbers are finite
            for i in tl.static_range(NUM_CHUNKS if FP8 else 0):
                b_zero += load_scale(p_rows, m_n, i, RANK, BLOCK_C) * 0.0
            unseen = tl.minimum(unseen, tl.min(tl.where(b_zero == 0.0, seq_len, o_n), 0))
        end = tl.minimum(end, unseen)

    b_max = tl.full([BLOCK_H], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_H], tl.float32)
    b_acc = ()
    for _ in tl.static_range(NUM_CHUNKS):
        b_acc += (tl.zeros([BLOCK_H, BLOCK_C], tl.float32),)
    for n in range(start, end, BLOCK_N):
        o_n = n + tl.arange(0, BLOCK_N)
        m_n = o_n < end  # what lies past the end may be NaN: it is never loaded
        p_rows = find_rows(p_kv, p_table, n, m_n, stride_tp, stride_kp, stride_kn, PAGE_SIZE, BLOCK_N)
        b_kv = load_rows(p_rows, m_n, stride_kd, RANK, ROPE, FP8, UPCAST, NUM_CHUNKS, BLOCK_C, BLOCK_R)  # [N, C]
        b_s = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
        b_scales = ()
        for i in tl.static_range(NUM_CHUNKS):
            if FP8:
                b_scales += (load_scale(p_rows, m_n, i, RANK, BLOCK_C)[None, :],)  # [1, N]
                b_none = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
                b_s += matmul(b_q[i], tl.trans(b_kv[i]), b_none, UPCAST) * b_scales[i]
            else:
                b_s = matmul(b_q[i], tl.trans(b_kv[i]), b_s, UPCAST)  # [H, N]
        if ROPE > 0:
            b_s = matmul(b_q[NUM_CHUNKS], tl.trans(b_kv[NUM_CHUNKS]), b_s, UPCAST)
        m_s = m_n[None, :]
        if CAUSAL and S_Q > 1:
            m_s = m_s & (o_n[None, :] <= o_last[:, None])
        b_s = tl.where(m_s, b_s * scale, float("-inf"))
        b_p, b_shrink, b_max, b_sum = softmax_step(b_s, b_max, b_sum)
        b_new = ()
        for i in tl.static_range(NUM_CHUNKS):
            b_weights = b_p * b_scales[i] if FP8 else b_p
            b_new += (matmul(b_weights, b_kv[i], b_acc[i] * b_shrink[:, None], UPCAST),)
        b_acc = b_new

    if CAUSAL and S_Q > 1:
        b_sum = tl.where(o_last >= unseen, float("nan"), b_sum)
    b_total = tl.where(b_sum == 0.0, 1.0, b_sum)  # of a row that has seen no key: 0 / 1, and -inf + 0
    b_lse = b_max + tl.log2(b_total)
    o_partial = (batch * num_splits + split) * NUM_ROWS + o_row
    if p_partial is not None and used > 1:
        tl.store(p_partial_lse + o_partial, b_lse, mask=m_row)
    else:
        tl.store(p_lse + (batch * NUM_HEADS + o_head) * S_Q + o_token, b_lse * 0.6931471805599453, mask=m_row)
    for i in tl.static_range(NUM_CHUNKS):
        o_c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        m_out = m_row[:, None] & (o_c < RANK)[None, :]
        b_out = b_acc[i] / b_total[:, None]
        if p_partial is not None and used > 1:
            tl.store(p_partial + o_partial[:, None] * RANK + o_c[None, :], b_out, mask=m_out)
        else:
            p_rows = p_out + (batch * NUM_ROWS + o_row) * RANK
            tl.store(p_rows[:, None] + o_c[None, :], b_out.to(p_out.dtype.element_ty), mask=m_out)


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
    if used <= 1:  # ``attend`` has written the result
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

    total = tl.where(total == 0.0, 1.0, total)
    lse = largest + tl.log2(total)
    tl.store(p_lse + (batch * NUM_HEADS + row % NUM_HEADS) * S_Q + row // NUM_HEADS, lse * 0.6931471805599453)
    tl.store(p_out + (batch * NUM_ROWS + row) * RANK + o_c, (b_acc / total).to(p_out.dtype.element_ty), mask=m_c)
