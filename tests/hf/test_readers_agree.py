"""What one reader says of a file all of them say, and transformers' own modules: drawn files of every family."""

import json
import math

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mla_edu import GQAConfig, MLAConfig, config_from_hf
from mla_edu.files import load_yaml
from mla_edu.hf import spec_from_hf
from mla_edu.hf.families import get_family, list_families, loadable_families
from mla_edu.layers.gqa import GroupedQueryAttention
from mla_edu.layers.mla import MultiHeadLatentAttention
from mla_edu.models.load import load_attention
from mla_edu.ops.rope import rope_frequencies, rope_magnitude
from mla_edu.registry import get_model, list_models
from tiny_families import SPECIAL, saved, their_layer

DESCRIBED = [name for name in list_families() if get_family(name).attention is not None]
ROTATING = [name for name in DESCRIBED if get_family(name).attention.theta is not None]
ENTRIES = {entry["name"]: entry for entry in load_yaml("mla_edu.registry", "models.yaml")}
# Three blocks' worth of layers, whose kinds the widths do not touch.
KEPT = ("model_type", "num_hidden_layers", "num_layers", "layer_types", "linear_attn_config", "sliding_window")


def yarns():
    """YaRN's settings, some of them silent or null."""
    optional = {
        "beta_fast": st.sampled_from([4.0, 8, None]),
        "beta_slow": st.sampled_from([1.0, 2, None]),
        "mscale": st.sampled_from([1.0, 0.7, None]),
        "mscale_all_dim": st.sampled_from([1, 0.7, None]),
        "attention_factor": st.sampled_from([1.25, None]),
        "truncate": st.booleans(),
        "original_max_position_embeddings": st.sampled_from([16, 32]),
    }
    return st.fixed_dictionaries({"rope_type": st.just("yarn"), "factor": st.sampled_from([5.0, 2])}, optional=optional)


def stretches(pairs: int):
    """Settings of every type that we have, some of them silent on what transformers fills in."""
    factors = st.lists(st.sampled_from([1.0, 1.5, 4.0]), min_size=pairs, max_size=pairs)
    longrope = st.fixed_dictionaries(
        {"rope_type": st.just("longrope"), "short_factor": factors, "long_factor": factors},
        optional={"factor": st.sampled_from([2.0, 8]), "original_max_position_embeddings": st.sampled_from([16, 512])},
    )
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4.0}
    linear = {"rope_type": "linear", "factor": 3}
    return st.one_of(
        st.sampled_from([linear, llama3, llama3 | {"original_max_position_embeddings": 64}]), yarns(), longrope
    )


