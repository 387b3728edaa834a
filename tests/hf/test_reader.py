"""``spec_from_hf`` against the caches that transformers fills: tiny random models of every family that it reads."""

import dataclasses
import json
import math
from collections.abc import Mapping

import pytest
import torch
import transformers

from mla_edu.files import load_yaml
from mla_edu.hf import spec_from_hf
from mla_edu.hf.families import Family, get_family
from mla_edu.registry import get_model
from tiny_families import build, tiny_config

FAMILIES = load_yaml("mla_edu.hf", "families.yaml")
INDEX_KEYS = ("indexer_keys", "compressed_kv.indexer", "idx_keys")


def run(config, num_tokens: int):
    """The cache that a random model of this config holds after ``num_tokens`` tokens."""
    torch.manual_seed(0)
    model = build(config)
    with torch.no_grad():
        return model.eval()(torch.randint(3, 60, (1, num_tokens)), use_cache=True).past_key_values


def measured(cache) -> dict[str, int]:
    """Numbers in a cache by role; a tensor that stands under two names is counted once."""
    counts = {"kv": 0, "index": 0, "state": 0}
    counts["state"] += sum(len(part) and part.numel() for part in getattr(cache, "linear_cache", []))  # MiniMax
    for layer in cache.layers:
        tensors = {}
        for name, value in vars(layer).items():
            inner = value.items() if isinstance(value, Mapping) else [(None, value)]
            for key, tensor in inner:
                if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.numel():
                    tensors.setdefault(tensor.data_ptr(), (name if key is None else f"{name}.{key}", tensor.numel()))
        for name, count in tensors.values():
            role = "kv" if name in ("keys", "values", "compressed_kv.compressor") else "state"
            counts["index" if name in INDEX_KEYS else role] += count
    return counts


def counted(spec, num_tokens: int) -> dict[str, int]:
    """The same from the spec; between steps transformers keeps one token less than the window, as the next joins it."""
    counts = {"kv": 0, "index": 0, "state": spec.state_elements}
    for group in spec.cache:
        window = group.window and group.window - 1
        counts[group.role] += group.model_copy(update={"window": window}).num_elements(num_tokens)
    return counts


# DeepSeek-V4 after 127 tokens: its unfinished blocks of 4 and of 128 are as full as they get.
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"glm5_next_text"}))
def test_the_count_is_what_transformers_caches(family):
    num_tokens = 127 if family == "deepseek_v4" else 11
    config = tiny_config(family)
    assert counted(spec_from_hf(json.loads(config.to_json_string(use_diff=False))), num_tokens) == measured(
        run(config, num_tokens)
    )


RULED = [
    name
    for name, family in FAMILIES.items()
    if family["rule"] in ("every", "last_layers", "alternate", "no_rope", "mimo", "window")
]


@pytest.mark.parametrize("family", RULED)
def test_a_file_that_lists_no_layer_types_gives_those_of_the_config_class(family):
    hf = json.loads(tiny_config(family).to_json_string(use_diff=False))
    silent = {key: value for key, value in hf.items() if key not in ("layer_types", "no_rope_layers")}
    assert spec_from_hf(silent).cache == spec_from_hf(hf).cache


