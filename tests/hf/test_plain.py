"""Files of families that nobody knows: read only where every name in them is known to be harmless."""

import dataclasses
import itertools

import pytest
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mla_edu.files import load_yaml
from mla_edu.hf import spec_from_hf
from mla_edu.hf.dimensions import Dimensions
from mla_edu.hf.families import SAME_AS, get_family, list_families
from tiny_families import saved

FAMILIES = [name for name in list_families() if name not in SAME_AS]
NAMES = load_yaml("mla_edu.hf", "plain.yaml")
HARMLESS = set(itertools.chain(*NAMES["harmless"].values()))


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


LEAKS = """sparse_attention_config sparse_config attn_type_list attn_layer_indices attention_layers no_attention_layers
    kv_reuse_layers num_shared_kv_layers num_kv_layers attn_every yoco ssd_layers gla_layers rwkv_layers total_ut_steps
    num_loops mean_recurrence attention_head_dim kv_channels head_size d_kv hidden_size_per_head k_head_dim
    value_head_dim kv_latent_dim encoder_hidden_size pruned_heads"""


@pytest.mark.parametrize("key", LEAKS.split())
def test_what_models_call_another_cache_is_refused(key):
    with pytest.raises(ValueError, match=f"'new_model' is not known, and {key} = 4 may change its cache"):
        spec_from_hf(PLAIN | {key: 4})


@pytest.mark.parametrize(
    "beside",
    [
        {"num_local_experts": 128, "num_experts_per_tok": 8},  # every mixture of experts
        {"sliding_window_size": -1},  # Grok-2: none
        {"sliding_window": -1, "max_window_layers": 3},
        {"temperature": 0.7, "max_length": 20, "unk_token_id": 0},
        {"text_config": None, "kv_channels": None},
    ],
)
def test_innocent_names_are_read_past_and_the_answer_says_that_the_family_is_unknown(beside):
    spec = spec_from_hf(PLAIN | beside)
    assert spec.cache == spec_from_hf(PLAIN).cache
    (caution,) = spec.cautions
    assert caution == "family 'new_model' is not known: read as attention over all tokens in each of its layers"


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
    drawing = set(vars(transformers.GenerationConfig()))
    theirs |= {*files.split(), *more.split(), *remote.split(), *drawing}
    assert {name for name in HARMLESS - theirs if not name.endswith("_token_id")} == set()
    # Two that the rules of some families read, and those of full attention do not.
    assert HARMLESS & set(Dimensions.model_fields) == {"first_k_dense_replace", "num_experts_per_tok"}
