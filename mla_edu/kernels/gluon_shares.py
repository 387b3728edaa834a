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
        o_b = gl.arange(0, 128, layout=gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
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

    No row reads on from there, and those that see it become NaN: see ``kernel.find_unseen``. p_kv is of bf16, or of the
    words of fp8 rows.
    """
    SPREAD: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    FP8: gl.constexpr = p_kv.dtype.element_ty == gl.int32
    o_c = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(0, SPREAD)), 0)
    unseen = seq_len
    for n in range(gl.maximum(start, seq_len - S_Q + 1) // 16 * 16, end, 16):
        o_n = n + gl.arange(0, 16, layout=gl.SliceLayout(1, SPREAD))
        m_n = (o_n >= start) & (o_n > seq_len - S_Q) & (o_n < end)
        m_row = gl.expand_dims(m_n, 1)
        page = gl.load(p_pages + n // PAGE_SIZE * stride_tp)
        p_rows = gl.expand_dims(p_kv + page.to(gl.int64) * stride_kp + (o_n % PAGE_SIZE).to(gl.int64) * stride_kn, 1)
        b_zero = gl.zeros([16], gl.float32, gl.SliceLayout(1, SPREAD))  # NaN, unless all numbers are finite
        for i in gl.static_range(3 if FP8 else 9):
            if FP8:  # the rotary part reaches no more than scores, which are masked
                b_words = gl.load(p_rows + (o_c + i * 64), mask=m_row & (o_c + i * 64 < 132), other=0)
                if i < 2:  # four of e4m3, of which NaN is all ones but the sign
                    b_bad = (((b_words & 0x7F7F7F7F) + 0x01010101) & -0x7F7F7F80) != 0
                else:  # scales in fp32: of infinities and NaN the exponent is all ones
                    b_bad = (b_words & 0x7F800000) == 0x7F800000
                b_zero += gl.sum(gl.where(b_bad, float("nan"), 0.0), 1)
            else:
                b_part = gl.load(p_rows + (o_c + i * 64), mask=m_row, other=0.0)
                b_zero += gl.sum(b_part.to(gl.float32) * 0.0, 1)
        unseen = gl.minimum(unseen, gl.min(gl.where(b_zero == 0.0, seq_len, o_n), 0))
    return unseen


@gluon.jit
def find_result(p_parts, share, sequence, pair, stop, offset, pairs, per_share, EVEN: gl.constexpr):
    """Whether a piece is a part of its sequence, and the number of its result; to p_parts goes where the parts lie."""
    part = share + sequence if EVEN else share  # no two programs have the same
    is_part = ((pair == offset) & (stop == offset + pairs)) == 0
    if p_parts is not None and pair == offset:
        p_mine = p_parts + 2 * sequence.to(gl.int64)
        gl.store(p_mine, part)
        gl.store(p_mine + 1, (offset + pairs + per_share - 1) // per_share - offset // per_share)
    return is_part, gl.where(is_part, part.to(gl.int64), sequence.to(gl.int64))


@gluon.jit
def store_out(results, is_part, o_out, b_out, m_out):
    """Numbers of the output, or of a part."""
    p_out, _, p_partial, _ = results
    if p_partial is not None and is_part:
        gl.store(p_partial + o_out, b_out, mask=m_out)
    else:
        gl.store(p_out + o_out, b_out.to(gl.bfloat16), mask=m_out)


@gluon.jit
def store_lse(results, is_part, o_result, o_row, b_lse, NUM_HEADS: gl.constexpr, S_Q: gl.constexpr):
    """The log-sum-exp of rows in base 2: of a part as it is, else with the natural base and heads first."""
    _, p_lse, _, p_partial_lse = results
    m_row = o_row < NUM_HEADS * S_Q
    if p_partial_lse is not None and is_part:
        gl.store(p_partial_lse + o_result + o_row, b_lse, mask=m_row)
    else:
        o_lse = o_row % NUM_HEADS * S_Q + o_row // NUM_HEADS
        gl.store(p_lse + o_result + o_lse, b_lse * 0.6931471805599453, mask=m_row)
