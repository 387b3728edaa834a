"""Files of families that nobody knows: read only where every name in them is known to be harmless."""

import dataclasses
import itertools

import pytest
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mla_edu.hf import spec_from_hf
from mla_edu.hf.dimensions import Dimensions
from mla_edu.hf.families import SAME_AS, get_family, list_families
from mla_edu.validation import load_yaml
from tiny_families import saved

FAMILIES = [name for name in list_families() if name not in SAME_AS]
NAMES = load_yaml("mla_edu.hf", "plain.yaml")
HARMLESS = set(itertools.chain(*NAMES["harmless"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_known_familys_file_under_another_name_is_refused_or_counts_the_same(family):
    """Their caches are compared with what transformers fills in test_reader: whatever is read here is right."""
    try:
        found = spec_from_hf(saved(family) | {"model_type": "new_model"})
    except ValueError as error:
        assert "'new_model' is not known" in str(error)
        return
    known = spec_from_hf(saved(family))
    assert (found.cache, found.kind, found.state_elements) == (known.cache, known.kind, known.state_elements)
    assert found.config is None and found.no_config


PLAIN = {
    "model_type": "new_model",
    "hidden_size": 64,
    "num_hidden_layers": 20,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


@settings(max_examples=200)
@given(
    key=st.text("abcdefghijklmnopqrstuvwxyz_", min_size=3),
    value=st.sampled_from([1, 5, True, "x", [1], {"a": 1}, False, 0]),
)
def test_any_name_that_is_not_known_to_be_harmless_is_refused_by_name(key, value):
    assume(key not in {*NAMES["read"], *HARMLESS})
    with pytest.raises(ValueError, match=f"'new_model' is not known, and {key} = "):
        spec_from_hf(PLAIN | {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_group_size", 5),  # Ring-linear: one layer in five has softmax attention
        ("attn_type_list", [0, 0, 1]),  # MiniMax-01
        ("full_attention_interval", 4),
        ("attention_layers", [0, 4]),
        ("use_mamba", True),
        ("num_kv_shared_layers", 2),
        ("cla_share_factor", 2),
        ("sliding_window", 64),
        ("layer_types", ["full_attention"] * 19 + ["sliding_attention"]),
        ("is_causal", False),
    ],
)
def test_hybrids_of_unknown_families_are_refused(key, value):
    with pytest.raises(ValueError, match=f"'new_model' is not known, and {key} = "):
        spec_from_hf(PLAIN | {key: value})


def test_harmless_names_are_those_of_families_whose_layers_all_see_every_token():
    plain = [name for name in FAMILIES if get_family(name).rule == "full" and get_family(name).per_block == 1]
    theirs = {field.name for name in plain for field in dataclasses.fields(transformers.CONFIG_MAPPING[name])}
    files = "_attn_implementation _commit_hash _name_or_path attn_implementation auto_map model_type name_or_path"
    more = "torch_dtype output_attentions quantization_config partial_rotary_factor rope_scaling rope_theta rotary_pct"
    remote = "aux_loss_alpha ep_size moe_layer_freq num_nextn_predict_layers scoring_func seq_aux"  # DeepSeek-V3's own
    assert theirs | {*files.split(), *more.split(), *remote.split()} >= HARMLESS
    assert not HARMLESS & set(Dimensions.model_fields)
