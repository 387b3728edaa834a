"""Files that say null, another type, or nonsense: refused by name, or read as transformers reads them."""

import copy
import itertools
import json

import pytest
import transformers

from mla_edu import config_from_hf
from mla_edu.hf import spec_from_hf
from mla_edu.hf.dimensions import ALIASES, Dimensions
from mla_edu.hf.families import SAME_AS, get_family, list_families, loadable_families
from tiny_families import saved

FAMILIES = [name for name in list_families() if name not in SAME_AS]
WRONG = [None, True, False, "8", "", 1.5, 8.0, -1, 0, [], [1], {}, {"a": 1}, float("nan")]
FLAGS = {
    "attention_bias",
    "qkv_bias",
    "o_bias",
    "use_bias",
    "bias",
    "enable_bias",
    "attention_out_bias",
    "rope_interleave",
}


def theirs(file):
    """The file as transformers understands it, written out; None where it refuses."""
    try:
        config = transformers.CONFIG_MAPPING[file["model_type"]].from_dict(copy.deepcopy(file))
        return json.loads(config.to_json_string(use_diff=False))
    except Exception:  # whatever its validators raise
        return None


def one_line(error):
    assert type(error) is ValueError and str(error) and "\n" not in str(error)


def read(file):
    """Cache and layer of a file, or its refusal."""
    try:
        spec = spec_from_hf(file)
    except ValueError as error:
        one_line(error)
        return error
    return spec


def known_keys(family):
    """The names that we read in a file of this family."""
    names = set(Dimensions.model_fields) | set(itertools.chain(*ALIASES.values())) | FLAGS
    return sorted(
        (names | set(get_family(family).defaults)) & set(saved(family))
        | {"rope_theta", "rope_scaling", "rope_parameters"}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_spoilt_value_is_refused_by_name_or_read_as_transformers_reads_it(family):
    whole = read(saved(family))
    for key, value in itertools.product(known_keys(family), WRONG):
        file = saved(family)
        file[key] = value
        found = read(file)
        if isinstance(found, ValueError):
            continue
        understood = theirs(file)
        again = whole if understood is None else read(understood)  # what they refuse may not change anything
        assert not isinstance(again, ValueError), (key, value)
        assert (found.cache, found.state_elements) == (again.cache, again.state_elements), (key, value)
        if found.config is not None:
            assert found.config == again.config, (key, value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"qk_rope_head_dim": "x", "head_dim": 24}, "qk_rope_head_dim is 'x'; expected a positive number"),
        ({"kv_lora_rank": [1]}, r"kv_lora_rank is \[1\]; expected a positive number"),
        ({"head_dim": 25}, r"head_dim of per_layer_config is 25; expected .*, 16 \+ 8"),
    ],
)
def test_the_widths_of_a_local_layer_are_checked_too(entry, message):
    with pytest.raises(ValueError, match=message):
        spec_from_hf(saved("dots3_note_text") | {"per_layer_config": {"2": entry}})


def test_more_layers_than_any_model_has_are_refused_at_once():
    with pytest.raises(ValueError, match=f"num_hidden_layers is {10**30}; expected"):
        spec_from_hf(saved("llama") | {"num_hidden_layers": 10**30})


COUNTED = ["num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"]


