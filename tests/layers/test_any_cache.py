"""A layer over any cache: sequences of different lengths, in rows or pages, equal each its own full pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import mla_edu.cache.latent as latent_caches
import mla_edu.cache.table as tables
import mla_edu.layers.mla as mla_layer
from mla_edu import GQAConfig, GroupedQueryAttention, MLAConfig, MultiHeadLatentAttention
from mla_edu.cache import KVCache, LatentCache, PagedKVCache, PagedLatentCache, PageTable, SequenceTable, StateCache
from mla_edu.config import Mamba2Config
from mla_edu.testing import poison, randomize, relative_error
from strategies import MLA_YARN, gqa_configs, mla_configs

WIDTHS = {"q_lora_rank": 7, "kv_lora_rank": 11, "qk_nope_head_dim": 5, "qk_rope_head_dim": 6, "v_head_dim": 9}
MLA = MLAConfig(hidden_size=24, num_attention_heads=3, **WIDTHS)
GQA = GQAConfig(hidden_size=36, num_attention_heads=6, num_key_value_heads=2, head_dim=10, sliding_window=5)
MODES = ("expanded", "absorbed", "auto")


def layer_of(config, dtype=torch.float64):
    kind = MultiHeadLatentAttention if isinstance(config, MLAConfig) else GroupedQueryAttention
    return randomize(kind(config, dtype=torch.float64), seed=3).to(dtype).requires_grad_(False)


def caches(config, batch_size, dtype, page_size=4):
    """One of each kind, all memory NaN; pages in an order of no use."""
    rows, pages = (LatentCache, PagedLatentCache) if isinstance(config, MLAConfig) else (KVCache, PagedKVCache)
    table = PageTable(num_pages=40 * batch_size // page_size + batch_size, page_size=page_size, batch_size=batch_size)
    held = table.allocator.allocate(table.allocator.num_free)
    table.allocator.free(held[1::2] + held[::2])
    made = [rows(config, batch_size, 40, dtype), pages(config, table, dtype)]
    for cache in made:
        poison(cache)
    return made


def chunks_of(lengths, draw_chunk):
    """Steps that grow each sequence to its length: ``(sequences, count)``, some together, in an order of no use."""
    done, steps = [0] * len(lengths), []
    while open_ones := [b for b, length in enumerate(lengths) if done[b] < length]:
        sequences, count = draw_chunk(open_ones)
        count = min([count, *(lengths[b] - done[b] for b in sequences)])
        steps.append((sequences, count))
        for b in sequences:
            done[b] += count
    return steps


def worst_position(layer, cache, tokens, steps, **options):
    """Largest relative error over all positions of all sequences, each against its own full pass without a cache."""
    outputs = [[] for _ in tokens]
    for sequences, count in steps:
        new = torch.stack([tokens[b][cache.lengths[b] : cache.lengths[b] + count] for b in sequences])
        with cache.step(count, sequences):
            for b, out in zip(sequences, layer(new, cache, **options), strict=True):
                outputs[b].append(out)
    errors = []
    for own, pieces in zip(tokens, outputs, strict=True):
        full = layer(own[None], **({"mode": "expanded"} if options else {}))[0]
        got = torch.cat(pieces)
        errors += [relative_error(got[i], full[i]) for i in range(len(full))]
    return max(errors)


@st.composite
def batches(draw, configs):
    config = draw(configs)
    lengths = draw(st.lists(st.integers(1, 17), min_size=1, max_size=3))

    def draw_chunk(open_ones):
        return draw(st.lists(st.sampled_from(open_ones), min_size=1, unique=True)), draw(st.integers(1, 7))

    steps = chunks_of(lengths, draw_chunk)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tokens = [torch.randn(n, config.hidden_size, dtype=torch.float64, generator=generator) for n in lengths]
    return config, tokens, steps, draw(st.sampled_from((1, 3, 16)))


@settings(max_examples=40)
@given(batches(mla_configs()))
def test_ragged_mla_batches_equal_each_sequences_full_pass(batch):
    config, tokens, steps, page_size = batch
    layer = layer_of(config)
    for mode in MODES:
        for cache in caches(config, len(tokens), torch.float64, page_size):
            assert worst_position(layer, cache, tokens, steps, mode=mode) < 1e-11


@settings(max_examples=40)
@given(batches(gqa_configs()), st.none() | st.integers(1, 20))
def test_ragged_gqa_batches_equal_each_sequences_full_pass(batch, window):
    config, tokens, steps, page_size = batch
    config = config.model_copy(update={"sliding_window": window})
    layer = layer_of(config)
    for cache in caches(config, len(tokens), torch.float64, page_size):
        assert worst_position(layer, cache, tokens, steps) < 1e-11


RAGGED = [([0], 5), ([2, 1], 1), ([1], 7), ([0, 2], 3), *[([0, 1, 2], 1)] * 4]
LENGTHS = (12, 12, 8)


def ragged_tokens(config):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, config.hidden_size, dtype=torch.float64, generator=generator) for length in LENGTHS]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 4e-6), (torch.float16, 6 * 2**-11), (torch.bfloat16, 6 * 2**-8)], ids=str
)
def test_ragged_batches_in_smaller_dtypes_cost_no_more_than_rounding(mode, dtype, bound):
    layer, tokens = layer_of(MLA), ragged_tokens(MLA)
    rounded = layer_of(MLA, dtype)
    layer.load_state_dict(rounded.state_dict())
    tokens = [own.to(dtype) for own in tokens]
    full = [layer(own[None].double())[0] for own in tokens]
    for cache in caches(MLA, 3, dtype):
        for b, (got, expected) in enumerate(zip(outputs_of(rounded, cache, tokens, mode), full, strict=True)):
            assert relative_error(got.double(), expected) < bound, (type(cache), b)


def outputs_of(layer, cache, tokens, mode):
    outputs = [[] for _ in tokens]
    for sequences, count in RAGGED:
        new = torch.stack([tokens[b][cache.lengths[b] : cache.lengths[b] + count] for b in sequences])
        with cache.step(count, sequences):
            for b, out in zip(sequences, layer(new, cache, mode), strict=True):
                outputs[b].append(out)
    return [torch.cat(pieces) for pieces in outputs]


@pytest.mark.parametrize("mode", ["expanded", "absorbed"])
def test_ragged_fp8_rows_equal_the_full_pass_over_what_the_rows_hold(mode, monkeypatch):
    """The full pass in float64, over latents rounded as the rows round them."""
    config = MLA.model_copy(update={"kv_lora_rank": 128})
    layer, tokens = layer_of(config, torch.bfloat16), [own.bfloat16() for own in ragged_tokens(config)]
    cache = PagedLatentCache(config, PageTable(num_pages=14, page_size=4, batch_size=3), torch.uint8)
    poison(cache)
    outputs = outputs_of(layer, cache, tokens, mode)
    exact = layer_of(config)
    exact.load_state_dict(layer.state_dict())
    for b, (_, rows) in enumerate(cache.read()):
        held = rows.double().split((128, 6), dim=-1)
        monkeypatch.setattr(exact, "latents", lambda *_, held=held: held)
        assert relative_error(outputs[b].double(), exact(tokens[b][None].double(), mode="expanded")[0]) < 6 * 2**-8


@pytest.mark.parametrize("mode", MODES)
def test_pages_are_decoded_by_the_kernel_that_is_asked_for(monkeypatch, mode):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("Triton does not interpret here")
    backends = []
    decode = latent_caches.mla_decode
    monkeypatch.setattr(
        latent_caches,
        "mla_decode",
        lambda *a, backend, **o: backends.append(backend) or decode(*a, backend=backend, **o),
    )
    layer, tokens = layer_of(MLA, torch.float32), [own.float() for own in ragged_tokens(MLA)]
    pages = PagedLatentCache(MLA, PageTable(14, page_size=4, batch_size=3), torch.float32, backend="triton")
    poison(pages)
    assert worst_position(layer, pages, tokens, RAGGED, mode=mode) < 5e-6
    assert set(backends) == ({"triton"} if mode != "expanded" else set())


def test_an_unknown_backend_is_refused_when_the_cache_is_made():
    with pytest.raises(ValueError, match="backend is 'cuda'; expected 'triton', 'gluon', 'reference' or 'auto'"):
        PagedLatentCache(MLA, PageTable(2), backend="cuda")


@pytest.mark.parametrize(
    "broken",
    [
        lambda step: torch.arange(step.num_new)[None],
        lambda step: step.table.seq_lens.max() + torch.arange(step.num_new)[None],
        lambda step: step.table.seq_lens[: len(step.sequences), None] + torch.arange(step.num_new),
    ],
    ids=["from zero", "of the longest", "of the first sequences"],
)
@pytest.mark.parametrize("config", [MLA, GQA], ids=["mla", "gqa"])
def test_the_check_sees_wrong_positions(monkeypatch, config, broken):
    monkeypatch.setattr(tables.Step, "positions", property(broken))
    rows, _ = caches(config, 3, torch.float64)
    assert worst_position(layer_of(config), rows, ragged_tokens(config), RAGGED) > 1e-3


@pytest.mark.parametrize("config", [MLA, GQA], ids=["mla", "gqa"])
def test_several_layers_share_one_table(config):
    layers = [layer_of(config), randomize(layer_of(config), seed=4)]
    table = PageTable(num_pages=14, page_size=4, batch_size=3)
    kind = PagedLatentCache if config is MLA else PagedKVCache
    stores = [kind(config, table, torch.float64) for _ in layers]
    tokens = ragged_tokens(config)
    outputs = [[] for _ in tokens]
    for sequences, count in RAGGED:
        x = torch.stack([tokens[b][table.lengths[b] : table.lengths[b] + count] for b in sequences])
        with table.step(count, sequences):
            for layer, store in zip(layers, stores, strict=True):
                x = layer(x, store)
        for b, out in zip(sequences, x, strict=True):
            outputs[b].append(out)
    for own, pieces in zip(tokens, outputs, strict=True):
        full = layers[1](layers[0](own[None]))[0]
        assert relative_error(torch.cat(pieces), full) < 1e-12
    assert table.lengths == list(LENGTHS)


class Traffic(TorchDispatchMode):
    """Copies between devices, and readings of a device tensor by the host."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {each.device for each in (*args, out) if isinstance(each, torch.Tensor) and each.ndim}
        if len(devices) > 1 or func._overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.seen.append(str(func))
        return out