# Their classes or ours want more of a file than its sizes: lists of the layers, or heads that fit the others.
SAY_MORE = {
    "bamba",
    "gpt_neo",
    "granitemoehybrid",
    "kimi_linear",
    "lfm2_moe",
    "nemotron",
    "nemotron_h",
    "zamba2",
    "deepseek_v4",
}


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - SAY_MORE))
def test_a_file_with_its_sizes_alone_has_the_cache_of_its_config_class(family):
    defaults = {field.name: field.default for field in dataclasses.fields(transformers.CONFIG_MAPPING[family])}
    layers = next(key for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if key in defaults)
    hidden = next(key for key in ("hidden_size", "n_embd", "d_model") if key in defaults)
    file = {"model_type": family, layers: 31, hidden: 128 * 7 * 9 * 71 * 26 * 10}
    theirs = json.loads(transformers.CONFIG_MAPPING[family].from_dict(dict(file)).to_json_string(use_diff=False))
    ours, whole = spec_from_hf(file), spec_from_hf(theirs)
    assert (ours.cache, ours.state_elements, ours.num_layers) == (whole.cache, whole.state_elements, whole.num_layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_read_as_a_whole_and_family_by_family_is_the_same(family):
    assert get_family(family) == Family(**FAMILIES[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_the_config_class(family):
    defaults = {field.name: field.default for field in dataclasses.fields(transformers.CONFIG_MAPPING[family])}
    for name, value in FAMILIES[family]["defaults"].items():
        assert defaults[name] == value, name


def test_v4_layers_with_a_window_alone_hold_one_vector_that_transformers_stores_twice():
    config = tiny_config("deepseek_v4")
    config.layer_types = ["sliding_attention", "sliding_attention", *config.layer_types[2:]]
    cache = run(config, 11)
    twice = [layer for layer in cache.layers if layer.keys.data_ptr() != layer.values.data_ptr()]
    assert len(twice) == 2 and all(torch.equal(layer.keys, layer.values) for layer in twice)
    needed = counted(spec_from_hf(config.to_dict()), 11)["kv"]
    assert measured(cache)["kv"] == needed + sum(layer.values.numel() for layer in twice)


def test_glm5_next_needs_one_index_key_per_complete_pool():
    """Transformers keeps key, gate and a flag per token and pools at every step; complete pools never change again."""
    config = tiny_config("glm5_next_text")
    spec = spec_from_hf(config.to_dict())
    model = transformers.Glm5NextTextModel(config).eval()
    indexed = config.layer_types.index("indexed_attention")
    tokens = torch.randint(3, 60, (1, 23))
    pools = {}
    for num_tokens in (11, 23):
        with torch.no_grad():
            cache = model(tokens[:, :num_tokens], use_cache=True).past_key_values
            packed = cache.layers[indexed].indexer_keys
            pools[num_tokens] = model.layers[indexed].self_attn.indexer.get_pooled_states(packed_states=packed)[0]
    assert packed.shape == (1, 23, 2 * config.index_head_dim + 1)
    torch.testing.assert_close(pools[11][:, : 11 // 4], pools[23][:, : 11 // 4])
    index = spec.cache[1]
    assert (index.role, index.elements, index.stride) == ("index", config.index_head_dim, 4)
    assert pools[23][:, : index.num_entries(23)].numel() == index.elements * 5
    got = measured(cache)
    assert got["kv"] == counted(spec, 23)["kv"]
    pending = index.layers * 3 * 2 * config.index_head_dim  # key and gate of the unfinished pool's tokens, at most
    assert got["state"] + pending == spec.state_elements


def test_falcon_40b_has_eight_heads_though_transformers_repeats_them():
    config = {"model_type": "falcon", "num_hidden_layers": 60, "hidden_size": 8192, "num_attention_heads": 128}
    spec = spec_from_hf(config | {"num_kv_heads": 8, "new_decoder_architecture": True})
    assert spec.cache == get_model("falcon-40b").cache


# Files as their makers published them, cut to what matters, against the registry.
PUBLISHED = {
    "gpt-2-124m": {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12},
    "falcon-7b": {
        "model_type": "falcon",
        "num_hidden_layers": 32,
        "hidden_size": 4544,
        "num_attention_heads": 71,
        "multi_query": True,
    },
    "starcoder-15.5b": {"model_type": "gpt_bigcode", "n_layer": 40, "n_embd": 6144, "n_head": 48, "multi_query": True},
    "gemma-3-4b": {  # silent on the number of heads
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
    },
    "qwen2.5-72b-instruct": {
        "model_type": "qwen2",
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "sliding_window": 131072,
        "max_window_layers": 70,
        "use_sliding_window": False,
    },
    "kimi-k2-instruct": {
        "model_type": "kimi_k2",
        "hidden_size": 7168,
        "num_hidden_layers": 61,
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    },
    "kimi-linear-48b-a3b": {
        "model_type": "kimi_linear",
        "hidden_size": 2304,
        "num_hidden_layers": 27,
        "num_attention_heads": 32,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "linear_attn_config": {
            "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
            "kda_layers": [i for i in range(1, 27) if i % 4],
            "head_dim": 128,
            "num_heads": 32,
            "short_conv_kernel_size": 4,
        },
    },
    "longcat-flash-chat": {
        "model_type": "longcat_flash",
        "num_layers": 28,
        "hidden_size": 6144,
        "num_attention_heads": 64,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
    },
    "llama-4-maverick": {
        "model_type": "llama4",
        "text_config": {
            "model_type": "llama4_text",
            "hidden_size": 5120,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "attention_chunk_size": 8192,
            "no_rope_layers": [],
        },
    },
    "deepseek-v4-flash": {
        "model_type": "deepseek_v4",
        "hidden_size": 4096,
        "num_hidden_layers": 43,
        "num_attention_heads": 64,
        "num_key_value_heads": 1,
        "head_dim": 512,
        "sliding_window": 128,
        "index_head_dim": 128,
        "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
    },
    "glm-5.2": {
        "model_type": "glm_moe_dsa",
        "hidden_size": 6144,
        "num_hidden_layers": 78,
        "num_attention_heads": 64,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "index_head_dim": 128,
        "indexer_types": ["full"] * 21 + ["shared"] * 57,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_give_the_registrys_cache(name):
    spec, known = spec_from_hf(PUBLISHED[name]), get_model(name)
    assert sorted(map(str, spec.cache)) == sorted(map(str, known.cache))
    assert (spec.kind, spec.num_layers, spec.state_elements) == (known.kind, known.num_layers, known.state_elements)


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_file_or_its_folder_is_read(tmp_path, as_folder):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PUBLISHED["falcon-7b"]))
    spec = spec_from_hf(tmp_path if as_folder else path)
    assert spec.kind == "mqa" and spec.num_parameters is None and str(tmp_path) in spec.where


UNSEEN = {"model_type": "new_model", "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}


def test_an_unseen_family_is_read_where_its_file_says_everything():
    unused = {"sliding_window": 64, "use_sliding_window": False, "max_window_layers": 3}
    spec = spec_from_hf(UNSEEN | unused | {"num_key_value_heads": 2, "layer_types": ["full_attention"] * 4})
    assert spec.kind == "gqa" and spec.cache[0].elements == 2 * 2 * 64
    spec = spec_from_hf(UNSEEN | {"kv_lora_rank": 96, "qk_rope_head_dim": 32})
    assert spec.kind == "mla" and spec.cache[0].elements == 128


LLAMA = {"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (UNSEEN, "'new_model' is not known, and its config.json gives no num_key_value_heads"),
        (UNSEEN | {"num_key_value_heads": 2, "sliding_window": 64}, "sliding_window = 64 may change its cache"),
        (UNSEEN | {"num_key_value_heads": 2, "mamba_d_state": 64}, "mamba_d_state = 64 may change its cache"),
        (UNSEEN | {"kv_lora_rank": 96}, "expected qk_rope_head_dim beside it"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "'t5' is an encoder-decoder"),
        ({"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 32, "state_size": 16}, "no attention layer"),
        ({"hidden_size": 512}, "model_type is None"),
        (LLAMA | {"hidden_size": None}, "hidden_size is None"),
        (LLAMA | {"num_hidden_layers": "4"}, "num_hidden_layers is '4'"),
        (LLAMA | {"num_attention_heads": -8}, "num_attention_heads is -8"),
        (LLAMA | {"head_dim": 1.5}, "head_dim is 1.5"),
        (LLAMA | {"sliding_window": 64}, "has a sliding window or several layer types"),
        (LLAMA | {"layer_types": ["sliding_attention"] * 4}, "has a sliding window or several layer types"),
        (LLAMA | {"model_type": "gemma2", "layer_types": ["full_attention"] * 3}, "has 3 entries; expected num_hidden"),
        (LLAMA | {"model_type": "gemma2", "layer_types": ["novel_attention"] * 4}, "has 'novel_attention'"),
        (LLAMA | {"model_type": "gemma2", "sliding_window": 0}, "sliding_window is 0"),
        (
            LLAMA | {"model_type": "exaone4", "num_key_value_heads": 8, "sliding_window_pattern": "LLLG"},
            "of 'exaone4' is 'LLLG'",
        ),
        (LLAMA | {"model_type": "zamba2"}, "has no layer_types"),
        (LLAMA | {"model_type": "granitemoehybrid", "layer_types": ["mamba"] * 4}, "has no attention layer"),
        (
            LLAMA | {"model_type": "kimi_linear"},
            "layer_types is missing; expected it, or linear_attn_config with full_attn_layers",
        ),
        (LLAMA | {"model_type": "deepseek_v4", "compress_ratios": [8] * 4}, "compress_ratios of 'deepseek_v4'"),
        (LLAMA | {"model_type": "glm_moe_dsa", "indexer_types": ["full"]}, "indexer_types has 1 entries"),
    ],
)
def test_what_cannot_be_known_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        spec_from_hf(config)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        spec_from_hf(tmp_path / "config.json")


def test_the_measure_sees_every_tensor():
    """The test's own count, on a cache whose size is known: 2 x 6 layers x 2 heads x 16 x 11 tokens."""
    assert measured(run(tiny_config("llama"), 11)) == {"kv": math.prod((2, 6, 2, 16, 11)), "index": 0, "state": 0}
