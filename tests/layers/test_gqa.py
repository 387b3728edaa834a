import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mla_edu.cache.kv as kv
import mla_edu.layers.rotary as rotary
from mla_edu import GQAConfig, GroupedQueryAttention
from mla_edu.cache import KVCache
from mla_edu.ops.rope import rotate
from mla_edu.testing import poison, randomize, relative_error
from strategies import gqa_configs

CHUNKS = (7, 1, 4, 1, 1, 3)
CONFIG = GQAConfig(hidden_size=36, num_attention_heads=6, num_key_value_heads=2, head_dim=10)


def layer_and_tokens(config, seed=0, batch=2):
    layer = randomize(GroupedQueryAttention(config, dtype=torch.float64), seed)
    generator = torch.Generator().manual_seed(seed)
    return layer, torch.randn(batch, sum(CHUNKS), config.hidden_size, dtype=torch.float64, generator=generator)


@torch.no_grad()
def decoded(layer, hidden_states):
    """The layer's output in uneven chunks through a cache whose unused memory is NaN."""
    batch, seq, _ = hidden_states.shape
    cache = KVCache(layer.config, batch_size=batch, max_seq_len=seq + 2, dtype=hidden_states.dtype)
    poison(cache)
    return torch.cat([layer(chunk, cache) for chunk in hidden_states.split(CHUNKS, dim=1)], dim=1)


@torch.no_grad()
def worst_position(layer, hidden_states):
    """Largest relative error, over all positions, of decoding against the full pass."""
    full, steps = layer(hidden_states), decoded(layer, hidden_states)
    return max(relative_error(steps[:, i], full[:, i]) for i in range(full.shape[1]))


@given(config=gqa_configs(), window=st.none() | st.integers(1, 20))
def test_decoding_through_the_cache_equals_the_full_pass_at_every_position(config, window):
    config = GQAConfig(**config.model_dump(exclude={"sliding_window"}), sliding_window=window)
    assert worst_position(*layer_and_tokens(config)) < 1e-12


def top_left(num_queries, num_keys, **_):
    return torch.ones(num_queries, num_keys, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (kv, "causal_mask", top_left),
        (kv, "causal_mask", lambda q, k, **_: torch.ones(q, k, dtype=torch.bool)),
        (rotary, "rotate", lambda x, positions, *f, **o: rotate(x, positions - positions[:, :1], *f, **o)),
        (rotary, "rotate", lambda x, positions, *f, **o: rotate(x, positions + 1, *f, **o) * positions.shape[1]),
    ],
    ids=["top-left mask", "no mask", "positions from zero", "scale by chunk"],
)
def test_the_decode_check_sees_a_broken_layer(monkeypatch, module, name, broken):
    layer, hidden_states = layer_and_tokens(CONFIG)
    assert worst_position(layer, hidden_states) < 1e-12
    monkeypatch.setattr(module, name, broken)
    assert worst_position(layer, hidden_states) > 1e-3


def test_shared_heads_are_tied_multi_head_attention():
    layer, hidden_states = layer_and_tokens(CONFIG)
    tied = GroupedQueryAttention(
        GQAConfig(hidden_size=36, num_attention_heads=6, num_key_value_heads=6, head_dim=10), dtype=torch.float64
    )
    weights = layer.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        weights[name] = weights[name].unflatten(0, (2, 10)).repeat_interleave(3, dim=0).flatten(0, 1)
    tied.load_state_dict(weights)
    assert relative_error(layer(hidden_states), tied(hidden_states)) < 1e-13


def test_casting_the_layer_leaves_its_angles_exact():
    layer, _ = layer_and_tokens(CONFIG)
    assert torch.equal(layer.bfloat16().rotary.frequencies, layer_and_tokens(CONFIG)[0].rotary.frequencies)


def test_without_rotation_the_order_of_cached_tokens_is_invisible():
    layer, hidden_states = layer_and_tokens(
        GQAConfig(hidden_size=36, num_attention_heads=6, num_key_value_heads=2, head_dim=10, rope_theta=None)
    )
    shuffled = hidden_states[:, [*reversed(range(16)), 16]]
    assert relative_error(layer(shuffled)[:, -1], layer(hidden_states)[:, -1]) < 1e-12


@pytest.mark.parametrize(
    ("hidden_states", "message"),
    [
        (torch.zeros(2, 3, 35, dtype=torch.float64), r"shape \[2, 3, 35\]; expected \[batch, seq, 36\]"),
        (torch.zeros(3, 36, dtype=torch.float64), r"shape \[3, 36\]; expected \[batch, seq, 36\]"),
        (torch.zeros(2, 3, 36), "torch.float32; expected torch.float64"),
        (torch.zeros(1, 3, 36, dtype=torch.float64), "batch size is 1; expected 2"),
        (torch.zeros(2, 6, 36, dtype=torch.float64), "6 new tokens after 2 cached ones"),
    ],
)
def test_what_does_not_fit_leaves_the_cache_as_it_was(hidden_states, message):
    layer, tokens = layer_and_tokens(CONFIG)
    cache = KVCache(CONFIG, batch_size=2, max_seq_len=7, dtype=torch.float64)
    layer(tokens[:, :2], cache)
    keys = cache.keys[:, :2].clone()
    with pytest.raises(ValueError, match=message):
        layer(hidden_states, cache)
    assert cache.length == 2
    assert torch.equal(cache.keys[:, :2], keys)


def test_a_cache_of_another_dtype_is_refused_before_any_work():
    layer, tokens = layer_and_tokens(CONFIG)
    cache = KVCache(CONFIG, batch_size=2, max_seq_len=7, dtype=torch.float32)
    with pytest.raises(ValueError, match="torch.float64 on cpu; expected torch.float32 on cpu"):
        layer(tokens[:, :2], cache)