def test_a_step_over_pages_reads_nothing_back_and_copies_nothing(monkeypatch):
    """On the meta device, which has no numbers that could be read: what a CUDA graph asks of a step."""
    monkeypatch.setattr(latent_caches, "mla_decode", lambda q, *_, kv_lora_rank, **__: q[..., :kv_lora_rank])
    layer = MultiHeadLatentAttention(MLA, device="meta")
    cache = PagedLatentCache(MLA, PageTable(8, 4, batch_size=3, device="meta"), torch.float32)
    new = torch.empty(2, 1, 24, device="meta")
    for sequences, tokens in ((None, torch.empty(3, 1, 24, device="meta")), ([2, 0], new)):
        layer(torch.empty(3, 1, 24, device="meta"), cache)  # the rotary frequencies reach the device once
        with cache.step(1, sequences), Traffic() as traffic:
            layer(tokens, cache)
        assert traffic.seen == []
    with Traffic() as traffic:
        torch.zeros(3).to("meta")
    assert traffic.seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_sequences_and_no_tokens_give_an_empty_output(mode, shape):
    layer, hidden_states = layer_of(MLA), torch.zeros(*shape, 24, dtype=torch.float64)
    assert layer(hidden_states, mode=mode).shape == (*shape, 24)
    if shape[0]:
        for cache in caches(MLA, 2, torch.float64):
            layer(torch.zeros(2, 3, 24, dtype=torch.float64), cache)
            assert layer(hidden_states, cache, mode).shape == (2, 0, 24)
            assert cache.lengths == [3, 3]
    gqa = layer_of(GQA)
    assert gqa(torch.zeros(*shape, 36, dtype=torch.float64)).shape == (*shape, 36)


