"""What pages compute and write is what Python computes and writes, over drawn inputs.

All of formulas.js, traffic.js and words.js.

That a widget shows what they give is tested once for each widget.
"""

import dataclasses
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import mla_edu
from mla_edu import cost, words
from mla_edu.book.widgets.many_gpus import shown_models
from mla_edu.hf import CacheGroup, ModelSpec, WeightFormat, Weights
from mla_edu.ops.rope import rope_frequencies, rotate
from mla_edu.registry import get_gpu, get_model, list_models
from strategies import gqa_configs, mla_configs

WIDGETS = Path(mla_edu.__file__).parent / "book" / "widgets"
NAMES = get_args(cost.CacheFormat)
WEIGHTS = (None, *get_args(WeightFormat))

models = st.sampled_from(list_models()).map(get_model)
tokens = st.integers(0, 2**20) | st.integers(0, 300)
batches = st.integers(1, 2**16)
new_tokens = st.integers(1, 2**20) | st.integers(1, 400)
rates = st.floats(1, 1e16)
many = settings(max_examples=100)


@st.composite
def mla_layers(draw):
    """Layers as wide as a reader can make them."""
    wide = st.integers(1, 8192) | st.integers(1, 64).map(lambda blocks: 128 * blocks)
    widths = {name: draw(wide) for name in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim")}
    widths["qk_rope_head_dim"] = 2 * draw(st.integers(0, 512))
    return draw(mla_configs()).model_copy(update={"num_attention_heads": draw(st.integers(1, 1024)), **widths})


@st.composite
def formats(draw, model_or_config):
    """A format that a cache of a model or a layer can have."""
    return draw(st.sampled_from(possible(model_or_config)))


def possible(model_or_config):
    """The formats that a cache of a model or a layer can have."""
    rank = getattr(model_or_config, "kv_lora_rank", None)
    return [
        name
        for name in NAMES
        if name not in cost.ROWS
        or (cost.ROWS[name].kind == "mla" and rank is not None and rank % cost.ROWS[name].multiple == 0)
        or cost.ROWS[name].kind == model_or_config.kind == "csa"
    ]


DIMS = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
)
FIELDS = (*DIMS, "v_head_dim", "hidden_size", "q_lora_rank", "qkv_bias", "o_bias", "memory", "attention", "others")
OF_MODEL = {
    *("num_parameters", "num_attention_heads", "num_layers", "kv_lora_rank", "qk_rope_head_dim"),
    *("cache", "state_elements", "state_heads", "shared_state_elements", "weights"),
}


def packed(value):
    """As a page has it: whole numbers are text behind an ``n``, since JSON has but one kind of number."""
    if isinstance(value, ModelSpec):
        record = value.model_dump(include=OF_MODEL, mode="json")
        return {name: packed(item) for name, item in record.items()} | {"config": packed(value.config)}
    if dataclasses.is_dataclass(value):
        return packed(dataclasses.asdict(value))
    if isinstance(value, cost.Rates):
        return value._asdict()
    if isinstance(value, BaseModel):
        return {name: packed(getattr(value, name)) for name in FIELDS if hasattr(value, name)}
    if isinstance(value, dict):
        return {name: packed(item) for name, item in value.items()}
    if isinstance(value, list):
        return [packed(item) for item in value]
    return f"n{value}" if isinstance(value, int) and not isinstance(value, bool) else value


ANSWERS = """
  const over = (value, one) => {
    if (Array.isArray(value)) return value.map((item) => over(item, one));
    if (value === null || typeof value !== "object") return one(value);
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, over(item, one)]));
  };
  const unpack = (value) => (/^n-?\\d+$/.test(value) ? BigInt(value.slice(1)) : value);
  const pack = (value) => (typeof value === "bigint" ? `n${value}` : value);
  const answers = (calls) => calls.map(([name, ...given]) => over(eval(name)(...over(given, unpack)), pack));
"""


@pytest.fixture(scope="module")
def page(browser):
    """A page with the functions of all three files."""
    names = ("words.js", "formulas.js", "traffic.js")
    source = "\n".join((WIDGETS / name).read_text(encoding="utf-8") for name in names)
    page = browser.new_page()
    page.add_script_tag(content=source + ANSWERS)
    yield page
    page.close()


def same(page, *calls, rel=0.0):
    """Compare ``[value of Python, name, *arguments]``: whole numbers and texts exactly, others to ``rel``."""
    found = page.evaluate("answers", [[name, *map(packed, given)] for _, name, *given in calls])
    for (value, *call), shown in zip(calls, found, strict=True):
        wanted = packed(value)
        assert shown == (pytest.approx(wanted, rel=rel) if isinstance(wanted, float | list) else wanted), call


