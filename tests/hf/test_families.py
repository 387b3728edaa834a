"""The families' files against transformers' own lists: none is forgotten."""

import dataclasses

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mla_edu.files import load_yaml
from mla_edu.hf import spec_from_hf
from mla_edu.hf.families import get_family, list_families, list_remote_families, refusal

WHOLES = load_yaml("mla_edu.hf", "wholes.yaml")
FAMILIES = load_yaml("mla_edu.hf", "families.yaml")
REFUSED = {name: reason for reason, names in load_yaml("mla_edu.hf", "refused.yaml").items() for name in names}


@pytest.mark.parametrize("name", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_every_causal_language_model_of_transformers_is_read_or_refused_by_name(name):
    own = WHOLES["parts"].get(name, name)
    assert (own in list_families()) is not (refusal(own) is not None)


def test_no_family_is_both_read_and_refused_and_none_stands_twice():
    names = [name for names in load_yaml("mla_edu.hf", "refused.yaml").values() for name in names]
    assert len(names) == len(set(names))
    assert not set(names) & {*list_families(), *list_remote_families(), *WHOLES["parts"]}
    assert not set(list_remote_families()) & set(transformers.CONFIG_MAPPING.keys())


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_family_gives_its_reason(name):
    file = {"model_type": name, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    with pytest.raises(ValueError) as caught:
        spec_from_hf(file | {"num_key_value_heads": 4})
    assert str(caught.value) == f"model_type '{name}' is not counted: {REFUSED[name]}"
    with pytest.raises(ValueError, match="is not counted"):
        spec_from_hf({"model_type": "any", "text_config": file})


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if "sizes" in family])
def test_sizes_are_those_of_the_config_class(family):
    cls = transformers.CONFIG_MAPPING[family]
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    said = get_family(family).sizes
    layers = next(
        defaults[key] for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if key in defaults
    )
    hidden = next(defaults[key] for key in ("hidden_size", "n_embd", "d_model") if key in defaults)
    assert said == (layers * get_family(family).per_block, hidden)


@pytest.mark.parametrize("whole", WHOLES["parts"])
def test_the_text_model_of_a_larger_one_is_that_of_its_config_class(whole):
    cls = transformers.CONFIG_MAPPING[whole]
    part = "thinker_config" if "thinker_config" in cls.sub_configs else "text_config"
    assert getattr(cls(), part).model_type == WHOLES["parts"][whole]


@pytest.mark.parametrize("whole", WHOLES["flat"])
def test_a_file_with_the_text_models_numbers_beside_the_rest_is_read_as_its_config_class_reads_it(whole):
    config = transformers.CONFIG_MAPPING[whole].from_dict(
        {"model_type": whole, "num_hidden_layers": 6, "hidden_size": 5120, "num_attention_heads": 16}
        | {"num_key_value_heads": 16}
    )
    flat = {"model_type": whole, "num_hidden_layers": 6, "hidden_size": 5120, "num_attention_heads": 16}
    flat |= {"num_key_value_heads": 16, "vision_config": {"depth": 3}}
    assert spec_from_hf(flat).cache == spec_from_hf(config).cache
    assert spec_from_hf(flat).num_layers == 6


def test_deepseek_v4_is_known_by_the_name_of_its_reference_code_too():
    file = {"hidden_size": 4096, "num_hidden_layers": 4, "compress_ratios": [0, 4, 128, 4, 0]}
    ref, v4 = (spec_from_hf(file | {"model_type": name}) for name in ("deepseek_ref", "deepseek_v4"))
    assert ref.cache == v4.cache and ref.kind == "csa"
