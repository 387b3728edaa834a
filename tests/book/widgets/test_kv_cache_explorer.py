"""The cache explorer in Python: answers of the cost model, checked settings, a table where no widget can run."""

import itertools

import pytest

from mla_edu import cost
from mla_edu.book.widgets import KVCacheExplorer
from mla_edu.book.widgets.kv_cache_explorer import DTYPES, OWN_LIMITS, cache_dtype, own_model, what_if
from mla_edu.registry import get_model, list_models


def test_answers_are_those_of_the_cost_model():
    explorer = KVCacheExplorer(models=["llama-3.1-70b"], tokens=8192, batch=3, dtype="fp8", gpu="h100", gpus=4)
    (found,) = explorer.quantities
    assert found["bytes_per_token"] == cost.kv_cache_bytes("llama-3.1-70b", 1, 1, "fp8")
    assert found["bytes_per_sequence"] == cost.sequence_bytes("llama-3.1-70b", 8192, "fp8")
    assert found["bytes_total"] == 3 * found["bytes_per_sequence"]
    for way, layout in cost.layouts(4).items():
        fit, each = cost.fit("llama-3.1-70b", "h100", 8192, layout, 3, "fp8"), found["on_each"][way]
        assert (each["weight_bytes"], each["max_sequences"]) == (fit.weight_bytes, fit.max_sequences)
        assert each["max_tokens"] == fit.max_tokens and each["copies"] == 1
        assert each["bytes_per_sequence"] == cost.sequence_share("llama-3.1-70b", 8192, layout, "fp8").total
    assert KVCacheExplorer(models=["deepseek-v3"], tokens=131072).quantities[0]["bytes_per_token"] == 70272


def test_attributes_can_be_set_and_change_the_answers():
    explorer = KVCacheExplorer(models=["deepseek-ai/DeepSeek-V3"])
    assert explorer.models == ["deepseek-v3"]
    explorer.dtype, explorer.tokens = "fp8_mla", 1000
    assert explorer.quantities[0]["bytes_per_token"] == 61 * 656
    assert explorer.quantities[0]["bytes_per_sequence"] == 61 * 656 * 1000


def test_a_latent_is_on_every_gpu_and_few_heads_leave_no_layout():
    v3, gemma = KVCacheExplorer(models=["deepseek-v3", "gemma-3-1b"]).quantities
    assert [each["copies"] for each in v3["on_each"].values()] == [8, 1, 1]
    assert v3["weights"] == {"attention": "fp8", "others": "fp8"} and v3["weight_bytes"] == 671 * 10**9
    assert gemma["on_each"]["tensor"] is gemma["on_each"]["context"] is None
    explorer = KVCacheExplorer(models=["deepseek-v3"], weights="bf16")
    assert explorer.quantities[0]["weight_bytes"] == 2 * 671 * 10**9


def test_answers_follow_the_models():
    names = ["gemma-3-27b", "deepseek-v3", "own", "gemma-3-27b"]
    assert [row["name"] for row in KVCacheExplorer(models=names).quantities] == names


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ["deepseek-v33"]}, "unknown model 'deepseek-v33'; nearest: .*deepseek-v3"),
        ({"models": "deepseek-v3"}, "models is 'deepseek-v3'; expected a list"),
        ({"models": []}, "models has 0 names; expected 1 to 4"),
        ({"models": ["deepseek-v3"] * 5}, "models has 5 names; expected 1 to 4"),
        ({"tokens": 0}, "tokens is 0; expected an integer from 1 to 1,048,576"),
        ({"tokens": 2**20 + 1}, "tokens is 1048577"),
        ({"batch": 70_000}, "batch is 70000; expected an integer from 1 to 65,536"),
        ({"dtype": "int4"}, "dtype is 'int4'; expected fp32, fp16, bf16, fp8, fp8_mla"),
        ({"weights": "fp6"}, "weights is 'fp6'; expected published, fp32"),
        ({"gpus": 0}, "gpus is 0; expected an integer from 1 to 1,024"),
        ({"gpu": "h1000"}, "unknown GPU 'h1000'; nearest: .*h100"),
        ({"own": {"heads": 1}}, "own has 'heads'; expected num_layers"),
        ({"own": {"num_layers": 0}}, r"own\['num_layers'\] is 0; expected an integer from 1 to 1,000"),
        ({"own": {"head_dim": 63}}, r"own\['head_dim'\] is 63; expected a multiple of 2"),
        (
            {"own": {"num_key_value_heads": 7}},
            "num_key_value_heads is 7; expected a divisor of num_attention_heads, 32",
        ),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        KVCacheExplorer(**settings)