@st.composite
def spread(draw, spec):
    """A layout that a model allows."""
    tensor = draw(st.integers(1, min(70, spec.num_attention_heads)))
    context = draw(st.integers(1, min(9, spec.num_attention_heads // tensor)))
    data, pipeline = draw(st.integers(1, 9)), draw(st.integers(1, min(9, spec.num_layers)))
    experts = draw(st.none() | st.sampled_from([1, data, tensor * context]))
    return cost.Parallelism(tensor, data, context, pipeline, experts)


def same_room(page, model, layout, num_tokens, batch_size, dtype, weights):
    card = get_gpu("h200")
    share = cost.sequence_share(model, num_tokens, layout, dtype)
    room = cost.fit(model, card, num_tokens, layout, batch_size, dtype, weights)
    same(
        page,
        [True, "allowed", model, layout],
        [share, "sequence_share", model, num_tokens, layout, dtype],
        [share.total, "share_total", share],
        [cost.cache_copies(model, layout), "cache_copies", model, layout],
        [cost.weight_share(model, layout, weights), "weight_share", model, layout, weights],
        [room, "fit", model, card, num_tokens, layout, batch_size, dtype, weights],
    )


@many
@given(st.data(), models, tokens, batches, st.sampled_from(WEIGHTS))
def test_bytes_of_models(page, data, model, num_tokens, batch_size, weights):
    dtype, layout = data.draw(formats(model)), data.draw(spread(model))
    entry = (model, num_tokens, batch_size, dtype)
    same(
        page,
        [cost.kv_cache_bytes(*entry), "kv_cache_bytes", *entry],
        [cost.index_cache_bytes(*entry), "index_cache_bytes", *entry],
        [cost.state_bytes(model), "state_bytes", model],
        [cost.weight_bytes(model, weights), "weight_bytes", model, weights],
        [cost.sequence_bytes(model, num_tokens, dtype), "sequence_bytes", model, num_tokens, dtype],
    )
    same_room(page, model, layout, num_tokens, batch_size, dtype, weights)


def test_every_model_in_three_layouts_and_all_formats(page):
    """All 71, with the weights as published and in each format, on eight GPUs; a layout that is refused is refused."""
    for name in list_models():
        model = get_model(name)
        for layout in cost.layouts(8).values():
            try:
                cost.check_layout(model, layout)
            except ValueError:
                same(page, [False, "allowed", model, layout])
                continue
            for dtype, weights in zip_longest(possible(model), WEIGHTS):
                same_room(page, model, layout, 131_072, 3, dtype or "bf16", weights)


def test_three_layouts(page):
    same(page, *[[cost.layouts(count), "layouts", count] for count in (1, 8, 1024)])
    rows = page.evaluate("Object.entries(ROWS).map(([name, { kind }]) => [name, kind])")
    assert rows == [[name, row.kind] for name, row in cost.ROWS.items()]


@many
@given(st.data(), st.sampled_from(["kv", "index"]), tokens, st.integers(1, 1000), st.none() | st.integers(1, 5000))
def test_windows_blocks_and_unknown_states(page, data, role, num_tokens, elements, window):
    stride, layers, heads = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 99)), data.draw(st.integers(1, 9))
    group = CacheGroup(role=role, layers=layers, elements=heads * elements, window=window, stride=stride, heads=heads)
    state = data.draw(st.none() | st.integers(0, 10**9))
    changes = {"cache": (group, group), "state_elements": state, "state_heads": data.draw(st.integers(1, 64))}
    changes["shared_state_elements"] = data.draw(st.integers(0, state or 0))
    changes["weights"] = data.draw(st.none() | st.just(Weights(attention="bf16", others="fp4", source="drawn")))
    model = get_model("deepseek-v3").model_copy(update=changes)
    dtype = data.draw(st.sampled_from(possible(model)))
    same(
        page,
        [group.num_entries(num_tokens), "num_entries", group.model_dump(), num_tokens],
        [cost.sequence_bytes(model, num_tokens, dtype), "sequence_bytes", model, num_tokens, dtype],
    )
    same_room(page, model, data.draw(spread(model)), num_tokens, 3, dtype, None)


@many
@given(st.data(), gqa_configs() | mla_layers(), tokens)
def test_bytes_and_kinds_of_layers(page, data, config, num_tokens):
    dtype = data.draw(formats(config))
    same(
        page,
        [config.kind, "kind", config],
        [cost.attention_parameters(config)._asdict(), "attention_parameters", config],
        [cost.num_attention_parameters(config), "num_attention_parameters", config],
        [config.elements_per_token, "elements_per_token", config],
        [cost.kv_cache_bytes(config, num_tokens, 3, dtype), "kv_cache_bytes", config, num_tokens, 3, dtype],
    )


@many
@given(st.data(), mla_layers(), st.integers(1, 1024), st.integers(1, 2**12))
def test_what_travels(page, data, config, ranks, num_tokens):
    among = min(ranks, config.num_attention_heads)
    same(
        page,
        [cost.all_reduce_bytes(config, ranks, num_tokens), "all_reduce_bytes", config, ranks, num_tokens],
        [cost.gather_bytes(config, ranks, num_tokens), "gather_bytes", config, ranks, num_tokens],
        [cost.context_bytes(config, among, num_tokens), "context_bytes", config, among, num_tokens],
    )
    model = data.draw(st.sampled_from(shown_models()).map(get_model))
    layout = data.draw(st.sampled_from([*cost.layouts(min(ranks, model.num_attention_heads)).values()]))
    same(page, [cost.step_bytes(model, layout, num_tokens), "step_bytes", model, layout, num_tokens])


@many
@given(st.data(), mla_layers(), new_tokens, tokens, st.sampled_from(["expanded", "absorbed"]))
def test_operations(page, data, config, num_new, num_cached, mode):
    dtype, keys = data.draw(formats(config)), num_new + num_cached
    macs = cost.attention_macs(config, num_new, keys, mode, causal=False)
    same(
        page,
        [cost.attention_macs_per_score(config, mode), "attention_macs_per_score", config, mode],
        [cost.expansion_macs_per_token(config), "expansion_macs_per_token", config],
        [macs, "attention_macs", config, num_new, keys, mode],
        [cost.absorption_crossover(config, num_cached), "absorption_crossover", config, num_cached],
        [cost.kernel_cost(config, num_new, keys, 7, dtype), "kernel_cost", config, num_new, keys, 7, dtype],
    )


@many
@given(st.integers(1, 10**18), st.integers(1, 10**15), rates, rates)
def test_rooflines(page, flops, moved, flop_per_s, bytes_per_s):
    step, machine = cost.Cost(flops, moved), cost.Rates(flop_per_s, bytes_per_s)
    same(
        page,
        [step.intensity, "intensity", step],
        [cost.ridge(machine), "ridge", machine],
        [cost.roofline(step, machine), "roofline", step, machine],
        [cost.step_seconds(step, machine), "step_seconds", step, machine],
        [cost.pace(step, machine), "pace", step, machine],
        rel=1e-14,
    )


@many
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8), st.integers(0, 2**20), st.floats(2, 1e6))
def test_rotations(page, x, position, theta):
    x = x[: len(x) // 2 * 2]
    frequencies = rope_frequencies(len(x), theta)
    turned = rotate(
        torch.tensor(x, dtype=torch.float64)[None, None, None],
        torch.tensor([[position]]),
        frequencies,
        pairing="interleaved",
    )
    shown = page.evaluate(
        """([x, position, theta]) => {
          const frequencies = rope_frequencies(x.length, theta);
          return [frequencies, rotate(x, position, frequencies)];
        }""",
        [x, position, theta],
    )
    assert shown[0] == pytest.approx(frequencies.tolist(), rel=1e-13)
    assert shown[1] == pytest.approx(turned.flatten().tolist(), abs=1e-8)


@pytest.mark.parametrize("name", get_args(cost.NumberFormat))
def test_bytes_of_a_number(page, name):
    same(page, [cost.bytes_per_number(name), "bytes_per_number", name])


@given(st.integers(1, 64), st.integers(0, 512))
def test_bytes_of_a_row(page, blocks, rope):
    same(page, [cost.fp8_row_bytes(128 * blocks, rope), "fp8_row_bytes", 128 * blocks, rope])
    for dtype in cost.rows_of("mla"):
        same(page, [cost.mla_row_bytes(128 * blocks, rope, dtype), "mla_row_bytes", 128 * blocks, rope, dtype])


@given(st.integers(0, 10**13), st.sampled_from(WEIGHTS[1:]))
def test_bytes_of_weights(page, number, dtype):
    same(page, [cost.bytes_of_weights(number, dtype), "bytes_of_weights", number, dtype])


# Words


def lies_between(number):
    """Whether a digit that is dropped is a 5 with nothing behind it: Python rounds to even then, a browser up."""
    scaled = [Fraction(number) * Fraction(10) ** shift for shift in range(-21, 6)]
    return any(each % 1 == Fraction(1, 2) for each in scaled)


@many
@given(st.one_of(st.floats(1e-3, 1), st.floats(1, 2000), st.floats(1e-3, 1e12), st.integers(1, 10**12)))
def test_numbers_in_words(page, number):
    assume(not any(lies_between(each) for each in (number, 100 * number, *(number / 1000**k for k in range(1, 7)))))
    functions = ("digits", "duration", "percent", "ratio", "size")
    shown = page.evaluate("([names, number]) => names.map((name) => eval(name)(number))", [functions, float(number)])
    assert shown == [getattr(words, name)(float(number)) for name in functions]
    assert page.evaluate("(number) => size(number)", 1e9 * number) == words.size(1e9 * number)


def test_numbers_that_only_a_page_writes(page):
    shown = page.evaluate(
        """() => [large(999999n), large(1000000n), large(4580319232n), large(551114809344n), large(2n ** 60n),
                  fixed(-1.2345, 2), fixed(-0.001, 2), fixed(NaN, 3), fixed(-Infinity, 3), fixed(2, 1),
                  count(1234567n)]"""
    )
    assert shown == [
        *("999,999", "1.00 million", "4.58 billion", "551 billion", "1,150,000 trillion"),
        *("−1.23", "0.00", "–", "−∞", "2.0", "1,234,567"),
    ]