@st.composite
def rotations(draw, family, pairs):
    """Rotary settings in one of the layouts in use; the same theta or type may stand in two places."""
    theta = draw(st.sampled_from([None, 100.0, 10000, 500000.0]))
    scaling = draw(st.none() | stretches(pairs))
    if family == "gemma3_text":
        full = {
            k: v for k, v in (scaling or {"rope_type": "default"}).items() if k != "truncate"
        }  # they overlook it here
        full |= {"rope_theta": theta} if theta else {}
        return {"rope_parameters": {"full_attention": full, "sliding_attention": {"rope_type": "default"}}}
    if family == "mistral4":
        scaling = draw(yarns())
        scaling |= {"llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 32}
        # The width that its module rotates is in no other place.
        return {"rope_parameters": scaling | ({"rope_theta": theta} if theta else {})}
    beside = {"rope_theta": theta} if theta is not None else {}
    if scaling is None:
        return draw(
            st.sampled_from(
                [beside, {"rope_parameters": {"rope_type": "default"} | beside}, beside | {"rope_scaling": None}]
            )
        )
    old = {"type" if key == "rope_type" and draw(st.booleans()) else key: value for key, value in scaling.items()}
    if draw(st.booleans()):
        old = {"type": scaling["rope_type"], **scaling}
    return draw(
        st.sampled_from(
            [
                {"rope_scaling": old, **beside},
                {"rope_scaling": old | beside, **beside},
                {"rope_parameters": scaling | beside},
                {"rope_parameters": scaling | beside, **beside},
                {"rope_parameters": scaling | beside, "rope_scaling": None},
            ]
        )
    )


@st.composite
def files(draw, family: str):
    """A ``config.json`` of the family: as transformers saves a small one, with other numbers."""
    known = get_family(family)
    own = "deepseek_v3" if family == "kimi_k2" else family
    saved_file = saved(own)
    file = {
        key: value
        for key, value in saved_file.items()
        if not key.startswith(("rope", "partial_rotary", "head_dim", "qk_head"))
    }
    file["model_type"] = family
    if known.rule in ("full", "window", "indexed") and saved_file.get("layer_types") is None:
        file[next(key for key in ("num_hidden_layers", "n_layer", "num_layers") if key in saved_file)] = 2
    heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    name = {key: key for key in ("hidden_size", "num_attention_heads")}
    name |= {"n_embd": "n_embd"} if "n_embd" in saved_file else {}
    pairs = draw(st.integers(1, 6))
    file[next(k for k in ("hidden_size", "n_embd", "d_model") if k in saved_file)] = hidden = (
        4 * heads * group * draw(st.integers(2, 5))
    )
    file[next(k for k in ("num_attention_heads", "n_head", "attention_heads") if k in saved_file)] = heads * group
    if "kv_lora_rank" in known.defaults:
        file |= {"num_key_value_heads": heads * group, "kv_lora_rank": draw(st.integers(1, 17))}
        file |= {"qk_nope_head_dim": draw(st.integers(1, 9)), "v_head_dim": draw(st.integers(1, 9))}
        ranks = st.integers(1, 9) if "q_lora_rank" in known.never_null else st.none() | st.integers(1, 9)
        file["q_lora_rank"] = draw(ranks)
        file["qk_rope_head_dim"] = 2 * pairs if known.attention.theta or family == "kimi_linear" else 0
        if known.attention.rotated_width:
            file["head_dim"] = file["qk_rope_head_dim"]
        if family == "minicpm3" and draw(st.booleans()):
            file["v_head_dim"] = None
    elif "num_key_value_heads" in saved_file:
        file["num_key_value_heads"] = heads
        if draw(st.booleans()) and "num_key_value_heads" not in known.never_null:
            file["num_key_value_heads"] = None
        pairs = hidden // (heads * group) // 2
        if "head_dim" in saved_file and (saved_file["head_dim"] is not None or family in ("ministral", "mixtral")):
            file["head_dim"] = 2 * (pairs := draw(st.integers(1, 6)))
    else:
        pairs = hidden // (heads * group) // 2
    flags = {
        f
        for f in (known.attention.qkv_bias, known.attention.o_bias, known.attention.rope_interleave)
        if isinstance(f, str)
    }
    for flag in sorted(flags):
        if draw(st.booleans()):
            file[flag] = draw(st.booleans())
        else:
            file.pop(flag, None)
    file["max_position_embeddings" if "max_position_embeddings" in saved_file else "n_positions"] = draw(
        st.sampled_from([64, 512])
    )
    if known.attention.theta is not None:
        file |= draw(rotations(family, pairs))
    return file


def theirs(file):
    name = "deepseek_v3" if file["model_type"] == "kimi_k2" else file["model_type"]
    return transformers.CONFIG_MAPPING[name].from_dict(file | {"model_type": name})


def same_layer(config, layer):
    """Our layer of this configuration has the parameters, the rotation and the scale of theirs."""
    if isinstance(config, MLAConfig):
        ours = MultiHeadLatentAttention(config, device="meta")
        shapes = {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}
        assert shapes == {n: s for n, s in layer.shapes.items() if not n.startswith("indexer.")}
        assert ours.sm_scale == pytest.approx(layer.scale, rel=1e-12)
        width = config.qk_rope_head_dim
    else:
        width, heads, groups = config.head_dim, config.num_attention_heads, config.num_key_value_heads
        assert layer.projections(config.hidden_size) == {
            "qkv": (heads + 2 * groups) * width,
            "o": heads * width,
            "qkv_bias": config.qkv_bias,
            "o_bias": config.o_bias,
        }
    assert (config.rope_theta is None) == (layer.frequencies is None)
    if config.rope_theta is not None:
        ours = rope_frequencies(width, config.rope_theta, config.rope_scaling).tolist()
        assert ours == pytest.approx(layer.frequencies, rel=1e-5)
        assert rope_magnitude(config.rope_scaling) == pytest.approx(layer.magnitude, rel=1e-6)


@pytest.mark.parametrize("family", DESCRIBED)
@settings(max_examples=6)
@given(data=st.data())
def test_a_drawn_file_says_the_same_to_every_reader_and_to_transformers(tmp_path_factory, family, data):
    file = data.draw(files(family))
    spec = spec_from_hf(file)
    assert spec.config is not None, spec.no_config
    same_layer(spec.config, their_layer(theirs(file)))
    if family not in loadable_families():
        with pytest.raises(ValueError, match=f"model_type is '{family}'; expected one of"):
            config_from_hf(file)
        return
    assert config_from_hf(file) == spec.config
    layer_class = MultiHeadLatentAttention if isinstance(spec.config, MLAConfig) else GroupedQueryAttention
    made = layer_class(spec.config)
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "config.json").write_text(json.dumps(file))
    layer = next(i for i, kind in enumerate(SPECIAL.get(family, {}).get("layer_types", ["full"])) if kind != "linear")
    layer = 1 if family == "kimi_linear" else layer
    name = "layers.0.self_attn.0" if family == "longcat_flash" else f"layers.{layer}.self_attn"
    save_file({f"model.{name}.{key}": value for key, value in made.state_dict().items()}, folder / "model.safetensors")
    assert load_attention(folder, layer=layer).config == spec.config


