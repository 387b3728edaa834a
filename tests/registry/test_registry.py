"""The registry: every model's cache recomputed from its dimensions, every trap of the field on its own, and GPUs."""

import pytest

from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.files import load_yaml
from mla_edu.hf import CacheGroup
from mla_edu.registry import get_gpu, get_model, list_gpus, list_models
from mla_edu.registry.entry import Entry, parse_count

ENTRIES = {entry["name"]: entry for entry in load_yaml("mla_edu.registry", "models.yaml")}
KNOWN = {  # bytes per token, 16 bit: DeepSeek-V2 paper Fig. 1(b), and figures quoted for arXiv 2505.09343
    "deepseek-67b": 389_120,
    "deepseek-v2": 69_120,
    "deepseek-v3": 70_272,
    "qwen2.5-72b-instruct": 327_680,
    "llama-3.1-405b": 516_096,
}


def kv(name: str, num_tokens: int) -> int:
    return sum(group.num_elements(num_tokens) for group in get_model(name).cache if group.role == "kv")


def test_the_registry_has_71_models_with_slugs_in_the_order_of_the_data():
    names = list_models()
    assert len(names) == len(set(names)) == 71
    assert names[:3] == ["deepseek-v2-lite", "deepseek-v2", "deepseek-v3"]
    assert {"llama-3.1-405b", "gpt-2-124m", "longcat-flash-chat"} <= set(names)


@pytest.mark.parametrize("name", ENTRIES)
def test_bytes_per_token_follow_from_the_dimensions(name):
    expected = ENTRIES[name]["bytes_per_token_16bit"]
    if expected is None:
        assert get_model(name).kind == "csa"  # an entry per block of tokens: no such figure; see below
    else:
        assert 2 * kv(name, 1) == expected


@pytest.mark.parametrize("name", ENTRIES)
def test_every_model_says_where_its_values_are_from_and_how_its_cache_is_counted(name):
    spec = get_model(name)
    assert spec.where and spec.sources and spec.why.endswith(".")
    assert spec.status in ("verified", "class_default", "secondary")
    assert spec.state_elements is not None


@pytest.mark.parametrize("name", KNOWN)
def test_published_figures(name):
    assert 2 * kv(name, 1) == KNOWN[name]


def test_longcat_has_two_caches_in_each_of_28_blocks():
    assert get_model("longcat-flash-chat").cache == (CacheGroup(role="kv", layers=56, elements=576),)


def test_kimi_caches_the_rotary_slice_that_it_does_not_rotate_and_only_in_full_layers():
    assert kv("kimi-linear-48b-a3b", 100) == 100 * 7 * (512 + 64)
    assert kv("kimi-k3", 100) == 100 * 24 * (512 + 64)


def test_windows_and_chunks_cap_local_layers_only():
    assert kv("mistral-7b-v0.1", 10**6) == kv("mistral-7b-v0.1", 4096) == 32 * 2048 * 4096
    assert kv("llama-4-maverick", 10**6) == 12 * 2048 * 10**6 + 36 * 2048 * 8192
    assert kv("gemma-3-27b", 131_072) == 10 * 4096 * 131_072 + 52 * 4096 * 1024
    assert kv("gpt-oss-120b", 1000) == 18 * 1024 * 1000 + 18 * 1024 * 128


def test_mimo_has_wider_keys_than_values_and_more_heads_in_local_layers():
    assert kv("mimo-v2-flash", 1000) == 9 * 4 * (192 + 128) * 1000 + 39 * 8 * (192 + 128) * 128
    assert get_model("mimo-v2-flash").config is None


def test_palm_head_dim_is_read_not_computed():
    spec = get_model("palm-540b")
    assert spec.config.head_dim == 256 != spec.config.hidden_size // spec.config.num_attention_heads
    assert spec.cache == (CacheGroup(role="kv", layers=118, elements=512),)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("deepseek-v3.2", 61), ("deepseek-v3.2-exp", 61), ("glm-5", 78), ("glm-5.1", 78), ("glm-5.2", 21)],
)
def test_sparse_attention_adds_an_index_key_where_a_layer_owns_an_indexer(name, layers):
    spec = get_model(name)
    assert [group for group in spec.cache if group.role == "index"] == [
        CacheGroup(role="index", layers=layers, elements=128)
    ]
    assert kv(name, 1) == spec.num_layers * 576


