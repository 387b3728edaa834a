"""The decode step in Triton: ``attend`` works on parts of the sequences (stage 1), ``merge`` joins them (stage 2).

A name begins with what it is: ``p_`` a pointer, ``b_`` a block of numbers, ``o_`` offsets, ``m_`` a mask. A stride is
how many numbers lie between neighbours: ``stride_kn`` between rows (``n``) of the cache (``k``). Of the other letters,
``q`` is the queries, ``t`` the block table; ``b`` a sequence, ``s`` a new token, ``h`` a head, ``p`` a page, ``d`` one
number. Offsets are in 64 bits, since a pool, and even a page, may be larger than 2**31 numbers; within the results of
one program 32 do. The comments give shapes: H rows of queries, each one head of one new token; N tokens, one tile; C
numbers of a chunk of the latent.

The latent comes whole or in four chunks. In chunks, less must lie in shared memory and registers at a time, for small
GPUs and fp32; and each chunk of an fp8 row has one scale, which is taken out of both products:
q . (g c) = g (q . c), and p (g c) = (p g) c.
"""

import triton
import triton.language as tl

from mla_edu.kernels.rows import even_share, find_rows, from_e4m3, load_rows, own_part


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
def find_unseen(
    p_kv, p_table, seq_len, start, end, stride_kp, stride_kn, stride_kd, stride_tp,
    S_Q: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, PAGE_SIZE: tl.constexpr, FP8: tl.constexpr,
    CONVERT: tl.constexpr, UPCAST: tl.constexpr, NUM_CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """The first of the new tokens but one in which a number is not finite; ``seq_len`` if there is none.

    A row does not see the newer ones of the new tokens. Should those hold a NaN, their weight of 0 would not keep it
    from the row, for 0 * NaN is NaN: so no row reads on from the first of them, and those that see it become NaN.
    """
    unseen = seq_len
    for n in range(tl.maximum(start, seq_len - S_Q + 1) // 16 * 16, end, 16):
        o_n = n + tl.arange(0, 16)
        m_n = (o_n >= start) & (o_n > seq_len - S_Q) & (o_n < end)
        p_rows = find_rows(p_kv, p_table, n, m_n, end, stride_tp, stride_kp, stride_kn, PAGE_SIZE, 16, False, True)
        b_kv = load_rows(p_rows, m_n, stride_kd, RANK, ROPE, FP8, NUM_CHUNKS, BLOCK_C, BLOCK_R)
        b_zero = tl.zeros([16], tl.float32)
        for i in tl.static_range(len(b_kv)):
            if FP8 and i < NUM_CHUNKS:
                b_zero += tl.sum(from_e4m3(b_kv[i], CONVERT, UPCAST).to(tl.float32) * 0.0, 1)
            elif FP8 and i >= len(b_kv) - NUM_CHUNKS:
                b_zero += b_kv[i] * 0.0
            else:
                b_zero += tl.sum(b_kv[i].to(tl.float32) * 0.0, 1)  # NaN, unless all numbers are finite
        unseen = tl.minimum(unseen, tl.min(tl.where(b_zero == 0.0, seq_len, o_n), 0))
    return unseen


@triton.jit
def attend_tile(
    n, b_q, b_next, b_acc, b_max, b_sum, p_kv, p_table, scale, end, o_last, stride_kp, stride_kn, stride_kd, stride_tp,
    RANK: tl.constexpr, ROPE: tl.constexpr, PAGE_SIZE: tl.constexpr, MASKED: tl.constexpr, AHEAD: tl.constexpr,
    FP8: tl.constexpr, CONVERT: tl.constexpr, UPCAST: tl.constexpr, HOIST: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Queries over the tile at token n, which is ``b_next`` if AHEAD: then the tile after it is loaded, and returned.

    After it, the sum of weighted values, the maximum and the sum of weights, each of all tiles up to this one.
    """
    o_n = n + tl.arange(0, BLOCK_N)
    m_n = o_n < end  # what lies past the end may be NaN: it is never loaded
    b_c, b_scales = (), ()
    if AHEAD:  # converted before the next tile is asked for, whose bytes then take the place of these
        for i in tl.static_range(NUM_CHUNKS):
            b_c += (from_e4m3(b_next[i], CONVERT, UPCAST),)
    n_load = n + BLOCK_N if AHEAD else n
    m_load = n_load + tl.arange(0, BLOCK_N) < end
    p_rows = find_rows(
        p_kv, p_table, n_load, m_load, end, stride_tp, stride_kp, stride_kn, PAGE_SIZE, BLOCK_N, BLOCK_H < 64,
        HOIST == 2,
    )  # fmt: skip
    b_load = load_rows(p_rows, m_load, stride_kd, RANK, ROPE, FP8, NUM_CHUNKS, BLOCK_C, BLOCK_R)  # [N, C]
    b_rows = b_next if AHEAD else b_load
    b_s = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
    for i in tl.static_range(NUM_CHUNKS):
        if FP8:
            if not AHEAD:
                b_c += (from_e4m3(b_rows[i], CONVERT, UPCAST),)
            b_g = b_rows[len(b_rows) - NUM_CHUNKS + i][None, :]  # [1, N]
            b_scales += (b_g if CONVERT else b_g * 256.0,)
            b_none = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
            b_s += matmul(b_q[i], tl.trans(b_c[i]), b_none, UPCAST) * b_scales[i]
        else:
            b_c += (b_rows[i],)
            b_s = matmul(b_q[i], tl.trans(b_c[i]), b_s, UPCAST)  # [H, N]
    if ROPE > 0:
        b_s = matmul(b_q[NUM_CHUNKS], tl.trans(b_rows[NUM_CHUNKS]), b_s, UPCAST)
    m_s = m_n[None, :]
    if MASKED:
        m_s = m_s & (o_n[None, :] <= o_last[:, None])
    b_s = tl.where(m_s, b_s * scale, float("-inf"))
    b_p, b_shrink, b_max, b_sum = softmax_step(b_s, b_max, b_sum)
    b_new = ()
    for i in tl.static_range(NUM_CHUNKS):
        b_weights = b_p * b_scales[i] if FP8 else b_p
        b_new += (matmul(b_weights, b_c[i], b_acc[i] * b_shrink[:, None], UPCAST),)
    return b_load if AHEAD else b_next, b_new, b_max, b_sum


@triton.jit
def attend_tiles(
    b_q, p_kv, p_table, scale, start, end, o_last, stride_kp, stride_kn, stride_kd, stride_tp,
    RANK: tl.constexpr, ROPE: tl.constexpr, PAGE_SIZE: tl.constexpr, MASKED: tl.constexpr, FP8: tl.constexpr,
    CONVERT: tl.constexpr, UPCAST: tl.constexpr, HOIST: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Queries over tokens ``start`` to ``end``, tile by tile: the sum of weighted values, the maximum, the sum."""
    b_max = tl.full([BLOCK_H], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_H], tl.float32)
    b_acc = ()
    for _ in tl.static_range(NUM_CHUNKS):
        b_acc += (tl.zeros([BLOCK_H, BLOCK_C], tl.float32),)
    # Bytes of fp8 must pass through registers: where there are enough, those of the next tile are on their way while
    # one is multiplied.
    AHEAD: tl.constexpr = FP8 and BLOCK_H < 64
    b_next = ()
    if AHEAD:
        m_n = start + tl.arange(0, BLOCK_N) < end
        p_rows = find_rows(
            p_kv, p_table, start, m_n, end, stride_tp, stride_kp, stride_kn, PAGE_SIZE, BLOCK_N, True, HOIST == 2
        )  # fmt: skip
        b_next = load_rows(p_rows, m_n, stride_kd, RANK, ROPE, FP8, NUM_CHUNKS, BLOCK_C, BLOCK_R)
    if HOIST > 0:
        for n in range(start, end, BLOCK_N):
            b_next, b_acc, b_max, b_sum = attend_tile(
                n, b_q, b_next, b_acc, b_max, b_sum, p_kv, p_table, scale, end, o_last,
                stride_kp, stride_kn, stride_kd, stride_tp, RANK, ROPE, PAGE_SIZE, MASKED, AHEAD, FP8, CONVERT, UPCAST,
                HOIST, NUM_CHUNKS, BLOCK_H, BLOCK_N, BLOCK_C, BLOCK_R,
            )  # fmt: skip
    else:  # what is the same for all tiles is computed for each again, for want of registers to keep it in
        for n in tl.range(start, end, BLOCK_N, disable_licm=True):
            b_next, b_acc, b_max, b_sum = attend_tile(
                n, b_q, b_next, b_acc, b_max, b_sum, p_kv, p_table, scale, end, o_last,
                stride_kp, stride_kn, stride_kd, stride_tp, RANK, ROPE, PAGE_SIZE, MASKED, AHEAD, FP8, CONVERT, UPCAST,
                HOIST, NUM_CHUNKS, BLOCK_H, BLOCK_N, BLOCK_C, BLOCK_R,
            )  # fmt: skip
    return b_acc, b_max, b_sum


@triton.jit
def attend_piece(
    p_q, p_kv, p_table, p_out, p_lse, p_partial, p_partial_lse, p_parts, scale,
    share, block, sequence, seq_len, tile, stop, offset, tiles, per_share,
    stride_qb, stride_qs, stride_qh, stride_qd, stride_kp, stride_kn, stride_kd, stride_tb, stride_tp,
    NUM_HEADS: tl.constexpr, S_Q: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, PAGE_SIZE: tl.constexpr,
    CAUSAL: tl.constexpr, EVEN: tl.constexpr, CONVERT: tl.constexpr, UPCAST: tl.constexpr, HOIST: tl.constexpr,
    NUM_CHUNKS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One block of rows over tiles ``tile`` to ``stop`` of one sequence, whose ``tiles`` begin at ``offset``."""
    FP8: tl.constexpr = p_kv.dtype.element_ty == tl.uint8
    MASKED: tl.constexpr = CAUSAL and S_Q > 1
    NUM_ROWS: tl.constexpr = NUM_HEADS * S_Q
    b = tl.cast(sequence, tl.int64)
    # The minimum is 0, which the compiler does not know: else it would keep all this in registers from piece to piece.
    o_row = block * BLOCK_H + tl.arange(0, BLOCK_H) + tl.minimum(seq_len, 0)  # [H]
    m_row = o_row < NUM_ROWS
    o_token, o_head = o_row // NUM_HEADS, o_row % NUM_HEADS
    o_last = seq_len - S_Q + o_token  # the last key that a row sees, if CAUSAL
    start, end = (tile - offset) * BLOCK_N, tl.minimum((stop - offset) * BLOCK_N, seq_len)
    p_pages = p_table + b * stride_tb
    unseen = seq_len
    if MASKED:
        unseen = find_unseen(
            p_kv, p_pages, seq_len, start, end, stride_kp, stride_kn, stride_kd, stride_tp,
            S_Q, RANK, ROPE, PAGE_SIZE, FP8, CONVERT, UPCAST, NUM_CHUNKS, BLOCK_C, BLOCK_R,
        )  # fmt: skip
    p_rows = p_q + b * stride_qb + o_token.to(tl.int64) * stride_qs + o_head.to(tl.int64) * stride_qh
    b_q = load_rows(p_rows, m_row, stride_qd, RANK, ROPE, False, NUM_CHUNKS, BLOCK_C, BLOCK_R)
    b_acc, b_max, b_sum = attend_tiles(
        b_q, p_kv, p_pages, scale, start, tl.minimum(end, unseen), o_last, stride_kp, stride_kn, stride_kd, stride_tp,
        RANK, ROPE, PAGE_SIZE, MASKED, FP8, CONVERT, UPCAST, HOIST, NUM_CHUNKS,
        BLOCK_H, BLOCK_N, BLOCK_C, BLOCK_R,
    )  # fmt: skip
    if MASKED:
        b_sum = tl.where(o_last >= unseen, float("nan"), b_sum)

    b_total = tl.where(b_sum == 0.0, 1.0, b_sum)  # of a row that has seen no key: 0 / 1, and -inf + 0
    b_lse = b_max + tl.log2(b_total)
    is_part = ((tile == offset) & (stop == offset + tiles)) == 0
    part = tl.cast(share + sequence if EVEN else share, tl.int64)  # no two programs have the same
    if p_partial is not None and tile == offset:
        tl.store(p_parts + 2 * b, part)
        tl.store(p_parts + 2 * b + 1, tl.cdiv(offset + tiles, per_share) - offset // per_share)
    o_h = tl.arange(0, BLOCK_H)
    o_part, o_whole = part * NUM_ROWS + block * BLOCK_H, b * NUM_ROWS + block * BLOCK_H  # of the first row
    o_row = block * BLOCK_H + tl.minimum(end, 0) + o_h  # anew: 0 again, lest it be kept while tiles are multiplied
    m_row = o_row < NUM_ROWS
    if p_partial is not None and is_part:
        tl.store(p_partial_lse + o_part + o_h, b_lse, mask=m_row)
    else:
        o_lse = (b * NUM_HEADS + o_row % NUM_HEADS) * S_Q + o_row // NUM_HEADS
        tl.store(p_lse + o_lse, b_lse * 0.6931471805599453, mask=m_row)
    for i in tl.static_range(NUM_CHUNKS):
        o_c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        m_out = m_row[:, None] & (o_c < RANK)[None, :]
        o_out = o_h[:, None] * RANK + o_c[None, :]
        b_out = b_acc[i] / b_total[:, None]
        if p_partial is not None and is_part:
            tl.store(p_partial + o_part * RANK + o_out, b_out, mask=m_out)
        else:
            tl.store(p_out + o_whole * RANK + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["batch", "num_parts", "min_tiles", "stride_tb"])
def attend(
    p_q, p_kv, p_table, p_lens, p_out, p_lse, p_partial, p_partial_lse, p_parts, scale, batch, num_parts, min_tiles,
    stride_qb, stride_qs, stride_qh, stride_qd, stride_kp, stride_kn, stride_kd, stride_tb, stride_tp, stride_len,
    NUM_HEADS: tl.constexpr, S_Q: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, PAGE_SIZE: tl.constexpr,
    CAUSAL: tl.constexpr, EVEN: tl.constexpr, NUM_SLOTS: tl.constexpr, CONVERT: tl.constexpr, UPCAST: tl.constexpr,
    HOIST: tl.constexpr, NUM_CHUNKS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One block of rows over one share of the tokens: every tile is loaded once, as key and value.

    If EVEN, the tokens of the whole batch are cut into ``num_parts`` even shares, so that a program may end one
    sequence, attend to others whole, and begin one. Else a program has one part of one sequence: with NUM_SLOTS, the
    longer a sequence the more parts it has, ``num_parts`` in the whole batch at most; without, each has ``num_parts``.
    What a program makes of a sequence that it does not have whole goes to p_partial, and where its parts lie there to
    p_parts. Without p_partial there are only whole ones.
    """
    NUM_BLOCKS: tl.constexpr = (NUM_HEADS * S_Q + BLOCK_H - 1) // BLOCK_H
    share, block = tl.program_id(0) // NUM_BLOCKS, tl.program_id(0) % NUM_BLOCKS
    if EVEN:
        tile, last, sequence, offset, per_share = even_share(
            p_lens, share, num_parts, min_tiles, batch, stride_len, BLOCK_N, 128
        )
        while tile < last:
            seq_len = tl.load(p_lens + tl.cast(sequence, tl.int64) * stride_len).to(tl.int32)
            tiles = tl.maximum(tl.cdiv(seq_len, BLOCK_N), 1)
            stop = tl.minimum(offset + tiles, last)
            attend_piece(
                p_q, p_kv, p_table, p_out, p_lse, p_partial, p_partial_lse, p_parts, scale,
                share, block, sequence, seq_len, tile, stop, offset, tiles, per_share,
                stride_qb, stride_qs, stride_qh, stride_qd, stride_kp, stride_kn, stride_kd, stride_tb, stride_tp,
                NUM_HEADS, S_Q, RANK, ROPE, PAGE_SIZE, CAUSAL, EVEN, CONVERT, UPCAST, HOIST, NUM_CHUNKS,
                BLOCK_H, BLOCK_N, BLOCK_C, BLOCK_R,
            )  # fmt: skip
            tile, offset, sequence = stop, offset + tiles, sequence + 1
    else:
        sequence, seq_len, tile, tiles, per_share = own_part(
            p_lens, share, num_parts, min_tiles, batch, stride_len, NUM_SLOTS, BLOCK_N, 128
        )
        if tile < tiles:
            attend_piece(
                p_q, p_kv, p_table, p_out, p_lse, p_partial, p_partial_lse, p_parts, scale,
                share, block, sequence, seq_len, tile, tl.minimum(tile + per_share, tiles), 0, tiles, per_share,
                stride_qb, stride_qs, stride_qh, stride_qd, stride_kp, stride_kn, stride_kd, stride_tb, stride_tp,
                NUM_HEADS, S_Q, RANK, ROPE, PAGE_SIZE, CAUSAL, EVEN, CONVERT, UPCAST, HOIST, NUM_CHUNKS,
                BLOCK_H, BLOCK_N, BLOCK_C, BLOCK_R,
            )  # fmt: skip


@triton.jit
def merge(
    p_partial, p_partial_lse, p_parts, p_out, p_lse,
    NUM_HEADS: tl.constexpr, S_Q: tl.constexpr, RANK: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_C numbers of BLOCK_H rows of one sequence. Each partial result weighs 2 to the power of its log-sum-exp.

    BLOCK_P parts are taken at a time, so that as many loads are under way together.
    """
    NUM_ROWS: tl.constexpr = NUM_HEADS * S_Q
    NUM_BLOCKS: tl.constexpr = (NUM_ROWS + BLOCK_H - 1) // BLOCK_H
    b = (tl.program_id(0) // NUM_BLOCKS).to(tl.int64)
    first, num_parts = tl.load(p_parts + 2 * b), tl.load(p_parts + 2 * b + 1)
    if num_parts <= 1:  # ``attend`` has written the result
        return

    o_row = (tl.program_id(0) % NUM_BLOCKS) * BLOCK_H + tl.arange(0, BLOCK_H)
    m_row = o_row < NUM_ROWS
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = m_row[:, None] & (o_c < RANK)[None, :]  # [H, C]
    b_largest = tl.full([BLOCK_H], float("-inf"), tl.float32)
    b_total = tl.zeros([BLOCK_H], tl.float32)
    b_acc = tl.zeros([BLOCK_H, BLOCK_C], tl.float32)
    for i in range(0, num_parts, BLOCK_P):
        o_part = i + tl.arange(0, BLOCK_P)
        m_part = o_part < num_parts
        o_partial = (first + o_part).to(tl.int64)[:, None] * NUM_ROWS + o_row[None, :]  # [P, H]
        m_lse = m_part[:, None] & m_row[None, :]
        b_lse = tl.load(p_partial_lse + o_partial, mask=m_lse, other=float("-inf"))
        o_out = o_partial[:, :, None] * RANK + o_c[None, None, :]
        b_part = tl.load(p_partial + o_out, mask=m_part[:, None, None] & m_c[None, :, :], other=0.0)  # [P, H, C]
        b_new = tl.maximum(b_largest, tl.max(b_lse, 0))  # [H]
        b_safe = tl.where(b_new == float("-inf"), 0.0, b_new)  # no key yet for this row: -inf - -inf is NaN
        b_weight, b_shrink = tl.exp2(b_lse - b_safe[None, :]), tl.exp2(b_largest - b_safe)
        b_acc = b_acc * b_shrink[:, None] + tl.sum(b_part * b_weight[:, :, None], 0)
        b_total = b_total * b_shrink + tl.sum(b_weight, 0)
        b_largest = b_new

    b_total = tl.where(b_total == 0.0, 1.0, b_total)
    if tl.program_id(1) == 0:
        b_lse = (b_largest + tl.log2(b_total)) * 0.6931471805599453
        tl.store(p_lse + (b * NUM_HEADS + o_row % NUM_HEADS) * S_Q + o_row // NUM_HEADS, b_lse, mask=m_row)
    b_out = (b_acc / b_total[:, None]).to(p_out.dtype.element_ty)
    tl.store(p_out + (b * NUM_ROWS + o_row)[:, None] * RANK + o_c[None, :], b_out, mask=m_c)