@pytest.mark.parametrize(
    ("family", "key"),
    [
        *itertools.product(["llama", "gemma3_text", "qwen3_next"], COUNTED),
        *itertools.product(["deepseek_v3"], COUNTED[:-1]),  # its class overwrites head_dim
    ],
)
@pytest.mark.parametrize("value", ["8", True, 8.0, [8], {"a": 8}, -8, 0], ids=str)
def test_a_count_of_another_type_is_refused_with_its_name_and_value(family, key, value):
    with pytest.raises(ValueError, match=key) as caught:
        spec_from_hf(saved(family) | {key: value})
    one_line(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("family", loadable_families())
@pytest.mark.parametrize(
    "key", ["rope_theta", "attention_bias", "hidden_size", "kv_lora_rank", "text_config", "rope_scaling"]
)
@pytest.mark.parametrize("value", [None, True, "10000", [1.0], {}], ids=str)
def test_a_layer_is_refused_or_has_no_null_in_it(family, key, value):
    own = SAME_AS.get(family, family)
    file = saved(own) | {"model_type": family, key: value}
    for rope in ("rope_parameters", "rope_scaling") if key == "rope_theta" else ():
        file.pop(rope, None)
    try:
        found = config_from_hf(file)
    except ValueError as error:
        one_line(error)
        return
    assert (found.rope_theta is None) == (family == "kimi_linear")


@pytest.mark.parametrize("text", [None, {}, [], "x", 3])
def test_a_text_config_that_is_no_object_is_refused_and_null_is_none(text):
    file = saved("deepseek_v3") | {"text_config": text}
    if text is None:
        assert spec_from_hf(file) == spec_from_hf(saved("deepseek_v3"))
        return
    with pytest.raises(ValueError, match="text_config is|model_type is None") as caught:
        spec_from_hf(file)
    one_line(caught.value)


def test_an_empty_list_of_layer_types_is_refused():
    with pytest.raises(ValueError, match=r"layer_types is \[\]; List should have at least 1 item"):
        spec_from_hf(saved("lfm2") | {"layer_types": []})


def test_mistral_files_that_list_two_types_have_no_one_layer():
    mixed = saved("mistral") | {"layer_types": ["full_attention", "sliding_attention"] * 3}
    assert spec_from_hf(mixed).config is None
    with pytest.raises(ValueError, match="types full_attention and sliding_attention; expected one type"):
        config_from_hf(mixed)
    assert config_from_hf(mixed | {"layer_types": ["full_attention"] * 6}).sliding_window is None
    assert config_from_hf(mixed | {"layer_types": ["sliding_attention"] * 6}).sliding_window == 5


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("deepseek_v3", {"qk_rope_head_dim": -64}, "qk_rope_head_dim is -64; expected"),
        ("deepseek_v3", {"qk_rope_head_dim": 63}, "qk_rope_head_dim is 63; expected an even number"),
        ("deepseek_v3", {"qk_rope_head_dim": True}, "qk_rope_head_dim is True"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads is 3; expected a divisor of num_attention_heads, 4"),
        ("llama", {"num_key_value_heads": 100}, "num_key_value_heads is 100; expected a divisor"),
        ("glm_moe_dsa", {"index_topk_freq": 1.5}, "index_topk_freq is 1.5"),
        ("glm_moe_dsa", {"index_topk_freq": "8"}, "index_topk_freq is '8'"),
        *(
            ("qwen3_next", {"linear_num_value_heads": value}, "linear_num_value_heads is")
            for value in (0, -1, 1.5, True)
        ),
        *(("qwen3_next", {"linear_key_head_dim": value}, "linear_key_head_dim is") for value in (0, -1, 1.5, True)),
        ("gemma4_text", {"global_head_dim": "8", "per_layer_config": None}, "global_head_dim is '8'"),
        ("qwen2", {"use_sliding_window": "false"}, "use_sliding_window is 'false'"),
        ("llama", {"head_dim": 10**13}, "head_dim is 10000000000000; expected"),
        ("gemma3n_text", {"num_kv_shared_layers": 10**15}, "num_kv_shared_layers is 1000000000000000; expected less"),
        ("jamba", {"attn_layer_period": 0}, "attn_layer_period is 0"),
        ("gemma2", {"layer_types": [{}, {}]}, r"layer_types is \[{}, {}\]; expected a valid string"),
        ("kimi_linear", {"linear_attn_config": 3, "layer_types": None}, "linear_attn_config is 3"),
        ("deepseek_v4", {"compress_ratios": 4}, "compress_ratios is 4"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_name_of_its_key(family, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        spec_from_hf(saved(family) | change)
    one_line(caught.value)
