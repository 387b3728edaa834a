import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mla_edu.ops.rope import (
    check_positions,
    rope_frequencies,
    rope_magnitude,
    rotate,
    softmax_factor,
    yarn_mscale,
)
from mla_edu.rope_scaling import LinearScaling, LongRopeScaling, YarnScaling
from mla_edu.testing import relative_error
from strategies import gqa_configs

DEEPSEEK_YARN = YarnScaling(factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0)


@pytest.mark.parametrize("pairing", ["halves", "interleaved"])
@given(shift=st.integers(1, 100_000), seed=st.integers(0, 999))
def test_scores_depend_on_the_distance_alone(pairing, shift, seed):
    q, k = torch.randn(2, 1, 6, 1, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    frequencies = rope_frequencies(10)

    def scores(start):
        positions = torch.arange(start, start + 6)[None]
        turned_q = rotate(q, positions, frequencies, pairing=pairing)[0, :, 0]
        turned_k = rotate(k, positions, frequencies, pairing=pairing)[0, :, 0]
        return turned_q @ turned_k.T

    assert relative_error(scores(shift), scores(0)) < 1e-9


@pytest.mark.parametrize("pairing", ["halves", "interleaved"])
def test_rotation_turns_the_first_pair_by_the_position_in_radians(pairing):
    x = torch.zeros(1, 1, 1, 8, dtype=torch.float64)
    x[..., 0] = 1.0
    second = {"halves": 4, "interleaved": 1}[pairing]
    turned = rotate(x, torch.tensor([[3]]), rope_frequencies(8), pairing=pairing)[0, 0, 0]
    assert math.isclose(turned[0], math.cos(3))
    assert math.isclose(turned[second], math.sin(3))


def test_the_two_pairings_are_one_permutation_apart():
    x = torch.randn(2, 5, 3, 12, dtype=torch.float64)
    positions, frequencies = torch.arange(5)[None], rope_frequencies(12)
    regrouped = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
    halves = rotate(regrouped, positions, frequencies, pairing="halves")
    interleaved = rotate(x, positions, frequencies, pairing="interleaved")
    assert relative_error(halves, torch.cat((interleaved[..., 0::2], interleaved[..., 1::2]), dim=-1)) < 1e-15
    assert relative_error(halves, interleaved) > 0.1


@given(config=gqa_configs())
def test_frequencies_and_magnitude_equal_transformers(config):
    scaling = config.rope_scaling.model_dump(exclude_none=True) if config.rope_scaling else {"rope_type": "default"}
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            head_dim=config.head_dim,
            rope_parameters=scaling | {"rope_theta": config.rope_theta},
        )
    )
    ours = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    assert relative_error(ours, theirs.inv_freq.double()) < 1e-6
    assert math.isclose(rope_magnitude(config.rope_scaling), theirs.attention_scaling)


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones():
    plain, stretched = rope_frequencies(64), rope_frequencies(64, scaling=DEEPSEEK_YARN)
    assert torch.equal(stretched[:10], plain[:10])
    assert torch.equal(stretched[-8:], plain[-8:] / 40)


def test_yarn_factor_sits_on_the_softmax_in_deepseek_and_on_the_vectors_elsewhere():
    assert math.isclose(yarn_mscale(40.0), 0.1 * math.log(40) + 1)
    assert rope_magnitude(DEEPSEEK_YARN) == 1.0
    assert math.isclose(softmax_factor(DEEPSEEK_YARN), 1.3688879454113936**2)
    plain_yarn = YarnScaling(factor=40.0, original_max_position_embeddings=4096)
    assert math.isclose(rope_magnitude(plain_yarn), 1.3688879454113936)
    assert softmax_factor(plain_yarn) == softmax_factor(None) == rope_magnitude(None) == 1.0


def test_positions_past_a_million_keep_their_angle():
    x = torch.zeros(1, 1, 1, 2)
    x[..., 0] = 1.0
    turned = rotate(x, torch.tensor([[3_000_001]]), rope_frequencies(2))[0, 0, 0]
    assert math.isclose(turned[0], math.cos(3_000_001), abs_tol=1e-6)


def longrope(short, long, **options):
    options = {"factor": 4.0, "original_max_position_embeddings": 4096} | options
    return LongRopeScaling(short_factor=short, long_factor=long, **options)


def test_longrope_divides_each_pair_by_its_own_factor():
    scaling = longrope([1.0, 2.0, 5.0], [1.0, 2.0, 5.0])
    assert torch.allclose(
        rope_frequencies(6) / rope_frequencies(6, scaling=scaling), torch.tensor([1.0, 2, 5]).double()
    )
    assert math.isclose(rope_magnitude(scaling), math.sqrt(1 + math.log(4) / math.log(4096)))
    assert rope_magnitude(longrope([1.0], [1.0], factor=1.0)) == 1.0
    assert rope_magnitude(longrope([1.0], [1.0], attention_factor=1.3)) == 1.3
    assert softmax_factor(scaling) == 1.0


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [
        (DEEPSEEK_YARN, 163840),
        (longrope([1.0], [1.0]), 16384),
        (longrope([1.0], [2.0]), 4096),  # past it, keys that are cached already would have to turn differently
    ],
)
def test_a_scaling_reaches_as_far_as_it_stretches(scaling, longest):
    check_positions(longest, scaling)
    with pytest.raises(ValueError, match=f"reach position {longest}; expected at most {longest - 1}"):
        check_positions(longest + 1, scaling)


def test_without_a_stretch_by_band_every_position_is_allowed():
    check_positions(10**9, None)
    check_positions(10**9, LinearScaling(factor=2.0))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="short_factor has 2 numbers; expected 3, one for each pair"):
        rope_frequencies(6, scaling=longrope([1.0, 2.0], [1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="width is 7; expected an even number"):
        rope_frequencies(7)
    with pytest.raises(ValueError, match="pairing is 'thirds'; expected 'halves' or 'interleaved'"):
        rotate(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1), rope_frequencies(2), pairing="thirds")
