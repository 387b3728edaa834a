"""The crossover in Python: counts of the cost model, the chapter's formula, checked settings."""

import itertools
import math

import pytest

from mla_edu import MLAConfig
from mla_edu.book.widgets import AbsorptionCrossover
from mla_edu.book.widgets.absorption_crossover import quantities
from mla_edu.cost import absorption_crossover, attention_macs
from mla_edu.registry import get_model

V3 = get_model("deepseek-v3").config
CACHED = (0, 1, 2, 3, 100, 4096, 2**20)


def layer(kv_lora_rank, nope=128, rope=64, v=128):
    return MLAConfig(
        hidden_size=64,
        num_attention_heads=4,
        q_lora_rank=None,
        kv_lora_rank=kv_lora_rank,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=v,
    )


def both_modes(config, new, keys):
    return {mode: attention_macs(config, new, keys, mode, causal=False) for mode in ("expanded", "absorbed")}


def test_answers_are_those_of_the_cost_model():
    found = AbsorptionCrossover("deepseek-v2", new_tokens=7, cached_tokens=100).quantities
    macs = both_modes(V3, 7, 107)
    assert (found["expanded_macs"], found["absorbed_macs"]) == (macs["expanded"], macs["absorbed"])
    assert found["ratio"] == macs["absorbed"] / macs["expanded"]
    assert found["crossover"] == absorption_crossover(V3, 100)


@pytest.mark.parametrize(("rank", "cached"), list(itertools.product((129, 200, 512, 8192), CACHED)))
def test_crossover_is_the_last_count_at_which_absorbed_costs_no_more(rank, cached):
    config = layer(rank)
    most = absorption_crossover(config, cached)
    after = both_modes(config, most + 1, cached + most + 1)
    assert after["absorbed"] > after["expanded"]
    if most:
        last = both_modes(config, most, cached + most)
        assert last["absorbed"] <= last["expanded"]


@pytest.mark.parametrize("cached", [1000, 2**20])
def test_crossover_solves_the_equation_of_the_chapter(cached):
    most = absorption_crossover(V3, cached)
    assert most == math.floor(1 / ((2 * 512 - 256) / (512 * 256) + 1 / (cached + most)))


def test_nothing_crosses_over_an_empty_cache_or_below_a_narrow_latent():
    assert absorption_crossover(V3, 0) == 0
    assert absorption_crossover(layer(128), 1000) is None  # 2 d_c = d_nope + d_v
    macs = both_modes(layer(128), 10**6, 10**6 + 1000)
    assert macs["absorbed"] <= macs["expanded"]


def test_heads_scale_the_cost_and_leave_the_crossover():
    one = quantities(V3.model_copy(update={"num_attention_heads": 1}), 7, 32_768)
    all_ = quantities(V3, 7, 32_768)
    assert all_["absorbed_macs"] == 128 * one["absorbed_macs"]
    assert all_["crossover"] == one["crossover"] == AbsorptionCrossover().quantities["crossover"] == 169


def test_model_gives_the_latent_until_it_is_set():
    widget = AbsorptionCrossover("mistral-small-4-119b")
    assert (widget.config.num_attention_heads, widget.kv_lora_rank) == (32, 256)
    widget.kv_lora_rank = 300
    assert widget.config.kv_lora_rank == 300
    assert widget.config.qk_nope_head_dim == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "llama-2-7b"}, "model is 'llama-2-7b'; expected a model with multi-head latent attention"),
        ({"model": "deepseek-v33"}, "unknown model 'deepseek-v33'; nearest: .*deepseek-v3"),
        ({"kv_lora_rank": 0}, "kv_lora_rank is 0; expected an integer from 1 to 8,192"),
        ({"kv_lora_rank": 8193}, "kv_lora_rank is 8193; expected an integer from 1 to 8,192"),
        ({"new_tokens": 0}, "new_tokens is 0; expected an integer from 1 to 1,048,576"),
        ({"cached_tokens": -1}, "cached_tokens is -1; expected an integer from 0 to 1,048,576"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AbsorptionCrossover(**settings)


def test_viewers_that_run_no_widget_get_the_answers():
    data, _ = AbsorptionCrossover(new_tokens=1, cached_tokens=32_768)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    for text in (data["text/plain"], data["text/html"]):
        assert "expanded 551,114,809,344, absorbed 4,580,319,232" in text
        assert "up to 169 new tokens" in text
