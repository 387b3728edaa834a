"""Layers loaded from checkpoints of ten model families equal transformers' own, in every mode."""

import json

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel

import mla_edu.layers.mla as mla
import mla_edu.layers.rotary as rotary
import mla_edu.ops.latent as ops_latent
from mla_edu import MLAConfig, config_from_hf
from mla_edu.cache import LatentCache
from mla_edu.models.load import load_attention
from mla_edu.models.oracle import MLA_FAMILIES, family_attention, family_config, family_model
from mla_edu.ops.rope import rotate
from mla_edu.testing import poison, randomize, relative_error
from strategies import MLA_YARN, mla_configs

CHUNKS = (7, 1, 4, 1, 1, 3)
WIDTHS = {"q_lora_rank": 7, "kv_lora_rank": 11, "qk_nope_head_dim": 5, "qk_rope_head_dim": 6, "v_head_dim": 9}
SMALL = MLAConfig(hidden_size=24, num_attention_heads=3, **WIDTHS, rope_scaling=MLA_YARN[0])


@pytest.fixture(scope="module")
def worst_errors(request):
    """The largest error seen for each family; printed when the module is done."""
    errors = {}
    yield errors
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print()
        for family, error in errors.items():
            print(f"{family:16} largest relative error against transformers {error:.1e}")


@torch.no_grad()
def worst_position(layer, model, index=2):
    """Largest relative error against transformers over positions: full pass and uneven chunks, in all modes."""
    config = layer.config
    generator = torch.Generator().manual_seed(1)
    hidden_states = torch.randn(2, sum(CHUNKS), config.hidden_size, dtype=torch.float64, generator=generator)
    theirs = family_attention(model, index, hidden_states)
    errors = []
    for mode in ("expanded", "absorbed", "auto"):
        cache = LatentCache(config, batch_size=2, max_seq_len=20, dtype=torch.float64)
        poison(cache)
        decoded = torch.cat([layer(chunk, cache, mode) for chunk in hidden_states.split(CHUNKS, dim=1)], dim=1)
        for output in (layer(hidden_states, mode=mode), decoded):
            errors += [relative_error(output[:, i], theirs[:, i]) for i in range(output.shape[1])]
    return max(errors)


@pytest.mark.parametrize("family", MLA_FAMILIES)
@settings(max_examples=20)
@given(config=mla_configs())
def test_layers_equal_transformers(tmp_path_factory, worst_errors, family, config):
    config = family_config(family, config)
    head_dim = config.qk_head_dim  # transformers finds Mistral 4's rotary width through a float quotient
    assume(family != "mistral4" or int(head_dim * (config.qk_rope_head_dim / head_dim)) == config.qk_rope_head_dim)
    folder = tmp_path_factory.mktemp(family)
    model = family_model(family, config)
    model.save_pretrained(folder)
    layer = load_attention(folder, layer=2)
    assert layer.config == config
    error = worst_position(layer, model)
    worst_errors[family] = max(worst_errors.get(family, 0.0), error)
    assert error < 1e-5


