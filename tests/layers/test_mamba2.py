"""The Mamba-2 layer against transformers, as a whole and through its cache."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BambaConfig
from transformers import Mamba2Config as TheirConfig
from transformers.models.bamba.modeling_bamba import BambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from mla_edu.cache import LatentCache, SequenceTable, StateCache
from mla_edu.config import Mamba2Config, MLAConfig
from mla_edu.layers.mamba2 import Mamba2
from mla_edu.testing import randomize, relative_error

ROUNDED = 1e-5  # theirs scans in float32
EXACT = 1e-11


@st.composite
def mamba2_configs(draw):
    """Small layers whose widths are no powers of two."""
    groups = draw(st.integers(1, 3))
    heads, head_dim = groups * draw(st.integers(1, 3)), 2 * draw(st.integers(1, 4))
    return Mamba2Config(
        hidden_size=heads * head_dim // 2,  # their classes count the width inside as a multiple of this
        num_heads=heads,
        head_dim=head_dim,
        state_size=draw(st.integers(2, 9)),
        n_groups=groups,
        conv_kernel=draw(st.integers(2, 5)),
        conv_bias=draw(st.booleans()),
        norm_eps=0.1,
    )


def theirs(config, seed):
    """The mixer of transformers' Mamba-2, every parameter random."""
    their_config = TheirConfig(
        **config.model_dump(include={"hidden_size", "num_heads", "head_dim", "state_size", "n_groups", "conv_kernel"}),
        use_conv_bias=config.conv_bias,
        layer_norm_epsilon=config.norm_eps,
        num_hidden_layers=1,
        chunk_size=5,
    )
    return randomize(Mamba2Mixer(their_config, layer_idx=0).double(), seed)


def ours(config, their_layer):
    layer = Mamba2(config, dtype=torch.float64)
    layer.load_state_dict(their_layer.state_dict())
    return layer


def hidden_states(config, seed, batch=2, seq=17):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, seq, config.hidden_size, dtype=torch.float64, generator=generator)


@given(config=mamba2_configs(), seed=st.integers(0, 99))
@torch.no_grad()
def test_layer_equals_transformers(config, seed):
    their_layer = theirs(config, seed)
    x = hidden_states(config, seed)
    assert relative_error(ours(config, their_layer)(x), their_layer(x)) < ROUNDED


@pytest.mark.parametrize("groups", [1, 2])
@torch.no_grad()
def test_layer_equals_bamba(groups):
    config = Mamba2Config(hidden_size=12, num_heads=4, head_dim=6, state_size=5, n_groups=groups, norm_eps=0.1)
    their_config = BambaConfig(
        hidden_size=12,
        num_attention_heads=4,
        mamba_n_heads=4,
        mamba_d_head=6,
        mamba_expand=2,
        mamba_d_state=5,
        mamba_n_groups=groups,
        mamba_chunk_size=5,
        rms_norm_eps=0.1,
        num_hidden_layers=1,
        attn_layer_indices=[],
    )
    their_layer = randomize(BambaMixer(their_config, layer_idx=0).double(), seed=1)
    x = hidden_states(config, 0)
    assert relative_error(ours(config, their_layer)(x), their_layer(x)) < ROUNDED


def chunked(layer, x, cache, chunks):
    return torch.cat([layer(piece, cache) for piece in x.split(chunks, dim=1)], dim=1)


@given(config=mamba2_configs(), seed=st.integers(0, 99), data=st.data())
@torch.no_grad()
def test_uneven_chunks_give_what_the_full_pass_gives(config, seed, data):
    layer, x = randomize(Mamba2(config, dtype=torch.float64), seed), hidden_states(config, seed)
    chunks = []
    while sum(chunks) < x.shape[1]:
        chunks.append(data.draw(st.integers(1, x.shape[1] - sum(chunks))))
    cache = StateCache(config, SequenceTable(batch_size=2, max_seq_len=17), torch.float64)
    assert relative_error(chunked(layer, x, cache, chunks), layer(x)) < EXACT
    assert cache.length == 17


