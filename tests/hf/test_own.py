"""Models that no family of transformers is, as ``save_model`` writes them."""

import json

import pytest

from mla_edu import cost
from mla_edu.hf import spec_from_hf
from mla_edu.models import Decoder, ModelConfig, save_model
from mla_edu.models.save import hf_config

HEADS = {"num_attention_heads": 4}
MLA = HEADS | {"q_lora_rank": None, "kv_lora_rank": 9, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 6}
GQA = HEADS | {"num_key_value_heads": 2, "head_dim": 6}
MAMBA2 = {"num_heads": 4, "head_dim": 6, "state_size": 5}
HYBRID = {"layers": ["mamba2", "mla", "mamba2"], "mla": MLA, "mamba2": MAMBA2}


def model_config(values):
    return ModelConfig(vocab_size=53, hidden_size=24, intermediate_size=32, **values)


def own_file(values):
    return {"model_type": "mla_edu", **model_config(values).model_dump(mode="json")}


@pytest.mark.parametrize(
    "values",
    [
        {"layers": ["mla"] * 3, "mla": MLA},
        {"layers": ["gqa"] * 3, "gqa": GQA},
        {"layers": ["gqa"] * 3, "gqa": GQA | {"sliding_window": 7}},
    ],
)
def test_layers_that_transformers_has_too_cache_what_theirs_do(values):
    own, theirs = spec_from_hf(own_file(values)), spec_from_hf(hf_config(model_config(values)))
    assert (own.kind, own.num_layers, own.num_attention_heads) == (theirs.kind, theirs.num_layers, 4)
    assert (own.cache, own.config) == (theirs.cache, theirs.config)


def test_a_hybrid_keeps_latents_and_states(tmp_path):
    save_model(Decoder(model_config(HYBRID)), tmp_path / "model")
    spec = spec_from_hf(tmp_path / "model")
    assert spec.kind == "mla" and cost.kv_cache_bytes(spec, 7, 3) == 2 * 3 * 7 * (9 + 4)
    width, kept = 4 * 6, 3  # and the inputs that the convolution still sees
    assert cost.state_bytes(spec) == 4 * 2 * (width * 5 + (width + 2 * 5) * kept)
    stored = (tmp_path / "model" / "model.safetensors").read_bytes()
    weights = json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])
    ends = [each["data_offsets"][1] for name, each in weights.items() if name != "__metadata__"]
    assert cost.weight_bytes(spec) == max(ends)


def test_latents_beside_keys_and_values_are_both_counted():
    spec = spec_from_hf(own_file({"layers": ["gqa", "mla", "gqa"], "mla": MLA, "gqa": GQA}))
    assert spec.kind == "mla" and spec.state_elements == 0
    assert cost.kv_cache_bytes(spec, 7) == 2 * 7 * (2 * 2 * 2 * 6 + 9 + 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": []}, "layers: .*at least 1|layers is .*at least 1"),
        ({"layers": ["mla", "rwkv"]}, "layers.1 is 'rwkv'; expected"),
        ({"layers": ["gqa"]}, "gqa is None; expected the sizes of the layers that are 'gqa'"),
        ({"layers": ["mamba2"]}, "has no attention layer; expected at least one"),
        ({"mla": {"num_attention_heads": 4}}, "mla: .*kv_lora_rank: missing"),
        ({"mla": 5}, "mla is 5; expected"),
        (
            {"mamba2": MAMBA2 | {"hidden_size": 24, "state_size": -1}},
            "mamba2: .*state_size is -1; expected greater than 0",
        ),
    ],
)
def test_a_bad_file_is_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        spec_from_hf(own_file(HYBRID) | change)
    assert "\n" not in str(caught.value)
