"""Which pairs of tiles are a program's, and which of its tokens hold no numbers: what ``rows`` does, in Gluon."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def count_pairs(p_lens, o_b, batch, stride_len):
    """Pairs of tiles of sequences: one at least, since a sequence without tokens has a result too; 0 past the batch."""
    lens = gl.load(p_lens + o_b.to(gl.int64) * stride_len, mask=o_b < batch, other=0).to(gl.int32)
    return gl.where(o_b < batch, gl.maximum((lens + 127) // 128, 1), 0)


@gluon.jit
def add(a, b):
    """The sum, as a scan takes it."""
    return a + b


@gluon.jit
def find_share(p_lens, share, num_parts, min_pairs, batch, stride_len, EVEN: gl.constexpr):
    """The pairs of a program, as ``kernel.attend`` finds its tiles.

    Gives the first and the one after the last, the sequence of the first and where the pairs of that one begin, and
    how many pairs a share has.
    """
    if EVEN:
        o_b = gl.arange(0, 128, layout=gl.BlockedLayout([1], [32], [4], [0]))
        total = 0
        for b in range(0, batch, 128):
            total += gl.sum(count_pairs(p_lens, b + o_b, batch, stride_len), 0)
        per_share = gl.maximum((total + num_parts - 1) // num_parts, min_pairs)
        pair = share * per_share
        sequence, offset, before = 0, 0, 0
        for b in range(0, batch, 128):
            b_pairs = count_pairs(p_lens, b + o_b, batch, stride_len)
            b_end = before + gl.associative_scan(b_pairs, 0, add)
            m_before = (b_end <= pair) & (b + o_b < batch)  # sequences that end where this share begins, or before
            sequence += gl.sum(m_before.to(gl.int32), 0)
            offset = gl.maximum(offset, gl.max(gl.where(m_before, b_end, 0), 0))
            before += gl.sum(b_pairs, 0)
        return pair, gl.minimum(pair + per_share, total), sequence, offset, per_share
    else:
        sequence = share // num_parts
        pairs = count_pairs(p_lens, sequence, batch, stride_len)
        per_share = gl.maximum((pairs + num_parts - 1) // num_parts, min_pairs)
        pair = share % num_parts * per_share
        return pair, gl.minimum(pair + per_share, pairs), sequence, 0, per_share


@gluon.jit
def find_unseen(
    p_kv, p_pages, seq_len, start, end, stride_tp, stride_kp, stride_kn, S_Q: gl.constexpr, PAGE_SIZE: gl.constexpr
):  # fmt: skip
    """The first of the new tokens but one in which a number is not finite; ``seq_len`` if there is none.

    No row reads on from there, and those that see it become NaN: see ``kernel.find_unseen``.
    """
    SPREAD: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    o_c = gl.arange(0, 64, layout=gl.SliceLayout(0, SPREAD))
    unseen = seq_len
    for n in range(gl.maximum(start, seq_len - S_Q + 1) // 16 * 16, end, 16):
        o_n = n + gl.arange(0, 16, layout=gl.SliceLayout(1, SPREAD))
        m_n = (o_n >= start) & (o_n > seq_len - S_Q) & (o_n < end)
        page = gl.load(p_pages + n // PAGE_SIZE * stride_tp)
        p_rows = p_kv + page.to(gl.int64) * stride_kp + (o_n % PAGE_SIZE).to(gl.int64) * stride_kn
        b_zero = gl.zeros([16], gl.float32, gl.SliceLayout(1, SPREAD))
        for i in gl.static_range(9):
            p_part = gl.expand_dims(p_rows + i * 64, 1) + gl.expand_dims(o_c, 0)
            b_part = gl.load(p_part, mask=gl.expand_dims(m_n, 1), other=0.0)
            b_zero += gl.sum(b_part.to(gl.float32) * 0.0, 1)  # NaN, unless all numbers are finite
        unseen = gl.minimum(unseen, gl.min(gl.where(b_zero == 0.0, seq_len, o_n), 0))
    return unseen