def test_mistral_large_3_is_known_by_its_cache_alone():
    spec = get_model("mistral-large-3-675b")
    assert spec.config is None and "not seen" in spec.no_config
    assert (spec.kv_lora_rank, spec.qk_rope_head_dim) == (512, 64) and kv(spec.name, 1) == 61 * 576


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "new_model"}, "family is 'new_model'; expected one of families.yaml"),
        ({"family": None}, "family is None and attention None; expected one of them"),
        ({"layers": {"attention": 61}}, "layers has attention; expected full_attention"),
        ({"colour": "red"}, "colour"),
        ({"layers": {"full_attention": "61"}}, "layers.full_attention"),
    ],
)
def test_an_entry_that_is_none_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Entry(**ENTRIES["deepseek-v3"] | changes)


@pytest.mark.parametrize("value", [{"kv_lora_rnak": 512}, {"kv_lora_rank": "512"}, {"hidden_size": None}])
def test_a_value_of_another_name_or_type_is_refused(value):
    entry = ENTRIES["deepseek-v3"]
    with pytest.raises(ValueError, match=next(iter(value))):
        Entry(**entry | {"values": entry["values"] | value}).spec()


def test_glm_5_3_flash_has_no_rotary_slice_and_pools_its_index_keys():
    spec = get_model("glm-5.3-flash")
    assert spec.config.qk_rope_head_dim == 0 and spec.config.elements_per_token == 512
    assert spec.cache == (
        CacheGroup(role="kv", layers=11, elements=512),
        CacheGroup(role="index", layers=11, elements=128, stride=16),
    )


def test_deepseek_v4_keeps_a_window_everywhere_and_entries_per_block():
    assert get_model("deepseek-v4-flash").cache == (
        CacheGroup(role="kv", layers=43, elements=512, window=128),
        CacheGroup(role="kv", layers=21, elements=512, stride=4),
        CacheGroup(role="kv", layers=20, elements=512, stride=128),
        CacheGroup(role="index", layers=21, elements=128, stride=4),
    )
    assert sum(group.layers for group in get_model("deepseek-v4-pro").cache[1:3]) == 61


def test_weights_have_the_format_that_their_makers_publish_or_none():
    formats = {name: get_model(name).weights for name in list_models()}
    known = {name: weights for name, weights in formats.items() if weights is not None}
    assert len(known) == 38 and all(len(weights.source) > 20 for weights in known.values())
    by_format = {name: (weights.attention, weights.others) for name, weights in known.items()}
    assert by_format["deepseek-v3"] == ("fp8", "fp8") and by_format["llama-3.1-70b"] == ("bf16", "bf16")
    assert by_format["gpt-oss-120b"] == ("bf16", "fp4") and by_format["kimi-k2.5"] == ("bf16", "int4")
    assert formats["palm-540b"] is None  # nobody has seen its weights


@pytest.mark.parametrize("weights", [{"attention": "bf16"}, {"attention": "fp6", "others": "fp6", "source": "none"}])
def test_weights_of_another_format_or_without_a_source_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        Entry(**ENTRIES["deepseek-v3"] | {"weights": weights})


def test_heads_of_a_cache_are_those_that_gpus_can_share_out():
    def heads(name):
        return [group.heads for group in get_model(name).cache if group.role == "kv"]

    assert heads("deepseek-v3") == heads("palm-540b") == [1] and heads("llama-3.1-70b") == [8]
    assert heads("mimo-v2-flash") == [4, 8] and heads("deepseek-v4-pro") == [1, 1, 1]