def test_refused_setting_leaves_the_old_one():
    explorer = KVCacheExplorer()
    with pytest.raises(ValueError):
        explorer.tokens = -1
    assert explorer.tokens == 131072


def test_own_dimensions():
    gqa = own_model({"num_layers": 10, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64})
    mla = own_model({"num_layers": 61, "kv_lora_rank": 512})
    assert (gqa.kind, cost.kv_cache_bytes(gqa, 1)) == ("gqa", 2 * 10 * 2 * 4 * 64)
    assert (mla.kind, cost.kv_cache_bytes(mla, 1, 1, "fp8_mla")) == ("mla", 61 * 656)
    assert own_model({"num_parameters": 0}).num_parameters is None
    explorer = KVCacheExplorer(models=["own"], own={"num_layers": 1})
    assert explorer.quantities[0]["bytes_per_token"] == 2 * 2 * OWN_LIMITS["num_key_value_heads"][3] * 128


def test_another_attention_changes_the_layers_alone():
    v3 = what_if(get_model("deepseek-v3"))
    assert round(cost.kv_cache_bytes(v3["mha"], 131072) / 1e9) == 655
    assert cost.kv_cache_bytes(v3["mla"], 1) == cost.kv_cache_bytes("deepseek-v3", 1)
    llama = what_if(get_model("llama-3.1-70b"))
    assert cost.kv_cache_bytes(llama["gqa-8"], 1) == cost.kv_cache_bytes("llama-3.1-70b", 1)
    assert cost.kv_cache_bytes(llama["mha"], 1) == 8 * cost.kv_cache_bytes("llama-3.1-70b", 1)
    assert cost.kv_cache_bytes(llama["mla"], 1) == 2 * 80 * 576
    gemma = what_if(get_model("gemma-3-27b"))  # its windows stay
    assert {group.window for group in gemma["mqa"].cache} == {group.window for group in get_model("gemma-3-27b").cache}
    assert what_if(get_model("mimo-v2-flash")) == {}


def test_a_row_is_for_models_that_have_it():
    assert cache_dtype(get_model("deepseek-v3"), "fp8_mla") == "fp8_mla"
    assert cache_dtype(get_model("llama-3.1-70b"), "fp4_mla_352") == "fp8"
    assert cache_dtype(get_model("deepseek-v4-pro"), "fp8_csa") == "fp8_csa"
    assert (
        cache_dtype(get_model("deepseek-v3"), "fp8_csa")
        == cache_dtype(get_model("deepseek-v4-pro"), "fp8_mla")
        == "fp8"
    )
    for name, dtype in itertools.product(list_models(), DTYPES):
        cost.kv_cache_bytes(name, 1, 1, cache_dtype(get_model(name), dtype))


def test_viewers_that_run_no_widget_get_a_table():
    data, _ = KVCacheExplorer(models=["deepseek-v3"])._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    for text in (data["text/plain"], data["text/html"]):
        assert "1 x 131,072 tokens; cache bf16; weights published; 8 x NVIDIA H200" in text
        assert "9,210,691,584" in text and "1,151,336,448" in text
    assert data["text/html"].count("<tr>") == 4
