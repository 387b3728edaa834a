"""The scan in chunks is the recurrence, and the recurrence is what it says."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mla_edu.ops.scan import chunked_scan, scan_step
from mla_edu.testing import relative_error


def drawn(seed, batch, seq, groups, per_group, dim, size):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    heads = groups * per_group
    x, log_decay = normal(batch, seq, heads, dim), -normal(batch, seq, heads).square()
    return (
        x,
        log_decay,
        normal(batch, seq, groups, size),
        normal(batch, seq, groups, size),
        normal(batch, heads, dim, size),
    )


sizes = st.integers(1, 3)


@given(
    seed=st.integers(0, 99),
    batch=sizes,
    seq=st.integers(1, 20),
    groups=sizes,
    per_group=sizes,
    dim=sizes,
    size=sizes,
    chunk_size=st.integers(1, 9),
)
def test_chunks_equal_single_steps(seed, batch, seq, groups, per_group, dim, size, chunk_size):
    x, log_decay, b, c, state = drawn(seed, batch, seq, groups, per_group, dim, size)
    out, last = chunked_scan(x, log_decay, b, c, state, chunk_size)
    for t in range(seq):
        step, state = scan_step(x[:, t], log_decay[:, t], b[:, t], c[:, t], state)
        assert relative_error(out[:, t], step) < 1e-11
    assert relative_error(last, state) < 1e-11


def test_recurrence_is_attention_with_decay_in_place_of_a_softmax():
    """Each pair of tokens by itself: the product of the directions, and of all factors between the two."""
    x, log_decay, b, c, state = drawn(0, 2, 7, 2, 3, 4, 5)
    out, _ = chunked_scan(x, log_decay, b, c, torch.zeros_like(state), chunk_size=3)
    for t in range(7):
        expected = sum(
            (c[:, t] * b[:, s]).sum(-1).repeat_interleave(3, dim=1)[..., None]
            * log_decay[:, s + 1 : t + 1].sum(1).exp()[..., None]
            * x[:, s]
            for s in range(t + 1)
        )
        assert relative_error(out[:, t], expected) < 1e-12


def test_a_strong_decay_is_no_overflow():
    x, log_decay, b, c, state = drawn(0, 1, 40, 1, 1, 2, 2)
    out, last = chunked_scan(x, log_decay - 1e3, b, c, state, chunk_size=16)
    assert out.isfinite().all() and last.isfinite().all()


def test_no_token_changes_nothing():
    x, log_decay, b, c, state = drawn(0, 2, 0, 1, 2, 3, 4)
    out, last = chunked_scan(x, log_decay, b, c, state)
    assert out.shape == x.shape
    assert torch.equal(last, state)