@pytest.mark.parametrize("original, alike", [(32, False), (8, True)])
def test_minicpm3_layers_with_longrope_equal_transformers(tmp_path, original, alike):
    short, long = [1.1, 1.9, 4.0], [1.3, 2.2, 6.0]
    scaling = {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": short if alike else long,
        "original_max_position_embeddings": original,
        "factor": 4.0,
    }
    config = family_config("minicpm3", MLAConfig(hidden_size=24, num_attention_heads=3, **WIDTHS, rope_scaling=scaling))
    model = family_model("minicpm3", config)
    model.save_pretrained(tmp_path)
    layer = load_attention(tmp_path, layer=2)
    assert worst_position(layer, model) < 1e-5
    longest = 32
    layer(torch.zeros(1, longest, 24, dtype=torch.float64))
    with pytest.raises(ValueError, match="reach position 32; expected at most 31, where the range of longrope ends"):
        layer(torch.zeros(1, longest + 1, 24, dtype=torch.float64))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder and a model of each family, as ``folders[family]``."""
    made = {}
    for seed, family in enumerate(MLA_FAMILIES):
        folder = tmp_path_factory.mktemp(family)
        model = family_model(family, family_config(family, SMALL), seed)
        model.save_pretrained(folder)
        made[family] = folder, model
    return made


# Every check fails when what it protects is broken


class Normless(nn.Module):
    def forward(self, x):
        return x


def skip_norm(layer):
    layer.kv_a_layernorm = Normless()


def unit_norm_weight(layer):
    nn.init.ones_(layer.kv_a_layernorm.weight)


def other_eps(layer):
    layer.kv_a_layernorm.eps = 0.1


def skip_query_norm(layer):
    layer.q_a_layernorm = Normless()


def plain_scale(layer):
    layer.sm_scale = layer.config.qk_head_dim**-0.5


def set_pairing(pairing):
    def change(layer):
        layer.rotary.pairing = pairing

    return change


def set_option(**changes):
    def change(layer):
        layer.config = MLAConfig(**layer.config.model_dump() | changes)

    return change


@pytest.mark.parametrize(
    ("family", "break_it"),
    [
        ("deepseek_v3", skip_norm),
        ("deepseek_v3", unit_norm_weight),
        ("deepseek_v3", other_eps),
        ("deepseek_v3", skip_query_norm),
        ("deepseek_v3", plain_scale),
        ("deepseek_v2", set_pairing("halves")),
        ("minicpm3", set_pairing("interleaved")),
        ("mistral4", set_option(llama_4_scaling_beta=0.0)),
        ("longcat_flash", set_option(mla_scale_q_lora=False)),
        ("longcat_flash", set_option(mla_scale_kv_lora=False)),
    ],
)
def test_the_parity_check_sees_a_broken_layer(folders, family, break_it):
    folder, model = folders[family]
    layer = load_attention(folder, layer=2)
    assert worst_position(layer, model) < 1e-5
    break_it(layer)
    assert worst_position(layer, model) > 1e-3


@pytest.mark.parametrize(
    ("modules", "name", "broken"),
    [
        ((mla, ops_latent), "causal_mask", lambda q, k, **_: torch.ones(q, k, dtype=torch.bool).tril(k - q + 1)),
        ((rotary,), "rotate", lambda *args, **options: 1.01 * rotate(*args, **options)),
        ((rotary,), "rotate", lambda x, p, f, **options: rotate(x, p - p[:, :1], f, **options)),
        ((rotary,), "rotate", lambda x, p, f, **options: rotate(x, 2 * p, f, **options)),
        ((rotary,), "rotate", lambda x, p, f, **options: x),
    ],
    ids=["mask one off", "magnitude", "positions from zero", "positions doubled", "no rotation"],
)
def test_the_parity_check_sees_a_broken_step(monkeypatch, folders, modules, name, broken):
    folder, model = folders["deepseek_v3"]
    layer = load_attention(folder, layer=2)
    assert worst_position(layer, model) < 1e-5
    for module in modules:
        monkeypatch.setattr(module, name, broken)
    assert worst_position(layer, model) > 1e-3


def test_the_parity_check_sees_a_latent_cached_before_its_norm(monkeypatch, folders):
    folder, model = folders["deepseek_v3"]
    layer = load_attention(folder, layer=2)
    append, projected = LatentCache.append, []
    layer.kv_a_proj_with_mqa.register_forward_hook(lambda module, inputs, output: projected.append(output))
    monkeypatch.setattr(
        LatentCache, "append", lambda cache, c_kv, k_pe: append(cache, projected[-1][..., : c_kv.shape[-1]], k_pe)
    )
    assert worst_position(layer, model) > 1e-3


def test_a_forgotten_softmax_factor_is_exact_at_position_0_alone(folders):
    folder, model = folders["deepseek_v3"]
    layer = load_attention(folder, layer=2)
    plain_scale(layer)
    hidden_states = torch.randn(1, 6, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs, ours = family_attention(model, 2, hidden_states), layer(hidden_states)
    assert relative_error(ours[:, 0], theirs[:, 0]) < 1e-5
    assert all(relative_error(ours[:, i], theirs[:, i]) > 1e-3 for i in range(1, 6))


# Which layer, and which tensors


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_longcat_has_two_attentions_per_block(folders, layer):
    folder, model = folders["longcat_flash"]
    assert worst_position(load_attention(folder, layer=layer), model, index=layer) < 1e-5
    assert worst_position(load_attention(folder, layer=layer), model, index=(layer + 1) % 4) > 1e-3
    with pytest.raises(ValueError, match="layer is 4; expected 0 to 3"):
        load_attention(folder, layer=4)


@pytest.mark.parametrize(
    "said",
    [
        {"layer_types": ["linear_attention", "full_attention", "full_attention"]},
        {"layer_types": None, "linear_attn_config": {"full_attn_layers": [2, 3], "kda_layers": [1]}},
    ],
    ids=["layer_types", "numbers from 1"],
)
def test_a_linear_layer_of_kimi_is_refused_with_the_full_ones_named(copied, said):
    folder, _ = copied("kimi_linear")
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(hf | said))
    with pytest.raises(ValueError, match=r"layer is 0, which has linear attention; expected .* of \[1, 2\]"):
        load_attention(folder, layer=0)


@pytest.mark.parametrize("family", ["deepseek_v32", "glm_moe_dsa"])
def test_the_sparse_families_equal_theirs_until_the_indexer_drops_tokens(tmp_path, family):
    config = family_config(family, SMALL)
    model = family_model(family, config)
    model.config.index_topk = 5
    for layer in model.layers:
        if layer.self_attn.indexer is not None:
            layer.self_attn.indexer.index_topk = 5
    model.save_pretrained(tmp_path)
    layer = load_attention(tmp_path, layer=2)
    hidden_states = torch.randn(1, 9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs, ours = family_attention(model, 2, hidden_states), layer(hidden_states)
    assert relative_error(ours[:, :5], theirs[:, :5]) < 1e-5
    assert relative_error(ours[:, 5:], theirs[:, 5:]) > 1e-3


def test_shards_are_read_and_only_those_of_the_layer(tmp_path, folders):
    _, model = folders["deepseek_v3"]
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {file for name, file in index.items() if name.startswith("layers.2.self_attn.")}
    for file in set(index.values()) - shards:
        (tmp_path / file).unlink()
    assert worst_position(load_attention(tmp_path, layer=2), model) < 1e-5
    (tmp_path / min(shards)).unlink()
    with pytest.raises(FileNotFoundError, match=min(shards)):
        load_attention(tmp_path, layer=2)


def test_kimi_k2_is_read_as_deepseek_v3(copied):
    folder, model = copied("deepseek_v3")
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(hf | {"model_type": "kimi_k2"}))
    assert worst_position(load_attention(folder, layer=2), model) < 1e-5


def test_dtype_is_the_checkpoints_own_unless_asked_for(folders):
    folder, _ = folders["deepseek_v3"]
    assert load_attention(folder).kv_b_proj.weight.dtype == torch.float64
    assert load_attention(folder, dtype=torch.bfloat16).kv_a_layernorm.weight.dtype == torch.bfloat16


# Bad input


@pytest.fixture
def copied(tmp_path, folders):
    """Copies a family's folder, so that a test may spoil it; returns it with the model."""

    def copy(family):
        folder, model = folders[family]
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path, model

    return copy


