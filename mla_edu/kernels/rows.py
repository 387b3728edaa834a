"""How the decode kernel reads: which tokens are a program's, where their rows lie, and what bytes of fp8 mean.

The names and the letters are those of ``mla_edu.kernels.kernel``, which is built of these functions.
"""

import triton
import triton.language as tl


@triton.jit
def count_tiles(p_lens, o_b, batch, stride_len, BLOCK_N: tl.constexpr):
    """Tiles of sequences: one at least, since a sequence without tokens has a result too; 0 past the batch."""
    lens = tl.load(p_lens + tl.cast(o_b, tl.int64) * stride_len, mask=o_b < batch, other=0).to(tl.int32)
    return tl.where(o_b < batch, tl.maximum(tl.cdiv(lens, BLOCK_N), 1), 0)


@triton.jit
def even_share(p_lens, share, num_shares, min_tiles, batch, stride_len, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr):
    """An even share of the tiles of all sequences, laid end to end: from the lengths on the device, never by the host.

    Gives its first tile and the one after its last; its first sequence and where that one's tiles begin; and how many
    tiles a share has.
    """
    o_b = tl.arange(0, BLOCK_B)
    total = 0
    for b in range(0, batch, BLOCK_B):
        total += tl.sum(count_tiles(p_lens, b + o_b, batch, stride_len, BLOCK_N), 0)
    per_share = tl.maximum(tl.cdiv(total, num_shares), min_tiles)
    tile = share * per_share
    sequence, offset, before = 0, 0, 0
    for b in range(0, batch, BLOCK_B):
        b_tiles = count_tiles(p_lens, b + o_b, batch, stride_len, BLOCK_N)
        b_end = before + tl.cumsum(b_tiles, 0)
        m_before = (b_end <= tile) & (b + o_b < batch)  # sequences that end where this share begins, or before
        sequence += tl.sum(m_before.to(tl.int32), 0)
        offset = tl.maximum(offset, tl.max(tl.where(m_before, b_end, 0), 0))
        before += tl.sum(b_tiles, 0)
    return tile, tl.minimum(tile + per_share, total), sequence, offset, per_share


@triton.jit
def tiles_of_part(tiles, share):
    """Tiles of each part but the last, if a sequence of ``tiles`` is cut into as few as have at most ``share`` each."""
    return tl.cdiv(tiles, tl.maximum(tl.cdiv(tiles, share), 1))


@triton.jit
def choose_share(
    p_lens, num_parts, min_tiles, batch, stride_len, NUM_SLOTS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):  # fmt: skip
    """The most tiles that a part may have, for the soonest end: ``plan.choose_share`` on the device."""
    o_b = tl.arange(0, BLOCK_B)
    total = 0
    for b in range(0, batch, BLOCK_B):
        total += tl.sum(count_tiles(p_lens, b + o_b, batch, stride_len, BLOCK_N), 0)
    fewest = tl.maximum(tl.cdiv(total, num_parts), min_tiles)
    o_s = tl.arange(0, 32)
    b_share = tl.ceil(fewest * tl.exp2(o_s / 8.0)).to(tl.int32)  # [S]: from fewest to 13.5 times as many
    b_share = tl.where(o_s == 31, total, b_share)  # for whole sequences there is always room
    b_parts, b_longest = tl.zeros([32], tl.int32), tl.zeros([32], tl.int32)
    for b in range(0, batch, BLOCK_B):
        b_tiles = count_tiles(p_lens, b + o_b, batch, stride_len, BLOCK_N)[None, :]
        b_each = tiles_of_part(b_tiles, b_share[:, None])  # [S, B]
        b_parts += tl.sum(tl.cdiv(b_tiles, tl.maximum(b_each, 1)), 1)
        b_longest = tl.maximum(b_longest, tl.max(b_each, 1))
    b_rounds = tl.cdiv(b_parts, NUM_SLOTS) * (b_longest + 2.0)
    b_end = tl.minimum(b_rounds, (total + 2.0 * b_parts) / NUM_SLOTS + b_longest)
    b_end = tl.where(b_parts <= num_parts, b_end, float("inf"))
    return tl.max(tl.where(b_end == tl.min(b_end, 0), b_share, 0), 0)


@triton.jit
def find_sequence(p_lens, part, share, batch, stride_len, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr):
    """The sequence that part number ``part`` of a batch is of, or ``batch`` if there are fewer; and its first part."""
    o_b = tl.arange(0, BLOCK_B)
    sequence, first, before = 0, 0, 0
    for b in range(0, batch, BLOCK_B):
        b_tiles = count_tiles(p_lens, b + o_b, batch, stride_len, BLOCK_N)
        b_parts = tl.cdiv(b_tiles, tl.maximum(tiles_of_part(b_tiles, share), 1))
        b_end = before + tl.cumsum(b_parts, 0)
        m_before = (b_end <= part) & (b + o_b < batch)  # sequences whose parts all come before
        sequence += tl.sum(m_before.to(tl.int32), 0)
        first = tl.maximum(first, tl.max(tl.where(m_before, b_end, 0), 0))
        before += tl.sum(b_parts, 0)
    return sequence, first


