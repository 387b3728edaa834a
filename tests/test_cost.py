"""The cost model: figures known from papers, and identities that must hold for any layer."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_edu.cost import (
    ROWS,
    Cost,
    Rates,
    absorption_crossover,
    attention_cost,
    attention_macs,
    attention_macs_per_score,
    cache_format,
    cheaper_mode,
    expansion_macs_per_token,
    fp8_row_bytes,
    index_cache_bytes,
    kernel_cost,
    kv_cache_bytes,
    mla_row_bytes,
    num_attention_parameters,
    num_scores,
    number_format,
    pace,
    projection_cost,
    rates,
    ridge,
    roofline,
    sequence_bytes,
    state_bytes,
    step_seconds,
    weight_format,
)
from mla_edu.registry import get_gpu, get_model, list_gpus, list_models
from strategies import gqa_configs, mla_configs

V3 = get_model("deepseek-v3").config
LLAMA = get_model("llama-3.1-405b").config

counts = st.integers(1, 300)
formats = st.sampled_from(["fp32", "fp16", "bf16", "fp8"])


windows = st.none() | counts
gqa_layers = st.builds(lambda c, w: c.model_copy(update={"sliding_window": w}), gqa_configs(), windows)
rotary = st.sampled_from([0, 2, 64])
mla_layers = st.builds(lambda c, r: c.model_copy(update={"qk_rope_head_dim": r}), mla_configs(), rotary)


def test_bytes_per_token_of_published_models():
    assert kv_cache_bytes("deepseek-67b", 1) == 389_120
    assert kv_cache_bytes("deepseek-v3", 1) == 70_272
    assert kv_cache_bytes("llama-3.1-405b", 1) == 516_096
    # 93.3 % (DeepSeek-V2 abstract): 6 bits a number against DeepSeek 67B in 16 bits.
    assert round(1 - kv_cache_bytes("deepseek-v2", 1) * 6 / 16 / 389_120, 3) == 0.933


def test_fp8_layouts():
    assert fp8_row_bytes(512, 64) == kv_cache_bytes(V3, 1, dtype="fp8_mla") == 656
    assert kv_cache_bytes("deepseek-v3", 1, dtype="fp8_mla") == 40_016
    assert kv_cache_bytes("deepseek-v3", 1, dtype="fp8") == 35_136
    assert index_cache_bytes("deepseek-v3.2", 1, dtype="fp8") == index_cache_bytes("deepseek-v3.2", 1, dtype="fp8_mla")
    assert index_cache_bytes("deepseek-v3.2", 1, dtype="fp8") == 61 * 132
    assert index_cache_bytes("deepseek-v3.2", 1) == 61 * 256
    assert index_cache_bytes("deepseek-v3", 1000) == 0


@pytest.mark.parametrize(
    ("dtype", "row", "parts"),
    [  # the bytes of each part of a row, as its source lists them
        ("bf16", 1152, 2 * (512 + 64)),
        ("fp8_mla", 656, 512 + 4 * 4 + 2 * 64),
        ("fp4_mla_432", 432, 256 + 32 + 16 + 2 * 64),
        ("fp4_mla_368", 368, 256 + 32 + 4 + 12 + 64),
        ("fp4_mla_352", 352, 256 + 64 + 32),
    ],
)
def test_rows_of_a_latent_of_512_and_a_rotary_key_of_64(dtype, row, parts):
    assert kv_cache_bytes(V3, 1, dtype=dtype) == row == parts
    assert dtype == "bf16" or (ROWS[dtype].bytes, ROWS[dtype].kind) == (row, "mla")


def test_rows_of_other_models():
    # local-inference-lab/b12x PR 266: GLM-5.3-Flash has no rotary key, and rows of 528 and 304 bytes.
    assert kv_cache_bytes("glm-5.3-flash", 1, dtype="fp8_mla") == 11 * 528
    assert kv_cache_bytes("glm-5.3-flash", 1, dtype="fp4_mla_368") == 11 * 304
    # vLLM PR 56893: 448 numbers in fp8, 64 in bf16, 8 bytes of scales; a window's token in each of 43 layers.
    assert kv_cache_bytes("deepseek-v4-flash", 1, dtype="fp8_csa") == 43 * (448 + 128 + 8)
    assert index_cache_bytes("deepseek-v4-flash", 4, dtype="fp8_csa") == 21 * 132


def test_states_do_not_grow():
    assert state_bytes("kimi-linear-48b-a3b", 3) == 3 * 4 * get_model("kimi-linear-48b-a3b").state_elements
    assert state_bytes("deepseek-v3") == 0


@given(st.sampled_from(list_models()), st.integers(0, 10**6), st.integers(1, 64), formats)
def test_a_models_cache_is_the_sum_of_its_groups_and_never_shrinks(name, tokens, batch, dtype):
    size = kv_cache_bytes(name, tokens, batch, dtype)
    assert size == batch * kv_cache_bytes(get_model(name), tokens, 1, dtype)
    assert size <= kv_cache_bytes(name, tokens + 1, batch, dtype)
    assert sequence_bytes(name, tokens, dtype) == (
        kv_cache_bytes(name, tokens, 1, dtype) + index_cache_bytes(name, tokens, 1, dtype) + state_bytes(name)
    )


@given(gqa_layers, counts, counts)
def test_a_layers_cache_is_a_key_and_a_value_per_group_up_to_its_window(config, tokens, batch):
    kept = min(tokens, config.sliding_window or tokens)
    assert kv_cache_bytes(config, tokens, batch) == 2 * 2 * config.num_key_value_heads * config.head_dim * kept * batch


@given(mla_layers, counts)
def test_an_mla_layers_cache_is_one_latent_and_one_rotary_key(config, tokens):
    assert kv_cache_bytes(config, tokens) == 2 * (config.kv_lora_rank + config.qk_rope_head_dim) * tokens


@given(st.integers(0, 40), st.integers(1, 40), st.none() | st.integers(1, 50))
def test_scores_are_the_ones_of_a_causal_mask(cached, new, window):
    seen = [
        [j <= i and (window is None or i - j < window) for j in range(cached + new)]
        for i in range(cached, cached + new)
    ]
    assert num_scores(cached, new, window) == sum(map(sum, seen))


@given(gqa_layers, counts, counts)
def test_decoding_one_by_one_costs_the_operations_of_one_pass_and_reads_more(config, cached, new):
    steps = [attention_cost(config, cached + i) for i in range(new)]
    one_pass = attention_cost(config, cached, new)
    assert sum(step.flops for step in steps) == one_pass.flops
    assert sum(step.bytes for step in steps) >= one_pass.bytes


def test_a_window_bounds_what_is_read():
    """Three new tokens with a window of 5 reach 7 tokens between them: the first sees 5, each next one a new one."""
    config = LLAMA.model_copy(update={"sliding_window": 5})
    assert attention_cost(config, 100, 3) == Cost(15 * 2 * attention_macs_per_score(config), 7 * 2 * 2048)


@given(gqa_layers, counts)
def test_grouping_divides_the_bytes_and_keeps_the_operations(config, cached):
    def with_groups(groups):
        return attention_cost(config.model_copy(update={"num_key_value_heads": groups}), cached)

    mha, mqa = with_groups(config.num_attention_heads), with_groups(1)
    own = attention_cost(config, cached)
    assert mha.flops == own.flops == mqa.flops
    assert mha.bytes == own.bytes * config.group_size == mqa.bytes * config.num_attention_heads
    assert math.isclose(own.intensity, config.group_size)  # 2 operations for each of 2 bytes, per head of the group


@given(mla_layers, counts, counts)
def test_mla_modes_per_head(config, cached, new):
    """Expanded C d_c (d_h + d_h) + scores (2 d_h + d_h^R); absorbed scores (2 d_c + d_h^R) + s d_c (d_h + d_h)."""
    total, scores = cached + new, num_scores(cached, new)
    rank, rope = config.kv_lora_rank, config.qk_rope_head_dim
    nope, value = config.qk_nope_head_dim, config.v_head_dim
    per_head = 2 * config.num_attention_heads
    expanded = attention_cost(config, cached, new, mode="expanded")
    absorbed = attention_cost(config, cached, new, mode="absorbed")
    assert expanded.flops == per_head * (total * rank * (nope + value) + scores * (nope + rope + value))
    assert absorbed.flops == per_head * (scores * (2 * rank + rope) + new * rank * (nope + value))
    assert expanded.bytes == absorbed.bytes == kv_cache_bytes(config, total)


@given(mla_layers, counts, counts, st.sampled_from(["expanded", "absorbed"]))
def test_the_rectangle_has_every_new_token_meet_every_key(config, cached, new, mode):
    """It exceeds the triangle by the scores that a causal mask takes away, and by nothing for a single token."""
    keys = cached + new
    rectangle = attention_macs(config, new, keys, mode, causal=False)
    triangle = attention_macs(config, new, keys, mode, causal=True)
    assert rectangle - triangle == new * (new - 1) // 2 * attention_macs_per_score(config, mode)
    assert attention_cost(config, cached, new, mode=mode).flops == 2 * triangle


@given(gqa_layers, counts, counts)
def test_without_a_latent_attention_is_its_scores(config, cached, new):
    seen = num_scores(cached, new, config.sliding_window)
    per_score = 2 * config.num_attention_heads * config.head_dim
    assert attention_macs(config, new, cached + new, causal=True) == seen * per_score
    assert attention_macs(config, new, cached + new, causal=False) == new * (cached + new) * per_score


def test_171_tokens_over_an_empty_cache_as_rectangle_and_as_triangle():
    """In millions per head of DeepSeek-V3, expanded: 171 rows of 171 scores, or half of them."""
    per_head = {causal: attention_macs(V3, 171, 171, "expanded", causal=causal) / 128e6 for causal in (False, True)}
    assert per_head[False] == (171 * 131_072 + 171 * 171 * 320) / 1e6
    assert per_head[True] == (171 * 131_072 + 171 * 172 / 2 * 320) / 1e6
    assert [round(macs, 1) for macs in per_head.values()] == [31.8, 27.1]


def test_costs_are_those_of_the_papers_widths():
    one = {mode: attention_macs(V3, 1, 1024, mode, causal=False) for mode in ("expanded", "absorbed")}
    assert one == {
        "expanded": 128 * (1024 * 512 * 256 + 1024 * 320),
        "absorbed": 128 * (512 * 256 + 1024 * 1088),
    }


def test_few_new_tokens_are_cheaper_absorbed_and_many_expanded():
    def first_expanded(num_keys):
        return next(s for s in range(1, 400) if cheaper_mode(V3, s, num_keys) == "expanded")

    assert first_expanded(10**7) == 171
    assert first_expanded(2048) == 158  # 1 / (1 / 170.7 + 1 / 2048) = 157.5


@given(mla_layers, st.integers(0, 10**6))
def test_the_crossover_is_the_last_count_at_which_absorbed_costs_no_more(config, cached):
    def absorbed_over_expanded(new):
        absorbed, expanded = (
            attention_macs(config, new, cached + new, mode, causal=False) for mode in ("absorbed", "expanded")
        )
        return absorbed - expanded

    most = absorption_crossover(config, cached)
    if most is None:
        assert 2 * config.kv_lora_rank <= config.qk_nope_head_dim + config.v_head_dim
        assert absorbed_over_expanded(10**7) <= 0
    else:
        assert absorbed_over_expanded(most + 1) > 0
        assert most == 0 or absorbed_over_expanded(most) <= 0


def test_the_crossover_needs_cached_tokens_and_does_not_ask_for_heads():
    assert absorption_crossover(V3, 0) == 0
    assert absorption_crossover(V3, 32_768) == 169
    assert absorption_crossover(V3.model_copy(update={"num_attention_heads": 1}), 32_768) == 169


@given(counts, counts, counts, st.sampled_from(["fp32", "fp16", "bf16", "fp8", "fp8_mla"]))
def test_a_kernel_reads_the_cache_once_and_every_row_meets_every_key(rows, keys, batch, dtype):
    cost = kernel_cost(V3, rows, keys, batch, dtype)
    assert cost.flops == batch * rows * keys * 2 * (512 + 64 + 512)
    assert cost.bytes == kv_cache_bytes(V3, keys, batch, dtype) + batch * rows * 2 * (576 + 512)


def test_deepseek_v3_decode_step():
    cached = 4095
    expanded = attention_cost(V3, cached, mode="expanded").flops // 2
    absorbed = attention_cost(V3, cached, mode="absorbed").flops // 2
    assert expanded == 128 * (4096 * 131_072 + 4096 * 320)
    assert absorbed == 128 * (4096 * 1_088 + 131_072)
    # Per cached token: expansion is 409.6 times the attention it serves, absorbed attention 3.4 times.
    assert expansion_macs_per_token(V3) == 16_777_216
    assert expansion_macs_per_token(V3) / attention_macs_per_score(V3, "expanded") == 409.6
    assert attention_macs_per_score(V3, "absorbed") / attention_macs_per_score(V3, "expanded") == 3.4


def test_intensity_of_mla_decode_tends_to_242_operations_per_byte():
    assert round(2 * attention_macs_per_score(V3, "absorbed") / kv_cache_bytes(V3, 1), 1) == 241.8
    assert 241.8 < attention_cost(V3, 10**6, mode="absorbed").intensity < 242


def test_parameters_of_one_layer():
    assert num_attention_parameters(LLAMA) == 16384 * 16384 * 2 + 2 * 16384 * 1024
    assert num_attention_parameters(get_model("deepseek-v2").config) == 149_225_472  # 149.2 M
    lite = get_model("deepseek-v2-lite").config  # queries are not compressed
    assert num_attention_parameters(lite) == 2048 * 16 * 192 + 2048 * 576 + 512 * 16 * 256 + 16 * 128 * 2048
    biased = LLAMA.model_copy(update={"qkv_bias": True, "o_bias": True})
    assert num_attention_parameters(biased) - num_attention_parameters(LLAMA) == 16384 + 2 * 1024 + 16384


@given(gqa_layers | mla_layers, counts, counts)
def test_weights_are_read_once_for_the_whole_batch(config, new, batch):
    alone, together = projection_cost(config), projection_cost(config, new, batch)
    assert together == Cost(alone.flops * new * batch, alone.bytes)
    assert alone.bytes == 2 * num_attention_parameters(config)


@given(mla_layers)
def test_no_product_of_an_mla_layer_is_counted_twice(config):
    """A first token: projections, the up-projections once in either mode, and one score."""
    macs = num_attention_parameters(config) + attention_macs_per_score(config, "expanded")
    assert (projection_cost(config) + attention_cost(config, 0, mode="expanded")).flops == 2 * macs


def test_costs_add_up():
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)
    assert Cost(3, 4).intensity == 0.75 and Cost(3, 0).intensity == math.inf


@given(st.integers(1, 10**15), st.integers(1, 10**12), st.sampled_from(["h100", "a100-80gb", "l4"]))
def test_the_roofline_bends_at_the_ridge(flops, moved, gpu):
    cost, card = Cost(flops, moved), get_gpu(gpu)
    attainable = roofline(cost, gpu)
    assert math.isclose(flops / attainable, step_seconds(cost, card))
    assert (attainable == card.flops["bf16"]) == (cost.intensity >= ridge(gpu))


@given(st.integers(1, 10**15), st.integers(1, 10**12), st.floats(1, 1e15), st.floats(1, 1e13))
def test_measured_rates_are_used_as_they_are(flops, moved, flop_per_s, bytes_per_s):
    cost, machine = Cost(flops, moved), Rates(flop_per_s, bytes_per_s)
    slower = max(flops / flop_per_s, moved / bytes_per_s)
    assert step_seconds(cost, machine) == slower
    assert pace(cost, machine) == ("memory" if moved / bytes_per_s == slower else "arithmetic")
    assert ridge(machine) == flop_per_s / bytes_per_s
    assert math.isclose(flops / roofline(cost, machine), slower)


def test_a_gpu_has_the_rates_of_its_datasheet():
    for name in list_gpus():
        card = get_gpu(name)
        assert rates(name, "fp16") == rates(card, "fp16") == (card.flops["fp16"], card.bandwidth)


def test_the_ridge_of_an_h100_is_at_295_operations_per_byte():
    assert round(ridge("h100")) == 295
    assert ridge("h100", "fp8") > 2 * 295 - 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kv_cache_bytes("deepsek-v3", 1), "unknown model 'deepsek-v3'; nearest: deepseek-v3"),
        (lambda: kv_cache_bytes("deepseek-v3", -1), "num_tokens is -1; expected an integer of at least 0"),
        (lambda: kv_cache_bytes("deepseek-v3", 1.5), "num_tokens is 1.5"),
        (lambda: kv_cache_bytes("deepseek-v3", True), "num_tokens is True"),
        (lambda: kv_cache_bytes("deepseek-v3", 1, 0), "batch_size is 0; expected a positive integer"),
        (lambda: kv_cache_bytes("deepseek-v3", 1, dtype="int4"), "dtype is 'int4'; expected fp32, fp16, bf16 or fp8"),
        (lambda: kv_cache_bytes("llama-3-8b", 1, dtype="fp8_mla"), "llama-3-8b of kind 'gqa'; expected 'mla'"),
        (lambda: kv_cache_bytes("mimo-v2-flash", 1, dtype="fp8_mla"), "mimo-v2-flash of kind 'gqa'; expected 'mla'"),
        (
            lambda: kv_cache_bytes(V3.model_copy(update={"kv_lora_rank": 100}), 1, dtype="fp8_mla"),
            "kv_lora_rank is 100; expected a multiple",
        ),
        (lambda: attention_cost(V3, 8), "mode is None; expected 'expanded' or 'absorbed'"),
        (lambda: attention_cost(LLAMA, 8, mode="absorbed"), "mode is 'absorbed'; expected None"),
        (lambda: attention_cost(LLAMA, 8, 0), "num_new is 0"),
        (lambda: projection_cost(LLAMA, batch_size=-1), "batch_size is -1"),
        (lambda: cache_format("16-bit"), "dtype is '16-bit'; expected fp32, fp16, bf16 or fp8"),
        (lambda: index_cache_bytes("deepseek-v3.2", 1, dtype="e4m3"), "dtype is 'e4m3'; expected fp32"),
        (lambda: attention_macs_per_score(V3), "mode is None; expected 'expanded' or 'absorbed'"),
        (lambda: attention_macs(V3, 2, 1, "absorbed", causal=True), "num_keys is 1; expected an integer of at least 2"),
        (lambda: kernel_cost(V3, 0, 8), "num_rows is 0; expected a positive integer"),
        (lambda: absorption_crossover(V3, -1), "num_cached is -1; expected an integer of at least 0"),
        (lambda: ridge("h20"), "unknown GPU 'h20'; nearest: h200"),
        (lambda: ridge("t4"), "dtype is 'bf16'; expected one that t4 has: fp16"),
        (lambda: kv_cache_bytes("llama-3-8b", 1, dtype="fp4_mla_352"), "llama-3-8b of kind 'gqa'; expected 'mla'"),
        (lambda: kv_cache_bytes("deepseek-v3", 1, dtype="fp8_csa"), "deepseek-v3 of kind 'mla'; expected 'csa'"),
        (lambda: kv_cache_bytes("deepseek-v4-pro", 1, dtype="fp8_mla"), "v4-pro of kind 'csa'; expected 'mla'"),
        (lambda: mla_row_bytes(500, 64, "fp4_mla_432"), "kv_lora_rank is 500; expected a multiple of 16"),
        (lambda: mla_row_bytes(512, 64, "fp8_csa"), "dtype is 'fp8_csa'; expected a row of MLA: fp8_mla"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_wrong_kind_of_model_is_named():
    with pytest.raises(TypeError, match="model_or_config is a list"):
        kv_cache_bytes([V3], 1)


@pytest.mark.parametrize("dtype", [None, [], {}, 1, 10**400], ids=range(5))
def test_what_is_no_word_is_no_format(dtype):
    for ask in (number_format, cache_format, weight_format):
        with pytest.raises(ValueError, match="dtype is .*; expected") as caught:
            ask(dtype)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("machine", [None, 1, [], {}])
def test_what_is_no_machine_is_one_error(machine):
    with pytest.raises(TypeError, match="machine is .*; expected a GPU, its name or its Rates"):
        rates(machine)
