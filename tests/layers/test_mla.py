import pytest
import torch
from hypothesis import given, settings

import mla_edu.cache.latent as latent_caches
import mla_edu.layers.mla as mla
import mla_edu.layers.rotary as rotary
import mla_edu.ops.latent as ops_latent
from mla_edu import MLAConfig, MultiHeadLatentAttention
from mla_edu.cache import KVCache, LatentCache
from mla_edu.config import GQAConfig
from mla_edu.ops.latent import latent_attention
from mla_edu.ops.rope import rotate
from mla_edu.testing import poison, randomize, relative_error
from strategies import MLA_YARN, mla_configs

CHUNKS = (7, 1, 4, 1, 1, 3)
WIDTHS = {"q_lora_rank": 7, "kv_lora_rank": 11, "qk_nope_head_dim": 5, "qk_rope_head_dim": 6, "v_head_dim": 9}
CONFIG = MLAConfig(hidden_size=24, num_attention_heads=3, **WIDTHS, rope_scaling=MLA_YARN[0])
DEEPSEEK = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


def layer_and_tokens(config, seed=0, batch=2):
    layer = randomize(MultiHeadLatentAttention(config, dtype=torch.float64), seed)
    generator = torch.Generator().manual_seed(seed)
    return layer, torch.randn(batch, sum(CHUNKS), config.hidden_size, dtype=torch.float64, generator=generator)


@torch.no_grad()
def decoded(layer, hidden_states, mode):
    """The layer's output in uneven chunks through a cache whose unused memory is NaN."""
    batch, seq, _ = hidden_states.shape
    cache = LatentCache(layer.config, batch_size=batch, max_seq_len=seq + 2, dtype=hidden_states.dtype)
    poison(cache)
    return torch.cat([layer(chunk, cache, mode) for chunk in hidden_states.split(CHUNKS, dim=1)], dim=1)


@torch.no_grad()
def worst_position(layer, hidden_states):
    """Largest relative error, over all modes and positions, against the full pass that rebuilds keys and values."""
    expected = layer(hidden_states, mode="expanded")
    outputs = [layer(hidden_states, mode="absorbed"), layer(hidden_states)]
    outputs += [decoded(layer, hidden_states, mode) for mode in ("expanded", "absorbed", "auto")]
    positions = range(expected.shape[1])
    return max(relative_error(output[:, i], expected[:, i]) for output in outputs for i in positions)


@settings(max_examples=50)
@given(config=mla_configs())
def test_all_modes_agree_at_every_position_with_and_without_the_cache(config):
    assert worst_position(*layer_and_tokens(config)) < 1e-12


def test_no_rotation_and_no_rotary_part_are_layers_too():
    assert (
        worst_position(*layer_and_tokens(MLAConfig(hidden_size=24, num_attention_heads=3, **WIDTHS, rope_theta=None)))
        < 1e-12
    )
    assert (
        worst_position(
            *layer_and_tokens(MLAConfig(hidden_size=24, num_attention_heads=3, **WIDTHS | {"qk_rope_head_dim": 0}))
        )
        < 1e-12
    )


def from_zero(x, positions, frequencies, **options):
    return rotate(x, positions - positions[:, :1], frequencies, **options)


def wrong_scale(q, rows, *, kv_lora_rank, sm_scale):
    return latent_attention(q, rows, kv_lora_rank=kv_lora_rank, sm_scale=rows.shape[-1] ** -0.5)


def top_left(queries, keys, **_):
    return torch.ones(queries, keys, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    ("modules", "name", "broken"),
    [
        ((mla, ops_latent), "causal_mask", top_left),
        ((mla, ops_latent), "causal_mask", lambda queries, keys, **_: torch.ones(queries, keys, dtype=torch.bool)),
        ((rotary,), "rotate", from_zero),
        ((mla, latent_caches), "latent_attention", wrong_scale),
    ],
    ids=["top-left mask", "no mask", "positions from zero", "scale of the latent's width"],
)
def test_the_agreement_check_sees_a_broken_layer(monkeypatch, modules, name, broken):
    layer, hidden_states = layer_and_tokens(CONFIG)
    assert worst_position(layer, hidden_states) < 1e-12
    for module in modules:
        monkeypatch.setattr(module, name, broken)
    assert worst_position(layer, hidden_states) > 1e-3


def test_absorbed_attention_never_builds_keys_or_values(monkeypatch):
    layer, hidden_states = layer_and_tokens(CONFIG)

    def refuse(latents):
        raise AssertionError("kv_b_proj was run over the cached tokens")

    expected = layer(hidden_states, mode="expanded")
    monkeypatch.setattr(layer.kv_b_proj, "forward", refuse)
    assert relative_error(layer(hidden_states, mode="absorbed"), expected) < 1e-12
    with pytest.raises(AssertionError, match="kv_b_proj was run"):
        layer(hidden_states, mode="expanded")


def test_what_is_cached_is_the_latent_after_its_norm_and_the_rotated_key():
    layer, hidden_states = layer_and_tokens(CONFIG)
    cache = LatentCache(CONFIG, batch_size=2, max_seq_len=17, dtype=torch.float64)
    layer(hidden_states, cache)
    latent, key = layer.kv_a_proj_with_mqa(hidden_states).split((11, 6), dim=-1)
    assert relative_error(cache.c_kv, layer.kv_a_layernorm(latent)) < 1e-14
    turned = rotate(key[:, :, None], torch.arange(17)[None], layer.rotary.frequencies, pairing="interleaved")[:, :, 0]
    assert relative_error(cache.k_pe, turned) < 1e-14