@triton.jit(noinline=True)
def own_part(
    p_lens, part, num_parts, min_tiles, batch, stride_len, NUM_SLOTS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Part number ``part`` of a batch: its sequence and that one's length; its first tile; how many tiles they have.

    The last two are of the sequence, 0 if there is no such part, and of a part. With NUM_SLOTS, parts are by the
    lengths of all sequences; else each sequence has ``num_parts``.
    """
    if NUM_SLOTS > 0:
        share = choose_share(p_lens, num_parts, min_tiles, batch, stride_len, NUM_SLOTS, BLOCK_N, BLOCK_B)
        sequence, first = find_sequence(p_lens, part, share, batch, stride_len, BLOCK_N, BLOCK_B)
    else:
        share, sequence, first = 0, part // num_parts, part // num_parts * num_parts
    m_any = sequence < batch
    seq_len = tl.load(p_lens + tl.cast(sequence, tl.int64) * stride_len, mask=m_any, other=0).to(tl.int32)
    tiles = tl.where(m_any, tl.maximum(tl.cdiv(seq_len, BLOCK_N), 1), 0)
    each = tiles_of_part(tiles, share) if NUM_SLOTS > 0 else tl.maximum(tl.cdiv(tiles, num_parts), min_tiles)
    return sequence, seq_len, (part - first) * each, tiles, each


@triton.jit
def find_rows(
    p_kv, p_table, n, m_n, end, stride_tp, stride_kp, stride_kn,
    PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, KEEP: tl.constexpr, ONE_PLACE: tl.constexpr,
):  # fmt: skip
    """Where the cache rows of the tile at token n begin: their page through the block table, then their place in it.

    n is a multiple of BLOCK_N. If KEEP, there are registers for what is the same of every tile that is of whole pages,
    and if ONE_PLACE, of every tile that lies in one page.
    """
    o_n = n + tl.arange(0, BLOCK_N)
    o_place = o_n % PAGE_SIZE
    if PAGE_SIZE % BLOCK_N == 0:  # the whole tile is in one page
        if ONE_PLACE:
            o_place = n % PAGE_SIZE + tl.arange(0, BLOCK_N)
        page = tl.load(p_table + tl.cast(n // PAGE_SIZE, tl.int64) * stride_tp, mask=n < end, other=0)
    elif BLOCK_N % PAGE_SIZE == 0:
        p_first = p_table + tl.cast(n // PAGE_SIZE, tl.int64) * stride_tp
        o_page = tl.arange(0, BLOCK_N) // PAGE_SIZE
        page = tl.load(p_first + o_page.to(tl.int64) * stride_tp, mask=m_n, other=0)  # [N]
        if KEEP:
            o_place = tl.arange(0, BLOCK_N) % PAGE_SIZE
    else:
        page = tl.load(p_table + (o_n // PAGE_SIZE).to(tl.int64) * stride_tp, mask=m_n, other=0)  # [N]
    return p_kv + page.to(tl.int64) * stride_kp + o_place.to(tl.int64) * stride_kn


@triton.jit
def load_columns(p_rows, m_rows, start, stride_d, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK numbers of each row from number ``start`` on; 0 for those past WIDTH."""
    o_d = start + tl.arange(0, BLOCK)
    m_d = m_rows[:, None] & (o_d < WIDTH)[None, :]
    return tl.load(p_rows[:, None] + o_d.to(tl.int64)[None, :] * stride_d, mask=m_d, other=0)


@triton.jit
def load_rows(
    p_rows, m_rows, stride_d, RANK: tl.constexpr, ROPE: tl.constexpr, FP8: tl.constexpr,
    NUM_CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Rows of queries or of the cache as they are stored.

    A tuple: the latent's chunks; the rotary part, if there is one; and of fp8 the scale of each chunk, [N].
    """
    b_rows = ()
    for i in tl.static_range(NUM_CHUNKS):
        b_rows += (load_columns(p_rows, m_rows, i * BLOCK_C, stride_d, RANK, BLOCK_C),)
    if ROPE > 0:
        if FP8:  # after the latent's bytes, and four for the scale of each 128 of them
            p_rotary = (p_rows + (RANK + RANK // 32)).to(tl.pointer_type(tl.bfloat16), bitcast=True)
            b_rows += (load_columns(p_rotary, m_rows, 0, 1, ROPE, BLOCK_R),)
        else:
            b_rows += (load_columns(p_rows, m_rows, RANK, stride_d, RANK + ROPE, BLOCK_R),)
    for i in tl.static_range(NUM_CHUNKS if FP8 else 0):
        p_scales = (p_rows + RANK).to(tl.pointer_type(tl.float32), bitcast=True)
        b_rows += (tl.load(p_scales + min(i * BLOCK_C, RANK - 1) // 128, mask=m_rows, other=0.0),)
    return b_rows


@triton.jit
def from_e4m3(b_c, CONVERT: tl.constexpr, UPCAST: tl.constexpr):
    """Bytes of e4m3 as numbers, exact on every GPU; where the GPU cannot convert them, as 2**-8 of the numbers.

    There the sign, four bits of exponent and three of fraction go where fp16 has them. The code of NaN, all ones,
    carries over into the fifth bit of fp16's exponent, which makes it fp16's NaN.
    """
    if CONVERT:
        b_bytes = b_c
        b_c = b_c.to(tl.float8e4nv, bitcast=True).to(tl.float16)
        if UPCAST:  # the interpreter takes the code of NaN for a number, which no GPU does
            b_c = tl.where((b_bytes & 0x7F) == 0x7F, float("nan"), b_c)
    else:
        b_c = b_c.to(tl.uint16)
        b_rest = b_c & 0x7F
        b_c = (((b_c & 0x80) << 8) | ((b_rest | ((b_rest + 1) & 0x80)) << 7)).to(tl.float16, bitcast=True)
    return b_c if UPCAST else b_c.to(tl.bfloat16)
