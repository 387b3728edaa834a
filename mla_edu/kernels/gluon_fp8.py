"""The decode step over the fp8 cache in Gluon, for few rows on Hopper GPUs: ``attend_fp8`` is stage 1.

Bytes must pass through registers to become numbers of bf16. Plain Triton holds them there in the layouts of several
operations at once; here a byte is loaded, converted and stored to shared memory by one thread. The bytes of the next
tile are on their way while one is converted and multiplied. In the products the tokens take the place of the rows,
which are too few for Hopper's tensor cores: S^T = K Q^T and O^T += V^T P^T, as in FlashMLA-ETAP.

The names and the letters are those of ``mla_edu.kernels.gluon``; a pair of its tiles is one tile here, and each half of
it lies in one page. The cache comes as words of four bytes, 164 for a token: 128 of e4m3, 4 scales in fp32, 32 of two
rotary numbers each. ``w_`` is shared memory as words. In the comments H is the rows, N the 128 tokens of a tile, C the
512 numbers of the latent.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from mla_edu.kernels.gluon_shares import find_result, find_share, find_unseen, store_lse, store_out

# Four numbers of e4m3 in a word, exact in fp16 and fp32, times an fp32: two words of bf16. ``rows.from_e4m3`` takes
# every byte in a register of its own.
CONVERT = gl.constexpr("""{
.reg .b16 l, h, a, b, c, d;
.reg .b32 x, y;
.reg .f32 p, q, r, s;
mov.b32 {l, h}, $2;
cvt.rn.f16x2.e4m3x2 x, l;
cvt.rn.f16x2.e4m3x2 y, h;
mov.b32 {a, b}, x;
mov.b32 {c, d}, y;
cvt.f32.f16 p, a;
cvt.f32.f16 q, b;
cvt.f32.f16 r, c;
cvt.f32.f16 s, d;
mul.f32 p, p, $3;
mul.f32 q, q, $3;
mul.f32 r, r, $3;
mul.f32 s, s, $3;
cvt.rn.bf16x2.f32 $0, q, p;
cvt.rn.bf16x2.f32 $1, s, r;
}""")


@gluon.jit
def find_half(p_pages, n, end, stride_tp, stride_kp, PAGE_SIZE: gl.constexpr):
    """Where the 64 tokens from token n on lie, or the last ones, if those lie past the end.

    Gives their first word, and which of them is the last before the end.
    """
    first = gl.minimum(n, (end - 1) // 64 * 64)
    page = gl.load(p_pages + first // PAGE_SIZE * stride_tp)
    return page.to(gl.int64) * stride_kp + first % PAGE_SIZE * 164, end - 1 - first


@gluon.jit
def find_tile(p_pages, n, end, stride_tp, stride_kp, PAGE_SIZE: gl.constexpr):
    """Both halves of the tile at token n."""
    left = find_half(p_pages, n, end, stride_tp, stride_kp, PAGE_SIZE)
    return left, find_half(p_pages, n + 64, end, stride_tp, stride_kp, PAGE_SIZE)


@gluon.jit
def load_words(p_kv, half, FIRST: gl.constexpr, PER_THREAD: gl.constexpr):
    """32 words of each of 64 tokens, from word FIRST on.

    Past the end they are those of the last token, which is finite if it is seen, and there has a weight of 0.
    """
    SPREAD: gl.constexpr = gl.BlockedLayout([1, PER_THREAD], [4, 8], [gl.num_warps(), 1], [1, 0])
    o_n = gl.minimum(gl.arange(0, 64, layout=gl.SliceLayout(1, SPREAD)), half[1])
    o_word = FIRST + gl.arange(0, 32, layout=gl.SliceLayout(0, SPREAD))
    return gl.load(p_kv + half[0] + (gl.expand_dims(o_n * 164, 1) + gl.expand_dims(o_word, 0)))


@gluon.jit
def load_group(p_kv, p_scales, half, GROUP: gl.constexpr):
    """128 numbers of 64 tokens, as words, and their scales.

    A thread has eight bytes of 64 side by side, so that eight threads store 64 numbers of bf16: all banks once.
    """
    SPREAD: gl.constexpr = gl.BlockedLayout([1, 2], [4, 8], [gl.num_warps(), 1], [1, 0])
    o_n = gl.minimum(gl.arange(0, 64, layout=gl.SliceLayout(1, SPREAD)), half[1])
    b_scales = gl.load(p_scales + half[0] + (o_n * 164 + (128 + GROUP)))
    return load_words(p_kv, half, 32 * GROUP, 2), b_scales


@gluon.jit
def to_bf16(group):
    """The numbers of a group times their scales, two in a word."""
    b_words, b_scales = group
    b_low, b_high = gl.inline_asm_elementwise(
        CONVERT, "=r,=r,r,f", [b_words, gl.expand_dims(b_scales, 1)], dtype=(gl.int32, gl.int32), is_pure=True, pack=1
    )
    return gl.reshape(gl.join(b_low, b_high), [64, 64])


@gluon.jit
def store_queries(p_row, m_row, s_q, s_q_rotary, QUERY: gl.constexpr):
    """Rows of queries to shared memory."""
    for i in gl.static_range(9):
        o_d = gl.expand_dims(64 * i + gl.arange(0, 64, layout=gl.SliceLayout(0, QUERY)), 0)
        s_part = s_q.slice(64 * i, 64, dim=1) if i < 8 else s_q_rotary
        s_part.store(gl.load(gl.expand_dims(p_row, 1) + o_d, mask=gl.expand_dims(m_row, 1), other=0.0))


@gluon.jit
def attend_fp8(
    p_q, p_kv, p_scales, p_table, p_lens, p_out, p_lse, p_partial, p_partial_lse, p_parts, scale, batch, num_parts,
    min_pairs, stride_qh, stride_kp, stride_tb, stride_tp, stride_len,
    NUM_HEADS: gl.constexpr, S_Q: gl.constexpr, PAGE_SIZE: gl.constexpr, CAUSAL: gl.constexpr, EVEN: gl.constexpr,
    BLOCK_H: gl.constexpr,
):  # fmt: skip
    """All rows over one share of the tokens, sequence by sequence: see ``kernel.attend``.

    p_kv is the cache as words, and stride_kp counts them; p_scales is the same memory as fp32.
    """
    NUM_ROWS: gl.constexpr = NUM_HEADS * S_Q
    MASKED: gl.constexpr = CAUSAL and S_Q > 1
    SWIZZLED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    WORDS: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=32, rank=2)
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_H, 16])
    TOKEN: gl.constexpr = gl.SliceLayout(1, SCORES)
    ROW: gl.constexpr = gl.SliceLayout(0, SCORES)
    QUERY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    share = gl.program_id(0)
    pair, last, sequence, offset, per_share = find_share(p_lens, share, num_parts, min_pairs, batch, stride_len, EVEN)

    # One of each, with an index for the zero that ``gluon.attend_half`` has too.
    s_q = gl.allocate_shared_memory(gl.bfloat16, [1, BLOCK_H, 512], SWIZZLED)
    s_q_rotary = gl.allocate_shared_memory(gl.bfloat16, [1, BLOCK_H, 64], SWIZZLED)
    s_kv = gl.allocate_shared_memory(gl.bfloat16, [1, 128, 512], SWIZZLED)
    s_rotary = gl.allocate_shared_memory(gl.bfloat16, [1, 128, 64], SWIZZLED)
    s_weights = gl.allocate_shared_memory(gl.bfloat16, [1, BLOCK_H, 128], SWIZZLED)
    w_kv = s_kv.index(0)._reinterpret(gl.int32, [128, 256], WORDS)
    w_rotary = s_rotary.index(0)._reinterpret(gl.int32, [128, 32], WORDS)

    o_n = gl.arange(0, 128, layout=TOKEN)
    while pair < last:
        b = sequence.to(gl.int64)
        seq_len = gl.load(p_lens + b * stride_len).to(gl.int32)
        pairs = gl.maximum((seq_len + 127) // 128, 1)
        stop = gl.minimum(offset + pairs, last)
        start, end = (pair - offset) * 128, gl.minimum((stop - offset) * 128, seq_len)
        p_pages = p_table + b * stride_tb
        # The minimum is 0: else the compiler would keep all this in registers, too, from piece to piece.
        o_q = gl.arange(0, BLOCK_H, layout=gl.SliceLayout(1, QUERY)) + gl.minimum(seq_len, 0)
        store_queries(
            p_q + (b * NUM_ROWS + o_q) * stride_qh, o_q < NUM_ROWS, s_q.index(0), s_q_rotary.index(0), QUERY
        )  # fmt: skip
        unseen = seq_len
        b_end = gl.full([BLOCK_H], end, gl.int32, ROW)  # one after the last key that a row sees
        if MASKED:
            unseen = find_unseen(
                p_kv, p_pages, seq_len, start, end, stride_tp, stride_kp, 164, S_Q, PAGE_SIZE
            )  # fmt: skip
            end = gl.minimum(end, unseen)
            o_h = gl.arange(0, BLOCK_H, layout=ROW) + gl.minimum(seq_len, 0)
            b_end = gl.minimum(gl.full([BLOCK_H], end, gl.int32, ROW), seq_len - S_Q + 1 + o_h // NUM_HEADS)

        b_acc = gl.zeros([512, BLOCK_H], gl.float32, SCORES)  # [C, H]
        b_max = gl.full([BLOCK_H], float("-inf"), gl.float32, ROW)
        b_sums = gl.zeros([128, BLOCK_H], gl.float32, SCORES)  # [N, H], added up at the end
        if start < end:
            tile = find_tile(p_pages, start, end, stride_tp, stride_kp, PAGE_SIZE)
            ahead = ()
            for k in gl.static_range(8):
                ahead += (load_group(p_kv, p_scales, tile[k % 2], k // 2),)
            b_rotary0, b_rotary1 = load_words(p_kv, tile[0], 132, 4), load_words(p_kv, tile[1], 132, 4)
            tile = find_tile(p_pages, start + 128, end, stride_tp, stride_kp, PAGE_SIZE)
            for n in range(start, end, 128):
                zero = gl.minimum(tile[0][1], 0)
                s_keys, s_queries = s_kv.index(zero), s_q.index(zero).permute((1, 0))
                b_s = gl.zeros([128, BLOCK_H], gl.float32, SCORES)  # [N, H]
                loaded = ()
                for k in gl.static_range(8):
                    w_kv.slice(k // 2 * 64, 64, dim=1).slice(k % 2 * 64, 64, dim=0).store(to_bf16(ahead[k]))
                    loaded += (load_group(p_kv, p_scales, tile[k % 2], k // 2),)
                    if k == 3:
                        fence_async_shared()
                        b_s = warpgroup_mma(
                            s_keys.slice(0, 256, dim=1), s_queries.slice(0, 256, dim=0), b_s, use_acc=False,
                            is_async=True,
                        )  # fmt: skip
                        w_rotary.slice(0, 64, dim=0).store(b_rotary0)
                        w_rotary.slice(64, 64, dim=0).store(b_rotary1)
                        b_rotary0, b_rotary1 = load_words(p_kv, tile[0], 132, 4), load_words(p_kv, tile[1], 132, 4)
                ahead = loaded
                fence_async_shared()
                b_s = warpgroup_mma(
                    s_keys.slice(256, 256, dim=1), s_queries.slice(256, 256, dim=0), b_s, is_async=True
                )  # fmt: skip
                b_s = warpgroup_mma(s_rotary.index(zero), s_q_rotary.index(zero).permute((1, 0)), b_s, is_async=True)
                tile = find_tile(p_pages, n + 256, end, stride_tp, stride_kp, PAGE_SIZE)
                b_s = warpgroup_mma_wait(0, deps=(b_s,))
                m_s = gl.expand_dims(n + o_n, 1) < gl.expand_dims(b_end, 0)
                b_s = gl.where(m_s, b_s * scale, float("-inf"))
                b_new = gl.maximum(b_max, gl.max(b_s, 0))
                b_safe = gl.where(b_new == float("-inf"), 0.0, b_new)  # a row that has seen no key: -inf - -inf is NaN
                b_p = gl.exp2(b_s - gl.expand_dims(b_safe, 0))
                b_shrink = gl.expand_dims(gl.exp2(b_max - b_safe), 0)
                b_sums = b_sums * b_shrink + b_p
                b_max = b_new
                s_weights.index(0).permute((1, 0)).store(b_p.to(gl.bfloat16))
                fence_async_shared()
                s_p = s_weights.index(zero).permute((1, 0))
                b_acc = warpgroup_mma(s_keys.permute((1, 0)), s_p, b_acc * b_shrink, is_async=True)
                b_acc = warpgroup_mma_wait(0, deps=(b_acc,))

        b_sum = gl.sum(b_sums, 0)
        o_h = gl.arange(0, BLOCK_H, layout=ROW) + gl.minimum(end, 0)
        if MASKED:
            b_sum = gl.where(seq_len - S_Q + 1 + o_h // NUM_HEADS > unseen, float("nan"), b_sum)
        b_total = gl.where(b_sum == 0.0, 1.0, b_sum)  # of a row that has seen no key: 0 / 1, and -inf + 0
        b_out = b_acc * gl.expand_dims(1.0 / b_total, 0)
        is_part, result = find_result(p_parts, share, sequence, pair, stop, offset, pairs, per_share, EVEN)
        results = (p_out, p_lse, p_partial, p_partial_lse)
        o_c = gl.expand_dims(gl.arange(0, 512, layout=TOKEN), 1)
        o_out = result * NUM_ROWS * 512 + (gl.expand_dims(o_h * 512, 0) + o_c)
        store_out(results, is_part, o_out, b_out, gl.expand_dims(o_h < NUM_ROWS, 0))
        store_lse(results, is_part, result * NUM_ROWS, o_h, b_max + gl.log2(b_total), NUM_HEADS, S_Q)
        pair, offset, sequence = stop, offset + pairs, sequence + 1
