"""A model's numbers: read from YAML and from a config.json, refused where they do not add up."""

import pytest
from transformers import AutoConfig

from mla_edu.hf.model import DEFAULTS
from mla_edu.models import ModelConfig

YAML = """
vocab_size: 256
hidden_size: 32
intermediate_size: 48
layers: [mla, mla]
feed_forward: [dense, moe]
mla:
  {num_attention_heads: 4, q_lora_rank: null, kv_lora_rank: 12, qk_nope_head_dim: 8, qk_rope_head_dim: 4, v_head_dim: 8}
moe: {n_routed_experts: 4, num_experts_per_tok: 2, moe_intermediate_size: 16, n_shared_experts: 1}
"""


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "model.yaml"
        path.write_text(text)
        return ModelConfig.from_yaml(path)

    return read


def test_yaml_is_read_and_parts_have_the_width_of_the_model(read):
    config = read(YAML)
    assert config.layers == ("mla", "mla")
    assert config.feed_forward == ("dense", "moe")
    assert config.mla.hidden_size == config.moe.hidden_size == 32
    assert config.part(1) is config.mla
    assert ModelConfig(**config.model_dump()) == config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vocab_size: 256", "vocab_sise: 256", "vocab_sise is 256; no such name; did you mean vocab_size?"),
        ("kv_lora_rank: 12", "kv_lora: 12", "kv_lora is 12; no such name; did you mean kv_lora_rank?"),
        ("vocab_size: 256", "", "vocab_size: missing"),
        ("vocab_size: 256", "vocab_size: many", "vocab_size is 'many'; expected a valid integer"),
        ("vocab_size: 256", "vocab_size: 0", "vocab_size is 0; expected greater than 0"),
        ("layers: [mla, mla]", "layers: []", "layers is .*expected at least one layer"),
        ("layers: [mla, mla]", "layers: [mla, rwkv]", "layers.1 is 'rwkv'; expected 'gqa', 'mla' or 'mamba2'"),
        ("layers: [mla, mla]", "layers: [mla, gqa]", "gqa is not given; expected its numbers, since a layer has it"),
        ("feed_forward: [dense, moe]", "feed_forward: [moe]", "expected one for each of the 2 layers, 1 were given"),
        ("feed_forward: [dense, moe]", "", "moe is given; expected a layer that has it"),
        ("intermediate_size: 48", "", "intermediate_size is not given; expected it"),
        ("feed_forward: [dense, moe]", "feed_forward: [moe, moe]", "intermediate_size is 48; expected a layer with"),
        ("num_attention_heads: 4", "num_attention_heads: 4, hidden_size: 31", "mla.hidden_size is 31; expected .* 32"),
        ("vocab_size: 256", "vocab_size: [", "is not YAML"),
        (YAML, "- 1", "holds a list; expected a mapping"),
        (YAML, "", "holds null; expected a mapping"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(read, old, new, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(YAML.replace(old, new))
    assert "model.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_file_of_a_run_has_its_model(read):
    inner = "".join(f"  {line}\n" for line in YAML.strip().splitlines())
    assert read(f"model:\n{inner}train: {{num_steps: 3}}\n") == read(YAML)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        ModelConfig.from_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("family", DEFAULTS)
def test_a_silent_file_has_the_defaults_of_the_config_class(family):
    theirs = AutoConfig.for_model(family)
    for name, value in DEFAULTS[family].items():
        if hasattr(theirs, name):
            assert getattr(theirs, name) == value, name
    spoken = {"num_experts_per_tok": 6} if family == "deepseek_v2" else {}
    sizes = {name: getattr(theirs, name) for name in ("num_hidden_layers", "hidden_size")}
    silent = ModelConfig.from_hf({"model_type": family} | sizes | spoken)
    assert silent == ModelConfig.from_hf(theirs.to_dict() | spoken)


V3 = {"model_type": "deepseek_v3", "num_hidden_layers": 4, "hidden_size": 64}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"model_type": "qwen3", "num_hidden_layers": 2}, "model_type is 'qwen3'; expected one of deepseek_v2, "),
        (V3 | {"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
        (V3 | {"scoring_func": "softmax"}, "scoring_func is 'softmax' and topk_method 'noaux_tc'; expected 'sigmoid'"),
        (V3 | {"moe_layer_freq": 2}, "moe_layer_freq is 2; expected 1"),
        (V3 | {"n_group": 7}, "n_group is 7; expected a divisor of n_routed_experts, 256"),
        (V3 | {"num_experts_per_tok": None}, "num_experts_per_tok is None; expected a positive integer"),
        (V3 | {"vocab_size": "many"}, "vocab_size is 'many'"),
    ],
)
def test_a_file_that_makes_another_model_is_refused(file, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(file)


def test_dense_layers_come_first():
    assert ModelConfig.from_hf(V3).feed_forward == ("dense", "dense", "dense", "moe")
    assert ModelConfig.from_hf(V3 | {"first_k_dense_replace": 4}).moe is None
