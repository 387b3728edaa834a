"""The decode step in Gluon, for 64 rows and more on Hopper GPUs: ``seesaw`` is stage 1; stage 2 is ``kernel.merge``.

64 rows of sums, 512 numbers wide in fp32, do not fit into the registers of one group of four warps; and two groups that
hold a half each must not both compute the scores. So they take turns, as in FlashMLA, whose idea this is. Of every
pair of tiles, group 0 computes the scores and the weights of the first, group 1 of the second; each multiplies both
weights by its own half of the latent. The weights pass from one to the other through shared memory, in the place of
the tile's rotary part, which only the scores need. A third group, one warp, orders the copies of the tiles:

.. code-block:: text

    loader    waits until a quarter of the pair is free, then has it copied
    group 0   scores 0 | maximum 0 ->            | weights 0 x left 0,  weights 1 x left 1
    group 1   scores 1 |   -> maximum of both -> | weights 1 x right 1, weights 0 x right 0

``p_`` is a pointer, ``s_`` shared memory, ``b_`` a block of numbers in registers, ``o_`` offsets, ``m_`` a mask. The
comments give shapes: H = 64 rows of queries, N = 64 tokens, C = 256 numbers, half of the latent.

Barriers, each completed once for every pair: ``loaded`` and ``freed`` for the quarters of a pair (left 0, right 0,
left 1, right 1; a rotary part goes with the half that is needed last), ``maximum``, ``weights_0``, ``weights_1``; and
for every piece ``queries``, ``sum_0``, ``sum_1``. A wait names the parity of the turn that it waits for.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from mla_edu.kernels.gluon_shares import find_result, find_share, find_unseen, store_lse, store_out


@gluon.jit
def zero_rows(s_half, first):
    """Rows of half a tile from ``first`` on become zero: what lies there may be NaN, and 0 * NaN is NaN."""
    SPREAD: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    m_keep = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, SPREAD)) < first, 1)
    for i in gl.static_range(4):
        s_part = s_half.slice(i * 64, 64, dim=1)
        b_part = s_part.load(SPREAD)  # [N, C / 4]
        s_part.store(gl.where(m_keep, b_part, gl.zeros_like(b_part)))


@gluon.jit
def columns(s_l, s_r, s_p, FIRST: gl.constexpr, WIDTH: gl.constexpr):
    """WIDTH columns from number 64 * FIRST on of the left half, the right half and the rotary part, side by side."""
    if FIRST < 4:
        return s_l.slice(FIRST * 64, WIDTH, dim=1)
    elif FIRST < 8:
        return s_r.slice((FIRST - 4) * 64, WIDTH, dim=1)
    else:
        return s_p


@gluon.jit
def load_tiles(sources, buffers, barriers, work, o_query, stride_tp, page_rows, PAGE_SIZE: gl.constexpr):
    """The loader: the queries, then the tiles, each half of each as soon as both groups are done with the last."""
    queries, cache, p_pages = sources
    start, end, turn, piece = work
    s_ql, s_qr, s_qp, s_l, s_r, s_p, s_max0, s_max1, s_sum0, s_sum1 = buffers
    loaded, freed, weights_0, weights_1, asked, sum_0, sum_1 = barriers
    pairs = (end - start + 127) // 128
    mbarrier.expect(asked, 64 * 576 * 2)
    for j in gl.static_range(9):
        s_part = columns(s_ql.index(0), s_qr.index(0), s_qp.index(0), j, 64)
        tma.async_copy_global_to_shared(queries, [o_query, 64 * j], asked, s_part)
    for i in range(pairs):
        free = (turn + i + 1) & 1
        n0 = start + 128 * i
        n1 = gl.minimum(n0 + 64, (end - 1) // 64 * 64)  # if the last pair has one tile, this is a copy of it
        page0 = gl.load(p_pages + n0 // PAGE_SIZE * stride_tp).to(gl.int32)
        page1 = gl.load(p_pages + n1 // PAGE_SIZE * stride_tp).to(gl.int32)
        row0, row1 = page0 * page_rows + n0 % PAGE_SIZE, page1 * page_rows + n1 % PAGE_SIZE
        for k in gl.static_range(2):
            row = row1 if k else row0
            for j in gl.static_range(9):
                if j == 0 or j == 4:
                    mbarrier.wait(freed.index(2 * k + j // 4), free)
                bar = loaded.index(4 * k + min(j // 2, 3))
                if j % 2 == 0 and j < 8:
                    mbarrier.expect(bar, 64 * 192 * 2 if j == 6 else 64 * 128 * 2)
                s_part = columns(s_l.index(k), s_r.index(k), s_p.index(k), j, 64)
                tma.async_copy_global_to_shared(cache, [row, 64 * j], bar, s_part)


@gluon.jit
def attend_half(
    buffers, barriers, results, place, work, sees, scale,
    NUM_HEADS: gl.constexpr, S_Q: gl.constexpr, MASKED: gl.constexpr, SIDE: gl.constexpr,
):  # fmt: skip
    """Group SIDE: scores and weights of its tile of each pair, and its half of the output."""
    start, end, turn, piece = work
    first_sees, unseen = sees
    o_row, o_result, is_part = place
    s_ql, s_qr, s_qp, s_l, s_r, s_p, s_max0, s_max1, s_sum0, s_sum1 = buffers
    loaded, freed, weights_0, weights_1, asked, sum_0, sum_1 = barriers
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    SUM_ROW: gl.constexpr = gl.SliceLayout(1, SUMS)
    b_acc = gl.zeros([64, 256], gl.float32, SUMS)  # [H, C]
    b_max = gl.full([64], float("-inf"), gl.float32, ROW)  # [H]
    b_sum = gl.zeros([64], gl.float32, ROW)
    o_h = gl.arange(0, 64, layout=ROW)
    o_n = gl.arange(0, 64, layout=gl.SliceLayout(0, SCORES))
    b_end = gl.full([64], end, gl.int32, ROW)
    if MASKED:
        b_end = gl.minimum(b_end, first_sees + (o_row + o_h) // NUM_HEADS)  # one after the last key that a row sees
    pairs = (end - start + 127) // 128
    mbarrier.wait(asked, piece & 1)
    for i in range(pairs):
        done = (turn + i) & 1
        n = start + 128 * i + 64 * SIDE
        # Always 0, which the compiler does not know. Else it would find out once, and keep in registers that there are
        # not, where the operands of all products lie.
        zero = gl.minimum(n, 0)
        s_left, s_right, s_rotary = s_l.index(SIDE + zero), s_r.index(SIDE + zero), s_p.index(SIDE + zero)
        b_s = gl.zeros([64, 64], gl.float32, SCORES)  # [H, N]
        for j in gl.static_range(5):
            if j < 4:
                mbarrier.wait(loaded.index(4 * SIDE + j), done)
            s_q = columns(s_ql.index(zero), s_qr.index(zero), s_qp.index(zero), 2 * j, 128)
            s_k = columns(s_left, s_right, s_rotary, 2 * j, 128)
            b_s = warpgroup_mma(s_q, s_k.permute((1, 0)), b_s, use_acc=j > 0, is_async=True)
        b_s = warpgroup_mma_wait(0, deps=(b_s,))
        if end - n < 64:
            zero_rows(s_left, end - n)
            zero_rows(s_right, end - n)
        b_s = gl.where(gl.expand_dims(n + o_n, 0) < gl.expand_dims(b_end, 1), b_s * scale, float("-inf"))
        if SIDE == 1:
            mbarrier.wait(weights_0, done)
            b_new = s_max0.load(ROW)
            b_safe = gl.where(b_new == float("-inf"), 0.0, b_new)
            b_shrink = gl.exp2(b_max - b_safe)
            b_acc = b_acc * gl.expand_dims(gl.convert_layout(b_shrink, SUM_ROW), 1)
            b_acc = warpgroup_mma(s_p.index(0), s_r.index(0), b_acc, is_async=True)
            b_sum = b_sum * b_shrink
            b_max = b_new
        b_new = gl.maximum(b_max, gl.max(b_s, 1))
        b_safe = gl.where(b_new == float("-inf"), 0.0, b_new)  # a row that has seen no key: -inf - -inf is NaN
        b_p = gl.exp2(b_s - gl.expand_dims(b_safe, 1))  # [H, N]
        b_shrink = gl.exp2(b_max - b_safe)
        b_sum = b_sum * b_shrink + gl.sum(b_p, 1)
        b_max = b_new
        b_weights = b_p.to(gl.bfloat16)
        s_rotary.store(b_weights)
        if SIDE == 0:
            s_max0.store(b_max)
            fence_async_shared()
            mbarrier.arrive(weights_0, count=1)
        else:
            s_max1.store(b_max)
            fence_async_shared()
            mbarrier.arrive(weights_1, count=1)
            b_acc = warpgroup_mma_wait(0, deps=(b_acc,))
            mbarrier.arrive(freed.index(1), count=1)
        b_acc = b_acc * gl.expand_dims(gl.convert_layout(b_shrink, SUM_ROW), 1)
        if SIDE == 0:
            b_acc = warpgroup_mma(gl.convert_layout(b_weights, WEIGHTS), s_left, b_acc, is_async=True)
            mbarrier.wait(weights_1, done)
            b_new = s_max1.load(ROW)
            b_safe = gl.where(b_new == float("-inf"), 0.0, b_new)
            b_shrink = gl.exp2(b_max - b_safe)
            b_sum = b_sum * b_shrink
            b_max = b_new
            b_acc = warpgroup_mma_wait(0, deps=(b_acc,))
            mbarrier.arrive(freed.index(0), count=1)
            b_acc = b_acc * gl.expand_dims(gl.convert_layout(b_shrink, SUM_ROW), 1)
            b_acc = warpgroup_mma(s_p.index(1), s_l.index(1), b_acc, is_async=True)
            b_acc = warpgroup_mma_wait(0, deps=(b_acc,))
            mbarrier.arrive(freed.index(2), count=1)
        else:
            b_acc = warpgroup_mma(gl.convert_layout(b_weights, WEIGHTS), s_right, b_acc, is_async=True)
            b_acc = warpgroup_mma_wait(0, deps=(b_acc,))
            mbarrier.arrive(freed.index(3), count=1)

    if SIDE == 0:
        s_sum0.store(b_sum)
        mbarrier.arrive(sum_0, count=1)
        mbarrier.wait(sum_1, piece & 1)
        b_sum += s_sum1.load(ROW)
    else:
        s_sum1.store(b_sum)
        mbarrier.arrive(sum_1, count=1)
        mbarrier.wait(sum_0, piece & 1)
        b_sum += s_sum0.load(ROW)
    if MASKED:
        b_sum = gl.where(first_sees + (o_row + o_h) // NUM_HEADS > unseen, float("nan"), b_sum)
    b_total = gl.where(b_sum == 0.0, 1.0, b_sum)  # of a row that has seen no key: 0 / 1, and -inf + 0
    o_sum = gl.arange(0, 64, layout=SUM_ROW)
    o_c = SIDE * 256 + gl.arange(0, 256, layout=gl.SliceLayout(0, SUMS))
    o_out = (o_result + o_row).to(gl.int64) * 512 + gl.expand_dims(o_sum * 512, 1) + gl.expand_dims(o_c, 0)
    b_out = b_acc * gl.expand_dims(gl.convert_layout(1.0 / b_total, SUM_ROW), 1)
    store_out(results, is_part, o_out, b_out, gl.expand_dims(o_row + o_sum < NUM_HEADS * S_Q, 1))
    if SIDE == 0:
        store_lse(results, is_part, o_result, o_row + o_h, b_max + gl.log2(b_total), NUM_HEADS, S_Q)


@gluon.jit
def seesaw(
    queries, cache, p_kv, p_table, p_lens, p_out, p_lse, p_partial, p_partial_lse, p_parts,
    scale, batch, num_parts, min_pairs, page_rows, stride_kp, stride_kn, stride_tb, stride_tp, stride_len,
    NUM_HEADS: gl.constexpr, S_Q: gl.constexpr, PAGE_SIZE: gl.constexpr, CAUSAL: gl.constexpr, EVEN: gl.constexpr,
):  # fmt: skip
    """One block of rows over one share of the tokens, sequence by sequence: see ``kernel.attend``."""
    NUM_ROWS: gl.constexpr = NUM_HEADS * S_Q
    NUM_BLOCKS: gl.constexpr = (NUM_ROWS + 63) // 64
    MASKED: gl.constexpr = CAUSAL and S_Q > 1
    LEFT: gl.constexpr = 0
    RIGHT: gl.constexpr = 1
    share, o_row = gl.program_id(0) // NUM_BLOCKS, gl.program_id(0) % NUM_BLOCKS * 64
    pair, last, sequence, offset, per_share = find_share(p_lens, share, num_parts, min_pairs, batch, stride_len, EVEN)

    SWIZZLED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    s_ql = gl.allocate_shared_memory(gl.bfloat16, [1, 64, 256], SWIZZLED)  # queries: left and right half, rotary part
    s_qr = gl.allocate_shared_memory(gl.bfloat16, [1, 64, 256], SWIZZLED)
    s_qp = gl.allocate_shared_memory(gl.bfloat16, [1, 64, 64], SWIZZLED)
    s_l = gl.allocate_shared_memory(gl.bfloat16, [2, 64, 256], SWIZZLED)  # the same of a pair of tiles
    s_r = gl.allocate_shared_memory(gl.bfloat16, [2, 64, 256], SWIZZLED)
    s_p = gl.allocate_shared_memory(gl.bfloat16, [2, 64, 64], SWIZZLED)
    s_max0 = gl.allocate_shared_memory(gl.float32, [64], PLAIN)  # what a group tells the other: its maxima, its sums
    s_max1 = gl.allocate_shared_memory(gl.float32, [64], PLAIN)
    s_sum0 = gl.allocate_shared_memory(gl.float32, [64], PLAIN)
    s_sum1 = gl.allocate_shared_memory(gl.float32, [64], PLAIN)
    buffers = (s_ql, s_qr, s_qp, s_l, s_r, s_p, s_max0, s_max1, s_sum0, s_sum1)
    loaded = gl.allocate_shared_memory(gl.int64, [8, 1], mbarrier.MBarrierLayout())
    freed = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    others = gl.allocate_shared_memory(gl.int64, [5, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(8):
        mbarrier.init(loaded.index(i), count=1)
    for i in gl.static_range(4):
        mbarrier.init(freed.index(i), count=1)
    for i in gl.static_range(5):
        mbarrier.init(others.index(i), count=1)
    barriers = (loaded, freed, others.index(0), others.index(1), others.index(2), others.index(3), others.index(4))

    turn, piece = 0, 0
    while pair < last:
        b = sequence.to(gl.int64)
        seq_len = gl.load(p_lens + b * stride_len).to(gl.int32)
        pairs = gl.maximum((seq_len + 127) // 128, 1)
        stop = gl.minimum(offset + pairs, last)
        start, end = (pair - offset) * 128, gl.minimum((stop - offset) * 128, seq_len)
        p_pages = p_table + b * stride_tb
        unseen = seq_len
        if MASKED:
            unseen = find_unseen(
                p_kv, p_pages, seq_len, start, end, stride_tp, stride_kp, stride_kn, S_Q, PAGE_SIZE
            )  # fmt: skip
            end = gl.minimum(end, unseen)
        o_query = sequence * NUM_ROWS + o_row
        is_part, result = find_result(p_parts, share, sequence, pair, stop, offset, pairs, per_share, EVEN)
        results = (p_out, p_lse, p_partial, p_partial_lse)
        work = (start, end, turn, piece)
        sees = (seq_len - S_Q + 1, unseen)
        place = (o_row, result * NUM_ROWS, is_part)
        sources = (queries, cache, p_pages)
        gl.warp_specialize(
            [
                (attend_half, (buffers, barriers, results, place, work, sees, scale, NUM_HEADS, S_Q, MASKED, LEFT)),
                (attend_half, (buffers, barriers, results, place, work, sees, scale, NUM_HEADS, S_Q, MASKED, RIGHT)),
                (load_tiles, (sources, buffers, barriers, work, o_query, stride_tp, page_rows, PAGE_SIZE)),
            ],
            [4, 1],
            [232, 24],
        )
        turn += gl.maximum((end - start + 127) // 128, 0)
        piece += 1
        pair, offset, sequence = stop, offset + pairs, sequence + 1
