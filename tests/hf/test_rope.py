"""Every layout in which a file may speak of rotation: read as transformers reads it, or refused."""

import copy
import importlib

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_edu import config_from_hf
from mla_edu.hf import spec_from_hf
from mla_edu.ops.rope import rope_frequencies, rope_magnitude
from tiny_families import saved

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 4.0}


def without_rotation(family):
    return {key: value for key, value in saved(family).items() if not key.startswith("rope_p")}


@st.composite
def layouts(draw):
    """Any mix of the places in which a file may speak of rotation."""
    settings = st.fixed_dictionaries(
        {},
        optional={
            "rope_type": st.sampled_from(["default", "linear", "yarn", "llama3", "dynamic", None, 3]),
            "type": st.sampled_from(["default", "linear", "yarn", "su"]),
            "rope_theta": st.sampled_from([100.0, 10000, None, "1e4"]),
            "factor": st.sampled_from([4.0, 2, None, "4", True]),
            "original_max_position_embeddings": st.sampled_from([32, 64, None, 3.5]),
            "mscale_all_dim": st.sampled_from([1.0, None]),
            "partial_rotary_factor": st.sampled_from([1.0, 0.5]),
        },
    )
    places = {"rope_scaling": st.none() | settings, "rope_parameters": st.none() | settings}
    places |= {
        "rope_theta": st.sampled_from([100.0, 10000, None]),
        "partial_rotary_factor": st.sampled_from([1.0, 0.5, None]),
    }
    return draw(st.fixed_dictionaries({}, optional=places))


@pytest.mark.parametrize("family", ["llama", "mistral", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"])
@settings(max_examples=80)
@given(rope=layouts())
def test_rotary_settings_are_read_as_transformers_reads_them_or_refused(family, rope):
    file = without_rotation(family) | rope
    try:
        config = config_from_hf(file)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    their = transformers.CONFIG_MAPPING[family].from_dict(copy.deepcopy(file))
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    rotary = next(getattr(module, name) for name in dir(module) if name.endswith("RotaryEmbedding"))(their)
    width = config.qk_rope_head_dim if config.kind == "mla" else config.head_dim
    ours = rope_frequencies(width, config.rope_theta, config.rope_scaling).tolist()
    assert ours == pytest.approx(rotary.inv_freq.tolist(), rel=1e-5)
    assert rope_magnitude(config.rope_scaling) == pytest.approx(rotary.attention_scaling, rel=1e-6)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": YARN, "rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": YARN, "rope_parameters": LINEAR},
        {"rope_scaling": YARN, "rope_parameters": YARN | {"rope_theta": 1e6}},
        {"rope_scaling": {"rope_type": "linear"}, "rope_parameters": {"factor": 4.0}},
        {"rope_scaling": {"factor": 4.0}, "rope_parameters": {"rope_type": "linear"}},
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}},
        {"rope_theta": 1e4, "rope_scaling": LINEAR | {"rope_theta": 1e6}},
        {"rope_scaling": YARN | {"type": "linear"}},
        {"rope_scaling": YARN, "rope_parameters": YARN | {"factor": 8.0}},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
        {"rope_scaling": {"rope_type": "spiral", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "yarn"}},
        {"rope_scaling": {"factor": 2.0}},
        {"rope_scaling": YARN | {"spin": 1}},
        {"rope_scaling": [YARN]},
        {"rope_parameters": {"sliding_attention": LINEAR}},
        {"rope_theta": 0},
        {"rope_theta": float("inf")},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_contradictions_and_unknown_settings_leave_the_cache_known_and_the_layer_refused(family, rope):
    file = without_rotation(family) | rope
    spec = spec_from_hf(file)
    assert spec.config is None and spec.cache == spec_from_hf(saved(family)).cache
    with pytest.raises(ValueError) as caught:
        config_from_hf(file)
    assert str(caught.value) == spec.no_config
    assert "\n" not in spec.no_config


def test_only_mistral_4_counts_the_rotary_part_as_a_share_of_the_head():
    equal = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
    rope = YARN | {"rope_theta": 1e4, "partial_rotary_factor": 0.5, "llama_4_scaling_beta": 0.1}
    assert config_from_hf(without_rotation("mistral4") | equal | {"rope_parameters": rope}).rope_theta == 1e4
    del rope["llama_4_scaling_beta"]
    with pytest.raises(ValueError, match="partial_rotary_factor is 0.5; expected 1.0"):
        config_from_hf(without_rotation("deepseek_v3") | equal | {"rope_parameters": rope})


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": YARN, "rope_theta": 100.0},
        {"rope_scaling": YARN | {"type": "yarn"}, "rope_theta": 100.0},
        {"rope_parameters": YARN | {"rope_theta": 100.0}, "rope_theta": 100.0},
        {"rope_parameters": YARN | {"rope_theta": 100.0}, "rope_scaling": YARN, "rope_theta": 100.0},
        {"rope_parameters": YARN | {"rope_theta": 100}, "rope_scaling": None},
        {"rope_scaling": YARN | {"mscale": None, "beta_fast": None}, "rope_theta": 100.0, "rope_parameters": None},
        {"rope_parameters": {"full_attention": YARN | {"rope_theta": 100.0}, "sliding_attention": LINEAR}},
    ],
    ids=str,
)
def test_one_setting_in_any_layout_is_one_setting(rope):
    file = without_rotation("llama") | rope
    config = config_from_hf(file)
    assert (config.rope_theta, config.rope_scaling.factor) == (100.0, 4.0)
    assert config.rope_scaling.original_max_position_embeddings == 32