STATES = StateCache(
    Mamba2Config(hidden_size=24, num_heads=4, head_dim=12, state_size=5), SequenceTable(2, 40), torch.float64
)


@pytest.mark.parametrize(
    "cache",
    [*caches(MLA, 2, torch.float64), *caches(GQA, 2, torch.float64), STATES, 3],
    ids=lambda cache: type(cache).__name__,
)
def test_a_cache_of_another_kind_is_one_clear_error(cache):
    latents, keys = ("LatentCache", "PagedLatentCache"), ("KVCache", "PagedKVCache")
    for config, kinds in ((MLA, latents + keys), (GQA, keys)):
        hidden_states = torch.zeros(2, 1, config.hidden_size, dtype=torch.float64)
        if type(cache).__name__ not in kinds:
            with pytest.raises(TypeError, match=f"cache is a {type(cache).__name__}; expected a {' or '.join(kinds)}"):
                layer_of(config)(hidden_states, cache)
        elif cache.config == config:
            layer_of(config)(hidden_states, cache)
        else:
            made, own = type(cache.config).__name__, type(config).__name__
            with pytest.raises(
                TypeError, match=f"cache is a {type(cache).__name__} for a {made}; expected one for a {own}"
            ):
                layer_of(config)(hidden_states, cache)


@pytest.mark.parametrize("paged", [False, True], ids=["rows", "pages"])
def test_a_layer_that_keeps_keys_and_values_of_every_head_equals_the_one_that_keeps_latents(paged):
    layer, tokens = layer_of(MLA), torch.randn(2, 19, 24, dtype=torch.float64)
    table = PageTable(12, 4, batch_size=2) if paged else SequenceTable(2, 20)
    cache = PagedKVCache(MLA, table, torch.float64) if paged else KVCache(MLA, dtype=torch.float64, table=table)
    poison(cache)
    out = torch.cat([layer(piece, cache) for piece in tokens.split((7, 1, 5, 1, 1, 4), dim=1)], dim=1)
    assert relative_error(out, layer(tokens)) < 1e-12
    assert cache.keys.shape[2:] == (3, 5 + 6)
    assert cache.values.shape[2:] == (3, 9)