def without(name):
    return lambda tensors: tensors.pop(name)


def with_tensor(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            without("layers.1.self_attn.kv_b_proj.weight"),
            r"kv_b_proj\.weight is missing; expected shape \[42, 11\]",
        ),
        (
            with_tensor("layers.1.self_attn.kv_a_layernorm.weight", torch.ones(12)),
            r"kv_a_layernorm\.weight has shape \[12\]; expected \[11\], from the configuration",
        ),
        (
            with_tensor("layers.1.self_attn.q_proj.weight", torch.ones(33, 24)),
            r"q_proj\.weight is there; expected .*q_a_proj",
        ),
        (
            with_tensor("layers.1.self_attn.kv_b_proj.weight_scale_inv", torch.ones(1, 1)),
            r"kv_b_proj\.weight_scale_inv is torch\.float32, of quantised weights; expected them dequantised",
        ),
        (
            with_tensor("layers.1.self_attn.kv_b_proj.weight", torch.ones(42, 11).to(torch.float8_e4m3fn)),
            r"kv_b_proj\.weight is torch\.float8_e4m3fn, of quantised weights",
        ),
    ],
    ids=["missing", "shape", "unexpected", "fp8 scale", "fp8"],
)
def test_tensors_that_do_not_fit_are_named(copied, spoil, message):
    folder, _ = copied("deepseek_v3")
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"layer 1 of .*{message}"):
        load_attention(folder, layer=1)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("deepseek_v3", {"model_type": "qwen3"}, "model_type is 'qwen3'; expected one of .*deepseek_v3"),
        ("deepseek_v3", {"kv_lora_rank": None}, "kv_lora_rank is None; expected a positive number"),
        ("deepseek_v3", {"num_hidden_layers": None}, "num_hidden_layers is None; expected a positive number"),
        ("deepseek_v3", {"rope_parameters": {"rope_type": "spiral"}}, "'spiral'.*longrope"),
        ("longcat_flash", {"q_lora_rank": None}, "q_lora_rank is None; expected a positive number"),
        ("mistral4", {"rope_parameters": {"rope_type": "default"}}, "llama_4_scaling_beta is None"),
        (
            "minicpm3",
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "factor": 1.0}},
            "long_factor: missing",
        ),
        ("kimi_linear", {"layer_types": None}, "layer_types is missing; expected it, or linear_attn_config"),
    ],
)
def test_an_unusable_config_json_is_one_clear_error(copied, family, changes, message):
    folder, _ = copied(family)
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(hf | changes))
    with pytest.raises(ValueError, match=message) as caught:
        load_attention(folder, layer=2)
    assert "\n" not in str(caught.value)


