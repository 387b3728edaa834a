"""What save_model writes, transformers loads by itself, and computes the same."""

import json
import logging
import os

import pytest
import torch
from transformers import AutoModelForCausalLM

import mla_edu.models.save as module
from mla_edu.models import Decoder, ModelConfig, load_model, save_model
from mla_edu.testing import randomize, relative_error
from tiny_models import draw_tokens

ROUNDED = 1e-5
HEADS = {"num_attention_heads": 3}
MLA = HEADS | {"q_lora_rank": 9, "kv_lora_rank": 8, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 6}
MOE = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 7, "n_shared_experts": 1}
GQA = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
YARN = {"rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 8, "mscale": 1.0, "mscale_all_dim": 1.0}
MODELS = {
    "dense MLA": ("deepseek_v3", {"layers": ["mla"] * 2, "mla": MLA | {"q_lora_rank": None}}),
    "dense MLA with YaRN": ("deepseek_v3", {"layers": ["mla"] * 2, "mla": MLA | {"rope_scaling": YARN}}),
    "MLA with experts": (
        "deepseek_v3",
        {"layers": ["mla"] * 3, "feed_forward": ["dense", "moe", "moe"], "mla": MLA, "moe": MOE | {"n_group": 2}},
    ),
    "experts alone": (
        "deepseek_v3",
        {"layers": ["mla"], "feed_forward": ["moe"], "intermediate_size": None, "mla": MLA, "moe": MOE},
    ),
    "softmax experts": (
        "deepseek_v2",
        {
            "layers": ["mla"] * 2,
            "feed_forward": ["dense", "moe"],
            "mla": MLA,
            "moe": MOE | {"scoring_func": "softmax", "norm_topk_prob": False, "n_group": 3, "topk_group": 2},
        },
    ),
    "halves": ("deepseek_v3", {"layers": ["mla"], "mla": MLA | {"rope_interleave": False, "attention_bias": True}}),
    "GQA": ("llama", {"layers": ["gqa"] * 2, "gqa": GQA, "tie_word_embeddings": True}),
    "GQA with biases": ("llama", {"layers": ["gqa"] * 2, "gqa": GQA | {"qkv_bias": True, "o_bias": True}}),
    "GQA with a window": ("mistral", {"layers": ["gqa"] * 2, "gqa": GQA | {"sliding_window": 5}}),
}
OURS = {
    "hybrid": {
        "layers": ["mamba2", "mla"],
        "mla": MLA,
        "mamba2": {"num_heads": 4, "head_dim": 6, "state_size": 5},
    },
    "no rotation": {"layers": ["mla"], "mla": MLA | {"rope_theta": None}},
    "scaled residuals": {"layers": ["mla"], "mla": MLA, "residual_scale": 0.5},
    "experts before dense": {"layers": ["mla"] * 2, "feed_forward": ["moe", "dense"], "mla": MLA, "moe": MOE},
    "no shared experts": {
        "layers": ["mla"] * 2,
        "feed_forward": ["dense", "moe"],
        "mla": MLA,
        "moe": MOE | {"n_shared_experts": 0},
    },
    "bias on one side": {"layers": ["gqa"], "gqa": GQA | {"qkv_bias": True}},
}
EAGER = {"dtype": torch.float64, "attn_implementation": "eager", "experts_implementation": "eager"}
COMMON = {"vocab_size": 53, "hidden_size": 24, "intermediate_size": 32, "rms_norm_eps": 0.01}


def small(options, dtype=torch.float64):
    model = randomize(Decoder(ModelConfig(**COMMON | options), dtype=dtype))
    for name, buffer in model.named_buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(len(name))) / 4)
    return model


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_transformers_computes_the_same_logits_and_warns_of_nothing(tmp_path, name, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model_type, options = MODELS[name]
    model, tokens = small(options), draw_tokens(17)
    assert save_model(model, tmp_path / "out") == model_type
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **EAGER)
    assert theirs.config.model_type == model_type and caplog.messages == []
    assert relative_error(theirs(tokens, use_cache=False).logits, model(tokens)) < ROUNDED


@pytest.mark.parametrize("options", [*(options for _, options in MODELS.values()), *OURS.values()])
@torch.no_grad()
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path, options):
    model = small(options, torch.bfloat16)
    save_model(model, tmp_path / "out")
    again = load_model(tmp_path / "out")
    for (name, weight), (other, same) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert weight.dtype == same.dtype
        assert torch.equal(weight, same)
    tokens = draw_tokens(5)
    assert torch.equal(model(tokens), again(tokens))


@pytest.mark.parametrize("name", OURS)
def test_what_transformers_has_no_class_for_is_ours(tmp_path, name):
    assert save_model(small(OURS[name]), tmp_path / "out") == "mla_edu"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "mla_edu"


@torch.no_grad()
def test_a_large_model_is_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 9000)
    model, tokens = small(MODELS["MLA with experts"][1]), draw_tokens(5)
    save_model(model, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    assert torch.equal(load_model(tmp_path / "out")(tokens), model(tokens))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **EAGER)
    assert relative_error(theirs(tokens, use_cache=False).logits, model(tokens)) < ROUNDED


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    save_model(small(OURS["no rotation"]), tmp_path / "out")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(FileExistsError, match="is there already; expected a folder that does not exist, or is empty"):
        save_model(small(OURS["hybrid"]), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == kept


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space left"):
        save_model(small(OURS["no rotation"]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("loop", FileExistsError, "loop is there already; expected a folder that does not exist"),
        ("dangling", FileExistsError, "dangling is there already; expected a folder that does not exist"),
        ("file/below", OSError, "file/below cannot be made: .*; expected a folder that does not exist"),
        ("x" * 5000, OSError, "xxx.* cannot be made: File name too long; expected"),
        ("a\0b", OSError, r"a.x00b' cannot be made: embedded null byte; expected"),
    ],
    ids=range(5),
)
def test_a_place_where_no_folder_can_be_made_is_one_error(tmp_path, place, error, message):
    os.symlink("loop", tmp_path / "loop")
    os.symlink("nowhere", tmp_path / "dangling")
    (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message) as caught:
        save_model(small(OURS["no rotation"]), tmp_path / place)
    assert len(str(caught.value)) < 700 and sorted(tmp_path.iterdir()) == before


def test_what_is_saved_is_a_model_and_where_a_path(tmp_path):
    with pytest.raises(TypeError, match="model is a str; expected a Decoder"):
        save_model("model", tmp_path / "out")
    with pytest.raises(TypeError, match="folder is 1; expected a path"):
        save_model(small(OURS["no rotation"]), 1)
    assert list(tmp_path.iterdir()) == []