def test_recurrent_states_are_counted_and_absent_elsewhere():
    # Kimi delta attention: d x d per head, and the last 4 inputs of three convolutions.
    assert get_model("kimi-linear-48b-a3b").state_elements == 20 * (32 * 128 * 128 + 3 * 32 * 128 * 4)
    # Gated delta net: 32 value heads share 16 key heads.
    assert get_model("qwen3-next-80b-a3b").state_elements == 36 * (32 * 128 * 128 + (2 * 16 + 32) * 128 * 4)
    assert get_model("llama-3-8b").state_elements == 0


@pytest.mark.parametrize(
    ("window", "stride", "tokens", "entries"), [(None, 1, 9, 9), (5, 1, 9, 5), (None, 4, 3, 0), (None, 4, 9, 2)]
)
def test_entries_of_a_group(window, stride, tokens, entries):
    group = CacheGroup(role="kv", layers=3, elements=7, window=window, stride=stride)
    assert group.num_entries(tokens) == entries
    assert group.num_elements(tokens) == 21 * entries


def test_layer_configs_are_those_of_the_registry():
    assert isinstance(get_model("deepseek-v3").config, MLAConfig)
    llama = get_model("llama-3.1-405b").config
    assert isinstance(llama, GQAConfig) and llama.kind == "gqa" and llama.group_size == 16
    assert llama.rope_scaling.rope_type == "llama3"
    assert get_model("mistral-7b-v0.1").config.sliding_window == 4096
    assert get_model("gemma-3-4b").config.sliding_window is None  # its global layers


def test_kind_agrees_with_the_layer():
    for name in list_models():
        spec = get_model(name)
        assert spec.config is None or spec.kind == spec.config.kind, name


def test_names_are_found_in_any_case_and_by_repository():
    assert get_model("DeepSeek-V3") is get_model("deepseek-ai/DeepSeek-V3") is get_model("deepseek-v3")


@pytest.mark.parametrize("name", ENTRIES)
def test_the_file_read_as_a_whole_and_entry_by_entry_is_the_same(name):
    assert list_models() == list(ENTRIES)
    assert get_model(name) == Entry(**ENTRIES[name]).spec()
    assert ENTRIES[name]["hf_id"] is None or get_model(ENTRIES[name]["hf_id"].upper()) is get_model(name)


def test_null_is_no_repository():
    with pytest.raises(ValueError, match="unknown model 'null'"):
        get_model("null")


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match="unknown model 'deepsek-v3'; nearest: deepseek-v3"):
        get_model("deepsek-v3")
    with pytest.raises(ValueError, match="unknown model 'zzz'; expected one of 71"):
        get_model("zzz")


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        get_model("deepseek-v3").num_layers = 1


@pytest.mark.parametrize(
    ("text", "count"),
    [("671B", 671 * 10**9), ("15.7B", 15_700_000_000), ("1T", 10**12), ("16B (or so)", 16 * 10**9), (None, None)],
)
def test_parameter_counts(text, count):
    assert parse_count(text) == count


def test_gpus_are_dense_figures_with_sources():
    for name in list_gpus():
        gpu = get_gpu(name)
        assert gpu.sources and gpu.memory % 10**9 == 0
        # A sparse figure by mistake would be twice as high: dense fp8 is at most (a little over) twice fp16.
        assert gpu.flops.get("fp8", 0) <= 2.03 * gpu.flops["fp16"]
    assert get_gpu("H100").flops["bf16"] == 989_400_000_000_000
    assert "bf16" not in get_gpu("t4").flops


def test_an_unknown_gpu_names_the_nearest():
    with pytest.raises(ValueError, match="unknown GPU 'h20'; nearest: h200"):
        get_gpu("h20")


@pytest.mark.parametrize("name", [None, 3, ["deepseek-v3"], 10**5000, "x" * 5000, "\n"], ids=range(6))
def test_what_is_no_name_is_one_short_line(name):
    for look_up, what in ((get_model, "model"), (get_gpu, "GPU")):
        with pytest.raises(ValueError, match=f"unknown {what} .*; expected one of ") as caught:
            look_up(name)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