# config.json files as they were released


def test_minicpm3_as_released():
    # Its file is silent on v_head_dim, rope_theta and the factor.
    config = config_from_hf(
        {
            "model_type": "minicpm3",
            "hidden_size": 2560,
            "num_attention_heads": 40,
            "q_lora_rank": 768,
            "kv_lora_rank": 256,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "max_position_embeddings": 32768,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": [1.06] * 16,
                "short_factor": [1.06] * 16,
                "original_max_position_embeddings": 32768,
            },
        }
    )
    assert (config.v_head_dim, config.rope_theta, config.rope_scaling.factor) == (64, 10000.0, 1.0)
    assert not config.rope_interleave


def test_mistral_4_inside_a_multimodal_model():
    rope = {
        "type": "yarn",
        "rope_theta": 10000.0,
        "factor": 128.0,
        "original_max_position_embeddings": 8192,
        "max_position_embeddings": 1048576,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    text = {
        "model_type": "mistral4",
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "q_lora_rank": 1024,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rope_parameters": rope,
    }
    config = config_from_hf({"model_type": "mistral3", "text_config": text})
    assert (config.llama_4_scaling_beta, config.rope_scaling.factor) == (0.1, 128.0)
    assert config.elements_per_token == 320


@given(family=st.sampled_from(["deepseek_v3", "youtu", "glm4_moe_lite"]))
@settings(max_examples=3)
def test_a_bf16_layer_is_as_near_to_exact_as_transformers_own(family):
    widths = {"q_lora_rank": 96, "kv_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 48}
    config = family_config(family, MLAConfig(hidden_size=256, num_attention_heads=4, **widths))
    exact = family_model(family, config)
    hidden_states = torch.randn(2, 33, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights = {name: tensor.bfloat16() for name, tensor in exact.state_dict().items()}
    exact.load_state_dict(weights)
    rounded = AutoModel.from_config(AutoConfig.for_model(**exact.config.to_dict()), dtype=torch.bfloat16)
    rounded.load_state_dict(weights)
    ours = randomize(mla.MultiHeadLatentAttention(config, dtype=torch.bfloat16))
    prefix = "layers.2.self_attn."
    ours.load_state_dict({name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)})
    expected = family_attention(exact, 2, hidden_states.double())
    theirs = relative_error(family_attention(rounded, 2, hidden_states).double(), expected)
    for mode in ("expanded", "absorbed"):
        assert relative_error(ours(hidden_states, mode=mode).double(), expected) < 2 * theirs
