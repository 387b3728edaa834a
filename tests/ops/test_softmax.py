import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from mla_edu.ops.softmax import attention, causal_mask
from mla_edu.testing import relative_error


def random_heads(seed, queries=5, keys=9, heads=6, kv_heads=2, qk_dim=7, v_dim=11):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, queries, heads, qk_dim), (2, keys, kv_heads, qk_dim), (2, keys, kv_heads, v_dim)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@given(
    groups=st.integers(1, 4),
    kv_heads=st.integers(1, 4),
    queries=st.integers(1, 6),
    cached=st.integers(0, 7),
    window=st.none() | st.integers(1, 9),
)
def test_attention_equals_torch_with_repeated_heads(groups, kv_heads, queries, cached, window):
    q, k, v = random_heads(0, queries, cached + queries, groups * kv_heads, kv_heads)
    mask = causal_mask(queries, cached + queries, sliding_window=window)
    theirs = scaled_dot_product_attention(
        q.transpose(1, 2),
        k.repeat_interleave(groups, dim=2).transpose(1, 2),
        v.repeat_interleave(groups, dim=2).transpose(1, 2),
        attn_mask=mask,
        scale=0.3,
    ).transpose(1, 2)
    assert relative_error(attention(q, k, v, sm_scale=0.3, mask=mask), theirs) < 1e-13


def test_the_last_query_is_aligned_to_the_last_key():
    assert causal_mask(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert causal_mask(2, 4, sliding_window=2).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]


def test_low_precision_inputs_are_worked_in_float32():
    q, k, v = random_heads(1)
    mask = causal_mask(5, 9)
    exact = attention(*(x.bfloat16().double() for x in (q, k, v)), sm_scale=0.3, mask=mask)
    ours = attention(*(x.bfloat16() for x in (q, k, v)), sm_scale=0.3, mask=mask)
    assert ours.dtype == torch.bfloat16
    assert relative_error(ours.double(), exact) < 2**-8


def test_bad_shapes_are_named():
    q, k, v = random_heads(2, heads=5, kv_heads=2)
    with pytest.raises(ValueError, match="k has 2 heads; expected a divisor of the 5 heads of q"):
        attention(q, k, v, sm_scale=1.0, mask=causal_mask(5, 9))
    with pytest.raises(ValueError, match="num_queries is 3; expected at most num_keys, 2"):
        causal_mask(3, 2)
