"""Bytes on each GPU: against a plain loop that deals heads, tokens and layers out, and against published figures."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mla_edu.config import GQAConfig
from mla_edu.cost import (
    ContextTraffic,
    Move,
    Parallelism,
    StepTraffic,
    all_reduce_bytes,
    cache_copies,
    check_layout,
    context_bytes,
    fewest_gpus,
    fit,
    gather_bytes,
    kv_cache_bytes,
    layout_of,
    layouts,
    move_bytes,
    num_attention_parameters,
    padded_heads,
    sequence_bytes,
    sequence_share,
    step_bytes,
    weight_bytes,
    weight_formats,
    weight_share,
)
from mla_edu.hf import CacheGroup, ModelSpec, Weights
from mla_edu.registry import get_gpu, get_model, list_models
from strategies import gqa_configs, mla_configs

V3 = get_model("deepseek-v3").config
LITE = get_model("deepseek-v2-lite").config
GB = 10**9

names = st.sampled_from(list_models())
models = names.map(get_model)
small = st.integers(1, 6)
lengths = st.integers(0, 40) | st.integers(0, 10**6)


@st.composite
def spread(draw, models):
    """A model and a layout that it allows."""
    spec = draw(models)
    tensor = draw(st.integers(1, min(6, spec.num_attention_heads)))
    context = draw(st.integers(1, min(6, spec.num_attention_heads // tensor)))
    return spec, Parallelism(tensor, draw(small), context, draw(st.integers(1, min(6, spec.num_layers))))


@st.composite
def plain_models(draw):
    """A model of a few equal layers, with its layer's config."""
    config = draw(gqa_configs() | mla_configs())
    layers = draw(st.integers(1, 7))
    heads = config.num_key_value_heads if isinstance(config, GQAConfig) else 1
    group = CacheGroup(
        role="kv",
        layers=layers,
        elements=config.elements_per_token,
        heads=heads,
        window=draw(st.none() | st.integers(1, 30)),
        stride=draw(st.integers(1, 4)),
    )
    return ModelSpec(
        name="plain",
        title="Plain",
        kind=config.kind,
        num_parameters=layers * num_attention_parameters(config) + draw(st.integers(0, 10**6)),
        num_attention_heads=config.num_attention_heads,
        num_layers=layers,
        config=config,
        cache=(group,),
        state_elements=0,
        weights=Weights(attention="fp16", others="fp8", source="drawn"),
        status="config",
        where="drawn",
        why="drawn.",
    )


def ranks(layout):
    """Of the GPUs that hold a part of one sequence."""
    sides = layout.tensor, layout.context, layout.pipeline
    return [(t, c, p) for t in range(sides[0]) for c in range(sides[1]) for p in range(sides[2])]