@pytest.mark.parametrize("at_once", [1, 4, 7, 18])
def test_keys_and_values_rebuilt_in_parts_give_the_output_of_all_at_once(at_once, monkeypatch):
    layer, tokens = layer_of(MLA), torch.randn(2, 19, 24, dtype=torch.float64)
    full = layer(tokens, mode="expanded")
    monkeypatch.setattr(mla_layer, "EXPANDED_AT_ONCE", at_once)
    assert relative_error(layer(tokens, mode="expanded"), full) < 1e-12
    for cache in caches(MLA, 2, torch.float64):
        out = torch.cat([layer(piece, cache, "expanded") for piece in tokens.split((9, 1, 6, 3), dim=1)], dim=1)
        assert relative_error(out, full) < 1e-12


def test_a_position_past_the_range_of_yarn_is_refused_for_the_longest_sequence():
    config = MLAConfig(**MLA.model_dump() | {"rope_scaling": MLA_YARN[0]})  # 5 times 8 positions
    layer = layer_of(config)
    for cache in (LatentCache(config, 2, 50, torch.float64), caches(config, 2, torch.float64)[1]):
        with cache.step(40, [1]):
            layer(torch.zeros(1, 40, 24, dtype=torch.float64), cache)
        with pytest.raises(ValueError, match="reach position 40; expected at most 39"):
            layer(torch.zeros(2, 1, 24, dtype=torch.float64), cache)
        assert cache.lengths == [0, 40]