@torch.no_grad()
def test_sequences_of_different_lengths_keep_to_themselves():
    config = Mamba2Config(hidden_size=6, num_heads=2, head_dim=4, state_size=3)
    layer, x = randomize(Mamba2(config, dtype=torch.float64)), hidden_states(config, 0)
    table = SequenceTable(batch_size=2, max_seq_len=17)
    cache = StateCache(config, table, torch.float64)
    with table.step(6, sequences=[1]):
        layer(x[1:, :6], cache)
    both = torch.stack((x[0, :4], x[1, 6:10]))
    out = layer(both, cache)
    full = layer(x)
    assert relative_error(out[0], full[0, :4]) < EXACT
    assert relative_error(out[1], full[1, 6:10]) < EXACT


@pytest.mark.parametrize("part", ["inputs", "states"])
@torch.no_grad()
def test_either_part_of_the_state_counts(part):
    config = Mamba2Config(hidden_size=6, num_heads=2, head_dim=4, state_size=3)
    layer, x = randomize(Mamba2(config, dtype=torch.float64)), hidden_states(config, 0)
    cache = StateCache(config, SequenceTable(batch_size=2, max_seq_len=17), torch.float64)
    layer(x[:, :9], cache)
    getattr(cache, part).zero_()
    assert relative_error(layer(x[:, 9:], cache), layer(x)[:, 9:]) > 1e-3


@torch.no_grad()
def test_a_step_that_fails_leaves_the_state():
    config = Mamba2Config(hidden_size=6, num_heads=2, head_dim=4, state_size=3)
    layer, x = randomize(Mamba2(config, dtype=torch.float64)), hidden_states(config, 0)
    cache = StateCache(config, SequenceTable(batch_size=2, max_seq_len=17), torch.float64)
    layer(x[:, :9], cache)
    with pytest.raises(RuntimeError, match="another layer"), cache.step(3):
        layer(x[:, 9:12] + 1, cache)
        raise RuntimeError("another layer")
    assert relative_error(layer(x[:, 9:], cache), layer(x)[:, 9:]) < EXACT


@torch.no_grad()
def test_the_last_step_can_be_taken_back_and_no_more():
    config = Mamba2Config(hidden_size=6, num_heads=2, head_dim=4, state_size=3)
    layer, x = randomize(Mamba2(config, dtype=torch.float64)), hidden_states(config, 0)
    cache = StateCache(config, SequenceTable(batch_size=2, max_seq_len=17), torch.float64)
    layer(x[:, :9], cache)
    layer(x[:, 9:12] + 1, cache)
    cache.truncate(9)
    assert relative_error(layer(x[:, 9:12], cache), layer(x)[:, 9:12]) < EXACT
    cache.truncate(7)
    with pytest.raises(ValueError, match="sequence 0 holds 7 tokens; expected 9 or 12, since a recurrent state"):
        layer(x[:, 7:], cache)
    cache.truncate(0)
    assert relative_error(layer(x, cache), layer(x)) < EXACT


def test_bytes_do_not_grow_with_the_text():
    config = Mamba2Config(hidden_size=6, num_heads=2, head_dim=4, state_size=3)
    sizes = {StateCache(config, SequenceTable(1, length), torch.float32).nbytes for length in (8, 8000)}
    assert sizes == {2 * 4 * config.state_elements}
    # transformers' default: see its Mamba2Config
    large = Mamba2Config(hidden_size=4096, num_heads=128, head_dim=64, state_size=128, n_groups=8)
    assert large.state_elements == 128 * 64 * 128 + (128 * 64 + 2 * 8 * 128) * 3


def test_a_cache_of_another_kind_is_refused():
    config = Mamba2Config(hidden_size=6, num_heads=2, head_dim=4, state_size=3)
    mla = MLAConfig(
        hidden_size=6,
        num_attention_heads=1,
        q_lora_rank=None,
        kv_lora_rank=3,
        qk_nope_head_dim=2,
        qk_rope_head_dim=2,
        v_head_dim=2,
    )
    with pytest.raises(TypeError, match="cache is a LatentCache; expected a StateCache"):
        Mamba2(config)(torch.zeros(1, 1, 6), LatentCache(mla, dtype=torch.float32))
    with pytest.raises(TypeError, match="config is a MLAConfig; expected a Mamba2Config"):
        StateCache(mla, SequenceTable())
    with pytest.raises(ValueError, match="n_groups is 3; expected a divisor of num_heads, 2"):
        Mamba2Config(hidden_size=6, num_heads=2, head_dim=4, state_size=3, n_groups=3)