@pytest.mark.parametrize("family", DESCRIBED)
def test_a_file_that_is_silent_on_all_that_the_family_defines_is_read_as_its_class_reads_it(family):
    own = "deepseek_v3" if family == "kimi_k2" else family
    saved_file = saved(own)
    kept = {key: saved_file[key] for key in KEPT if saved_file.get(key) is not None}
    if get_family(family).rule in ("last_layers", "alternate"):  # no layer slides unless the file says so
        del kept["layer_types"]
    sizes = {key: saved_file[key] for key in ("hidden_size", "n_embd", "d_model", "n_layer") if key in saved_file}
    experts = ("expert", "intermediate", "moe_")
    moe = {key: value for key, value in saved_file.items() if any(part in key for part in experts)}
    file = {**kept, **sizes, **moe, "model_type": family}
    if "hidden_size" in sizes:  # some classes want a multiple of the heads
        file["hidden_size"] = 64 * math.lcm(2, get_family(family).defaults.get("num_attention_heads", 1))
    if "n_embd" in sizes:
        file["n_embd"] = 16 * get_family(family).defaults["n_head"]
    if family in ("ministral", "mixtral"):  # whose modules fail without
        file["head_dim"] = 16
    spec = spec_from_hf(file)
    assert spec.config is not None, spec.no_config
    same_layer(spec.config, their_layer(theirs(file)))


@pytest.mark.parametrize("name", [n for n in list_models() if get_model(n).config is not None and ENTRIES[n]["family"]])
def test_a_registered_models_layer_is_the_one_that_transformers_builds_from_its_values(name):
    entry, spec = ENTRIES[name], get_model(name)
    family = "deepseek_v3" if entry["family"] == "kimi_k2" else entry["family"]
    one = {"num_hidden_layers": 1, "vocab_size": 8, "first_k_dense_replace": 1, "pad_token_id": None}
    values = {
        key: value for key, value in entry["values"].items() if not key.startswith(("params_", "rope_theta_local"))
    }
    if "linear_attention" in entry["layers"] or "sliding_attention" in entry["layers"]:
        one["layer_types"] = ["indexed_attention" if "index_topk" in values else "full_attention"]
    if family == "longcat_flash":
        one["num_layers"] = one.pop("num_hidden_layers")
        del values["num_hidden_layers"]
    if family == "mistral4":  # the width that its module rotates is in no other place
        values["rope_scaling"] = values["rope_scaling"] | {"partial_rotary_factor": 0.5}
    if family == "falcon":
        groups = values.pop("num_key_value_heads")
        values |= {"num_kv_heads": groups, "new_decoder_architecture": groups > 1}
        del values["head_dim"]
    file = {**values, **one, "model_type": family}
    same_layer(spec.config, their_layer(theirs(file)))
    if family in loadable_families():
        assert config_from_hf({**entry["values"], "model_type": entry["family"]}) == spec.config


def test_what_the_registry_does_not_describe_has_its_reason():
    silent = {name: get_model(name).no_config for name in list_models() if get_model(name).config is None}
    assert set(silent) == {
        "mistral-large-3-675b",  # not published
        "deepseek-v4-flash",  # one vector is key and value
        "deepseek-v4-pro",
        "llama-4-maverick",  # its layers with full attention do not rotate
        "qwen3-next-80b-a3b",  # rotates a quarter of each head, and gates
        "qwen3.5-397b-a17b",
        "minimax-m2.5",  # rotates half of each head
        "mimo-v2-flash",  # keys and values of different widths
    }
    assert all(silent.values())
    assert all(get_model(name).no_config is None for name in set(list_models()) - set(silent))


def test_a_layer_is_described_where_the_issue_was_raised():
    """Values by hand: MiniCPM3's published file, Kimi's report (no rotation), DeepSeek's inference/model.py."""
    minicpm = get_model("minicpm3-4b").config
    assert (minicpm.rope_theta, minicpm.rope_scaling.factor, len(minicpm.rope_scaling.short_factor)) == (
        10000.0,
        1.0,
        16,
    )
    assert not minicpm.rope_interleave and minicpm.v_head_dim == 64
    assert get_model("kimi-linear-48b-a3b").config.rope_theta is get_model("kimi-k3").config.rope_theta is None
    v32 = get_model("deepseek-v3.2-exp").config
    assert (v32.rope_theta, v32.rope_scaling.factor, v32.rope_scaling.mscale_all_dim) == (10000.0, 40.0, 1.0)
    assert get_model("youtu-llm-2b").config.rope_theta == 10000.0
    longcat = get_model("longcat-flash-chat").config
    assert longcat.mla_scale_q_lora and longcat.mla_scale_kv_lora and longcat.rope_theta == 1e7
    llama = spec_from_hf({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "attention_bias": True})
    assert isinstance(llama.config, GQAConfig) and llama.config.qkv_bias and llama.config.o_bias
