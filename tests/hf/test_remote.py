"""Families that only their makers' code has: figures of published models, by hand."""

import pytest

from mla_edu.cost import kv_cache_bytes
from mla_edu.hf import CacheGroup, spec_from_hf
from mla_edu.hf.families import list_remote_families

MANY, FEW = {"n_heads_in_group": 8}, {"n_heads_in_group": 32}
NONE = {"n_heads_in_group": None, "no_op": True}


def sizes(layers, hidden, heads, **more):
    return {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, **more}


FILES = {  # the file, and bytes for a token in 16 bits: layers x (keys and values) x heads x width x 2
    "Baichuan-7B": (sizes(32, 4096, 32, model_type="baichuan"), 32 * 2 * 32 * 128 * 2),
    "InternLM-7B": (sizes(32, 4096, 32, model_type="internlm", bias=True), 32 * 2 * 32 * 128 * 2),
    "Qwen-7B": (sizes(32, 4096, 32, model_type="qwen", kv_channels=128), 32 * 2 * 32 * 128 * 2),
    "ChatGLM3-6B": (
        {"model_type": "chatglm", "num_layers": 28, "hidden_size": 4096, "num_attention_heads": 32}
        | {"multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 128},
        28_672,
    ),
    "Phi-2": ({"model_type": "phi-msft", "n_layer": 32, "n_embd": 2560, "n_head": 32, "n_head_kv": None}, 327_680),
    "Falcon-40B": (
        {"model_type": "RefinedWeb", "n_layer": 60, "hidden_size": 8192, "n_head": 128, "n_head_kv": 8},
        122_880,
    ),
    "Falcon-7B": (
        {"model_type": "RefinedWebModel", "n_layer": 32, "hidden_size": 4544, "n_head": 71, "multi_query": True},
        32 * 2 * 64 * 2,
    ),
    "Ouro-1.4B": (
        sizes(24, 2048, 16, model_type="ouro", num_key_value_heads=16, head_dim=128, total_ut_steps=4)
        | {"layer_types": ["full_attention"] * 24},
        786_432,  # four passes, each with a cache of its own
    ),
    "Llama-3.3-Nemotron-Super-49B": (
        sizes(80, 8192, 64, model_type="nemotron-nas", num_key_value_heads=None)
        | {"block_configs": [{"attention": MANY}] * 49 + [{"attention": NONE}] * 31},
        200_704,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_gives_the_bytes_by_hand(name):
    file, expected = FILES[name]
    spec = spec_from_hf(file)
    assert kv_cache_bytes(spec, 1) == expected
    assert "as its makers' code reads it" in spec.why and spec.cautions == ()
    assert file["model_type"] in list_remote_families()


def test_blocks_with_other_heads_are_groups_of_their_own():
    blocks = [{"attention": MANY}] * 2 + [{"attention": NONE}, {"attention": FEW}, {"attention": {"no_op": True}}]
    spec = spec_from_hf(sizes(5, 8192, 64, model_type="nemotron-nas", block_configs=blocks))
    assert spec.cache == (
        CacheGroup(role="kv", layers=2, elements=2 * 8 * 128, heads=8),
        CacheGroup(role="kv", layers=1, elements=2 * 2 * 128, heads=2),
    )


def test_deepseek_without_mla_has_the_heads_of_its_file():
    """DeepSeek-OCR's language model, and DeepSeek-VL2-Tiny's: twelve layers of multi-head attention."""
    text = sizes(12, 1280, 10, model_type="deepseek_v2", num_key_value_heads=10, use_mla=False, kv_lora_rank=None)
    text |= {"q_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0}
    spec = spec_from_hf({"model_type": "deepseek_vl_v2", "language_config": text})
    assert spec.kind == "mha" and kv_cache_bytes(spec, 1) == 12 * 2 * 10 * 128 * 2
    latent = text | {"use_mla": True, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}
    spec = spec_from_hf({"model_type": "deepseek_vl_v2", "language_config": latent | {"v_head_dim": 128}})
    assert spec.kind == "mla" and kv_cache_bytes(spec, 1) == 13_824


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("Ouro-1.4B", {"total_ut_steps": None}, "total_ut_steps is None"),
        ("Ouro-1.4B", {"total_ut_steps": 0}, "total_ut_steps is 0"),
        ("Ouro-1.4B", {"layer_types": ["sliding_attention"] * 24}, "several layer types"),
        ("ChatGLM3-6B", {"multi_query_group_num": None}, "multi_query_group_num is None"),
        ("ChatGLM3-6B", {"multi_query_group_num": 5}, "num_key_value_heads is 5; expected a divisor"),
        ("Falcon-40B", {"n_head_kv": None}, "n_head_kv is None"),
        ("Llama-3.3-Nemotron-Super-49B", {"block_configs": [{}] * 80}, "block_configs has attention None"),
        ("Llama-3.3-Nemotron-Super-49B", {"block_configs": [{"attention": NONE}] * 3}, "block_configs has 3 entries"),
        (
            "Llama-3.3-Nemotron-Super-49B",
            {"block_configs": [{"attention": {"n_heads_in_group": 7}}] * 80},
            "n_heads_in_group is 7; expected a divisor of num_attention_heads, 64",
        ),
    ],
)
def test_what_its_makers_code_could_not_run_is_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        spec_from_hf(FILES[name][0] | change)