def dealt(things, among, rank):
    """The things of ``rank``: neighbours together; each thing somewhere, and each rank with one."""
    if things >= among:
        return [i for i in range(things) if i * among // things == rank]
    return [rank * things // among]


@given(spread(plain_models()), st.integers(0, 60))
def test_the_fullest_gpu_holds_what_a_loop_over_all_of_them_finds(case, tokens):
    spec, layout = case
    (group,) = spec.cache
    entries = group.num_entries(tokens)
    held, copies = [], {}
    for t, c, p in ranks(layout):
        numbers = 0
        for layer in dealt(group.layers, layout.pipeline, p):
            for head in dealt(group.heads, layout.tensor, t):
                for entry in range(c, entries, layout.context):
                    numbers += group.elements // group.heads
                    copies[layer, head, entry] = copies.get((layer, head, entry), 0) + 1
        held.append(2 * numbers)
    share = sequence_share(spec, tokens, layout)
    assert share.kv == share.total == max(held)
    assert len(copies) == group.layers * group.heads * entries  # nothing is lost
    assert max(copies.values(), default=cache_copies(spec, layout)) == cache_copies(spec, layout)


@given(spread(models))
def test_heads_of_padding_make_each_gpu_of_a_group_hold_as_many(case):
    spec, layout = case
    held = [len(dealt(spec.num_attention_heads, layout.group, place)) for place in range(layout.group)]
    assert padded_heads(spec, layout) == sum(max(held) - heads for heads in held)


@given(spread(plain_models()))
def test_weights_are_those_of_the_heads_of_a_gpu_and_its_part_of_the_rest(case):
    spec, layout = case
    config, group = spec.config, layout.group
    most = 0
    for t, c, p in ranks(layout):
        layers = len(dealt(spec.num_layers, layout.pipeline, p))
        heads = len(dealt(config.num_attention_heads, group, t * layout.context + c))
        d = config.hidden_size
        if isinstance(config, GQAConfig):
            kv_heads = len(dealt(config.num_key_value_heads, layout.tensor, t))
            one = d * config.head_dim
            weights = heads * 2 * one + kv_heads * 2 * one
            weights += config.qkv_bias * config.head_dim * (heads + 2 * kv_heads) + config.o_bias * d
        else:
            nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
            queries = config.q_lora_rank or d
            weights = heads * (queries * (nope + rope) + config.kv_lora_rank * (nope + value) + value * d)
            weights += d * (config.kv_lora_rank + rope) + d * (config.q_lora_rank or 0)
        most = max(most, 2 * layers * weights)
    others = spec.num_parameters - spec.num_layers * num_attention_parameters(config)
    assert weight_share(spec, layout) == most + -(-others // layout.num_gpus)


@given(names, st.integers(0, 10**6), st.sampled_from(["bf16", "fp8", "fp32"]))
def test_one_gpu_holds_everything(name, tokens, dtype):
    share = sequence_share(name, tokens, Parallelism(), dtype)
    assert share.total == sequence_bytes(name, tokens, dtype)
    assert share.kv == kv_cache_bytes(name, tokens, 1, dtype)
    assert weight_share(name, Parallelism()) == weight_bytes(name)


@given(spread(models), lengths)
def test_a_group_holds_a_whole_sequence_at_least(case, tokens):
    spec, layout = case
    share = sequence_share(spec, tokens, layout)
    assert layout.group * layout.pipeline * share.total >= sequence_bytes(spec, tokens)
    moved = move_bytes(spec, tokens, layout)
    assert moved == Move(sequence_bytes(spec, tokens), layout.group * layout.pipeline * share.total)


def test_every_tensor_parallel_gpu_holds_the_whole_latent_and_the_key_of_an_indexer():
    eight = layouts(8)
    whole = kv_cache_bytes("deepseek-v3", 131_072)
    assert round(whole / GB, 1) == 9.2
    assert sequence_share("deepseek-v3", 131_072, eight["tensor"]).kv == whole
    assert sequence_share("deepseek-v3", 131_072, eight["context"]).kv == whole / 8
    assert sequence_share("deepseek-v3.2", 8, eight["tensor"]).index == 8 * 61 * 256
    assert (cache_copies("deepseek-v3", eight["tensor"]), cache_copies("deepseek-v3", eight["context"])) == (8, 1)


def test_expanded_keys_and_values_are_smaller_than_a_replicated_latent_from_71_and_16_gpus_on():
    """Split by heads, which a latent is not: V3 beyond 71 GPUs, V2-Lite at 16 already."""
    for config, gpus, smaller in ((V3, 71, False), (V3, 72, True), (LITE, 8, False), (LITE, 16, True)):
        expanded = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
        assert (expanded / gpus < config.elements_per_token) is smaller


def test_groups_are_split_and_copied_where_they_are_fewer_than_gpus():
    def on_each(gpus):
        layout = Parallelism(tensor=gpus)
        return sequence_share("llama-3.1-70b", 1, layout).kv, cache_copies("llama-3.1-70b", layout)

    head = 80 * 2 * 128 * 2  # one of eight
    assert [on_each(gpus) for gpus in (1, 2, 3, 8, 16, 64)] == [
        *((8 * head, 1), (4 * head, 1), (3 * head, 1), (head, 1), (head, 2), (head, 8))
    ]
    # Local layers of MiMo have eight heads, global ones four.
    assert sequence_share("mimo-v2-flash", 1, Parallelism(tensor=8)).kv == 2 * 320 * (9 + 39)


def test_states_are_shared_out_by_heads_and_unfinished_blocks_are_not():
    kimi = get_model("kimi-linear-48b-a3b")
    assert kimi.state_heads == 32
    assert sequence_share(kimi, 0, Parallelism(tensor=4, context=2)).state == 4 * kimi.state_elements // 8
    v4 = get_model("deepseek-v4-flash")
    assert sequence_share(v4, 0, Parallelism(tensor=8)).state == 4 * v4.state_elements
    both = get_model("glm-5.3-flash")
    blocks = 11 * 15 * 2 * 128
    assert both.shared_state_elements == blocks
    assert sequence_share(both, 0, Parallelism(tensor=2)).state == 4 * (blocks + (both.state_elements - blocks) // 2)


def test_deepseek_v3_on_eight_b200s():
    """Beside the 8-bit weights that its makers publish, and beside weights in 16 bits."""

    def conversations(dtype):
        return [fit("deepseek-v3", "b200", 131_072, way, weights_dtype=dtype).max_sequences for way in ways]

    ways = layouts(8).values()
    assert weight_formats("deepseek-v3").attention == "fp8"
    assert weight_bytes("deepseek-v3") == 671 * GB
    assert conversations(None) == conversations("fp8") == [10, 72, 82]
    assert conversations("bf16") == [1, 0, 9]


def test_a_gpu_holds_its_weights_and_the_down_projections_whole():
    tensor, data = (weight_share("deepseek-v3", way) for way in list(layouts(8).values())[:2])
    attention = 61 * num_attention_parameters(V3)
    down = 61 * 7168 * (1536 + 576)
    assert tensor == (attention - down) / 8 + down + (671 * GB - attention) / 8
    assert data == attention + (671 * GB - attention) / 8
    assert weight_share("deepseek-v3", Parallelism(data=8, experts=1)) == 671 * GB  # plain replicas
    assert weight_share("deepseek-v3", Parallelism(data=8, experts=4)) == attention + (671 * GB - attention) / 4


def test_weights_in_four_bits():
    # OpenAI's checkpoint takes 60.8 GiB; embeddings, in 16 bits there, are counted in four here.
    assert weight_bytes("gpt-oss-120b") / 2**30 == pytest.approx(60.8, rel=0.03)
    assert weight_bytes("kimi-k2.5") < weight_bytes("kimi-k2-instruct") == 10**12
    assert weight_bytes("deepseek-67b") is None and weight_bytes("deepseek-67b", "bf16") == 134 * GB
    assert weight_bytes("deepseek-v3", "fp4") == 671 * GB * 17 // 32
    assert weight_bytes("deepseek-v3", "int4") == 671 * GB * 9 // 16


@settings(max_examples=60)
@given(spread(models), st.integers(0, 10**6), st.integers(1, 64), st.sampled_from(["h100", "b200"]))
def test_the_fit_is_tight(case, tokens, batch, gpu):
    spec, layout = case
    found = fit(spec, gpu, tokens, layout, batch, weights_dtype="fp8")
    held = weight_share(spec, layout, "fp8")
    if held is None:
        assert found is None
        return
    assert (found.weight_bytes, found.free_bytes) == (held, get_gpu(gpu).memory - held)

    def taken(num_tokens, sequences):
        return -(-sequences // layout.data) * sequence_share(spec, num_tokens, layout).total

    if found.max_sequences is not None:
        assert found.max_sequences == 0 or taken(tokens, found.max_sequences) <= found.free_bytes
        assert taken(tokens, found.max_sequences + 1) > found.free_bytes
    if found.max_tokens:
        beyond = found.max_tokens + 128 * layout.context  # a block of tokens more, on each rank
        assert taken(found.max_tokens, batch) <= found.free_bytes < taken(beyond, batch)


def test_a_cache_that_stops_growing_has_no_limit():
    assert fit("mistral-7b-v0.1", "h100", 8192, Parallelism()).max_tokens is None


def test_what_is_not_known_is_none():
    one = Parallelism()
    assert weight_bytes("deepseek-v3.1") is None and fit("deepseek-v3.1", "h200", 1024, one) is None
    assert fit("deepseek-67b", "h200", 1024, one) is None and fewest_gpus("deepseek-67b", "h200") is None
    assert fit("deepseek-67b", "h200", 1024, one, weights_dtype="bf16").max_sequences > 0
    assert weight_share("mimo-v2-flash", Parallelism(data=2)) is None


def test_the_fewest_gpus_that_hold_one_copy():
    assert [fewest_gpus("deepseek-v3", gpu) for gpu in ("b200", "h200", "h100")] == [4, 8, 16]
    assert fewest_gpus("deepseek-v3", "b200", "bf16") == 8 and fewest_gpus("llama-3.1-8b", "b200") == 1


def test_what_eight_gpus_send_each_other_for_a_token():
    assert all_reduce_bytes(V3, 8) == 2 * 7 * 7168 * 2 // 8 == 25_088
    assert gather_bytes(V3, 8) == 2 * 7 * 7168 * 2
    assert context_bytes(V3, 8) == ContextTraffic(queries=129_024, lse=3_584, outputs=114_688)
    assert round(61 * context_bytes(V3, 8).total / 1e6, 1) == 15.1
    assert context_bytes(V3, 8, before_absorption=True).queries == 43_008
    assert context_bytes(LITE, 8).total == 30_912
    assert context_bytes(V3, 8, 3).total == 3 * context_bytes(V3, 8).total
    assert context_bytes(V3, 1) == ContextTraffic(0, 0, 0) and all_reduce_bytes(V3, 1) == gather_bytes(V3, 1) == 0


@given(mla_configs(), st.integers(1, 8), st.integers(1, 5))
def test_a_loop_over_pairs_of_ranks_finds_the_same_traffic(config, count, tokens):
    assume(config.num_attention_heads % count == 0)
    each = config.num_attention_heads // count  # heads of a rank
    queries = lse = outputs = 0
    for _sender in range(count - 1):  # to rank 0
        queries += tokens * each * (config.kv_lora_rank + config.qk_rope_head_dim) * 2
        lse += tokens * config.num_attention_heads * 4
        outputs += tokens * each * config.kv_lora_rank * 2
    assert context_bytes(config, count, tokens) == ContextTraffic(queries, lse, outputs)


def test_what_a_step_of_deepseek_v3_sends_through_its_61_layers():
    tensor, data, context = layouts(8).values()
    added_up = 61 * 2 * 25_088
    assert step_bytes("deepseek-v3", tensor) == StepTraffic(states=added_up, attention=0)
    assert step_bytes("deepseek-v3", context, 3) == StepTraffic(3 * added_up, 3 * 61 * 247_296)
    assert step_bytes("deepseek-v3", context).total == added_up + 61 * 247_296
    assert [step_bytes("deepseek-v3", data, batch).states // (61 * 200_704) for batch in (1, 8, 9, 24)] == [1, 1, 2, 3]
    assert step_bytes("deepseek-v3", Parallelism()) == StepTraffic(0, 0)
    # Of Kimi-Linear's 27 layers 7 have a latent; all add up their states.
    kimi = get_model("kimi-linear-48b-a3b")
    two = step_bytes(kimi, Parallelism(context=2))
    assert two.states == 27 * 2 * all_reduce_bytes(kimi.config, 2)
    assert two.attention == 7 * context_bytes(kimi.config, 2).total


def test_one_copy_of_a_latent_is_enough_to_move():
    whole = kv_cache_bytes("deepseek-v3", 1000)
    assert move_bytes("deepseek-v3", 1000, Parallelism(tensor=8)) == Move(whole, 8 * whole)
    assert move_bytes("deepseek-v3", 1000, Parallelism(context=8)) == Move(whole, whole)
    assert move_bytes("llama-3.1-70b", 1000, Parallelism(tensor=8)).each == kv_cache_bytes("llama-3.1-70b", 1000)


def test_a_layout_in_words():
    assert str(Parallelism(tensor=4, context=2)) == "tp 4 cp 2" and str(Parallelism()) == "one GPU"
    assert str(Parallelism(data=8, pipeline=2, experts=4)) == "dp 8 pp 2 ep 4"
    assert layouts(8) == {"tensor": Parallelism(8), "data": Parallelism(1, 8), "context": Parallelism(1, 1, 8)}
    assert layout_of(16, tensor=4, context=2, pipeline=2).num_gpus == 16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Parallelism(tensor=0), "tensor is 0; expected a positive integer"),
        (lambda: Parallelism(data=-1), "data is -1"),
        (lambda: Parallelism(context=1.5), "context is 1.5"),
        (lambda: Parallelism(pipeline=True), "pipeline is True"),
        (lambda: Parallelism(tensor=8, experts=3), "experts is 3; expected a divisor of a stage's GPUs, 8"),
        (lambda: Parallelism(tensor=8, experts=0), "experts is 0; expected a positive integer"),
        (lambda: layouts(0), "num_gpus is 0"),
        (lambda: layout_of(8, tensor=3), "is 3 x 1 x 1 x 1; expected a product of 8 GPUs"),
        (lambda: layout_of(0, tensor=3), "num_gpus is 0"),
        (lambda: check_layout("gemma-3-1b", Parallelism(tensor=8)), "8 for gemma-3-1b; expected at most its 4 query"),
        (lambda: check_layout("deepseek-v2-lite", Parallelism(4, 1, 8)), "32 for deepseek-v2-lite; expected at most"),
        (lambda: check_layout("deepseek-v3", Parallelism(pipeline=62)), "pipeline is 62; expected at most the 61"),
        (lambda: sequence_share("gemma-3-1b", 1, Parallelism(tensor=8)), "tensor x context is 8"),
        (lambda: weight_share("gemma-3-1b", Parallelism(tensor=8)), "tensor x context is 8"),
        (lambda: sequence_share("deepseek-v3", -1, Parallelism()), "num_tokens is -1"),
        (lambda: sequence_share("deepseek-v3", 1, Parallelism(), "fp7"), "dtype is 'fp7'"),
        (lambda: weight_bytes("deepseek-v3", "fp6"), "weights_dtype is 'fp6'; expected one of fp32, fp16"),
        (lambda: fit("deepseek-v3", "h200", 1, Parallelism(), batch_size=0), "batch_size is 0"),
        (lambda: fit("deepseek-v3", "h20", 1, Parallelism()), "unknown GPU 'h20'"),
        (lambda: all_reduce_bytes(V3, 0), "ranks is 0"),
        (lambda: gather_bytes(V3, 8, 0), "num_tokens is 0"),
        (lambda: context_bytes(LITE, 17), "ranks is 17; expected an integer from 1 to 16"),
        (lambda: context_bytes(LITE, 2, -1), "num_tokens is -1"),
        (lambda: step_bytes("deepseek-v3", Parallelism(2, 2)), "layout is tp 2 dp 2; expected one of tensor, data"),
        (lambda: step_bytes("deepseek-v3", Parallelism(pipeline=2)), "layout is pp 2; expected one of"),
        (lambda: step_bytes("llama-3.1-8b", Parallelism(2)), "model is llama-3.1-8b; expected one with MLA"),
        (lambda: step_bytes("deepseek-v3.2", Parallelism(2)), "model is deepseek-v3.2; .*no index keys"),
        (lambda: step_bytes("deepseek-v2-lite", Parallelism(17)), "17 for deepseek-v2-lite; expected at most"),
        (lambda: step_bytes("deepseek-v3", Parallelism(2), 0), "batch_size is 0"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