@pytest.mark.parametrize("mode", ["expanded", "absorbed"])
def test_bf16_costs_no_more_than_rounding_each_product(mode):
    layer, hidden_states = layer_and_tokens(
        MLAConfig(hidden_size=256, num_attention_heads=8, **DEEPSEEK, q_lora_rank=96)
    )
    layer, hidden_states = layer.bfloat16(), hidden_states.bfloat16()
    exact = MultiHeadLatentAttention(layer.config, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    expected = exact(hidden_states.double(), mode="expanded")
    cache = LatentCache(layer.config, batch_size=2, max_seq_len=20)
    with torch.no_grad():
        steps = [layer(chunk, cache, mode) for chunk in hidden_states.split(CHUNKS, dim=1)]
    assert relative_error(torch.cat(steps, dim=1).double(), expected) < 6 * 2**-8


def test_gradients_reach_every_parameter():
    layer, hidden_states = layer_and_tokens(CONFIG)
    gradients = []
    for mode in ("expanded", "absorbed"):
        layer.zero_grad()
        layer(hidden_states, mode=mode).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in layer.parameters()])
    assert all(relative_error(absorbed, expanded) < 1e-11 for expanded, absorbed in zip(*gradients, strict=True))


def test_casting_the_layer_leaves_its_angles_exact():
    layer, _ = layer_and_tokens(CONFIG)
    assert torch.equal(layer.bfloat16().rotary.frequencies, layer_and_tokens(CONFIG)[0].rotary.frequencies)


# Cost


def test_auto_takes_the_cheaper_mode(monkeypatch):
    layer, hidden_states = layer_and_tokens(CONFIG)
    taken = []
    for mode, name in (("expanded", "_expanded"), ("absorbed", "absorb")):
        method = getattr(layer, name)
        monkeypatch.setattr(layer, name, lambda *a, m=mode, f=method: taken.append(m) or f(*a))
    cache = LatentCache(CONFIG, batch_size=2, max_seq_len=17, dtype=torch.float64)
    layer(hidden_states[:, :16], cache)
    layer(hidden_states[:, 16:], cache)
    assert taken == ["expanded", "absorbed"]


# Bad input


def prefilled():
    layer, tokens = layer_and_tokens(CONFIG)
    cache = LatentCache(CONFIG, batch_size=2, max_seq_len=7, dtype=torch.float64)
    layer(tokens[:, :2], cache)
    return layer, tokens, cache


@pytest.mark.parametrize(
    ("hidden_states", "options", "message"),
    [
        (torch.zeros(2, 3, 23).double(), {}, r"shape \[2, 3, 23\]; expected \[batch, seq, 24\]"),
        (torch.zeros(3, 24).double(), {}, r"shape \[3, 24\]; expected \[batch, seq, 24\]"),
        (torch.zeros(2, 1, 24), {}, "hidden_states is torch.float32; expected torch.float64"),
        (torch.zeros(1, 1, 24).double(), {}, "batch size is 1; expected 2"),
        (
            torch.zeros(2, 6, 24).double(),
            {},
            "6 new tokens after 2 cached ones of sequence 0; expected at most max_seq",
        ),
        (torch.zeros(2, 1, 24).double(), {"mode": "fast"}, "mode is 'fast'; expected 'expanded', 'absorbed' or"),
    ],
)
def test_what_does_not_fit_leaves_the_cache_as_it_was(hidden_states, options, message):
    layer, _, cache = prefilled()
    rows = cache.rows[:, :2].clone()
    with pytest.raises(ValueError, match=message):
        layer(hidden_states, cache, **options)
    assert cache.length == 2
    assert torch.equal(cache.rows[:, :2], rows)


@pytest.mark.parametrize(
    ("cache", "error", "message"),
    [
        (LatentCache(CONFIG, 2, 7, torch.float32), ValueError, "torch.float64 on cpu; expected torch.float32 on cpu"),
        (LatentCache(CONFIG, 2, 7, torch.float64, "meta"), ValueError, "on cpu; expected torch.float64 on meta"),
        (
            LatentCache(
                MLAConfig(hidden_size=24, num_attention_heads=3, **WIDTHS | {"kv_lora_rank": 12}), 2, 7, torch.float64
            ),
            ValueError,
            r"c_kv has shape \[2, 1, 11\]; expected \[2, 1, 12\]",
        ),
        (
            KVCache(
                GQAConfig(hidden_size=24, num_attention_heads=3, num_key_value_heads=3, head_dim=6), 2, 7, torch.float64
            ),
            TypeError,
            "cache is a KVCache for a GQAConfig; expected one for a MLAConfig",
        ),
    ],
    ids=["dtype", "device", "widths", "kind"],
)
def test_a_cache_of_another_kind_is_refused_and_stays_empty(cache, error, message):
    layer, tokens = layer_and_tokens(CONFIG)
    with pytest.raises(error, match=message):
        layer(tokens[:, :1], cache)
    assert cache.length == 0


def test_positions_past_the_range_of_yarn_are_refused():
    layer, _ = layer_and_tokens(CONFIG)  # 5 times 8 positions
    tokens = torch.zeros(1, 40, 24, dtype=torch.float64)
    cache = LatentCache(CONFIG, max_seq_len=50, dtype=torch.float64)
    layer(tokens, cache)
    with pytest.raises(ValueError, match="reach position 40; expected at most 39, where the range of yarn ends"):
        layer(tokens[:, :1], cache)
    assert cache.length == 40
