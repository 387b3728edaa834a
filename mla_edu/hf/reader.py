"""From any ``config.json`` to a ``ModelSpec``: read as transformers 5.23 reads it, or refused."""

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mla_edu.config import read_hf_config
from mla_edu.hf.layer_config import attention_config
from mla_edu.hf.layer_types import layer_types
from mla_edu.hf.layout import NO_ATTENTION, WINDOW_OF, cache_groups, state_elements
from mla_edu.hf.spec import ModelSpec
from mla_edu.validation import load_yaml

# One name for each number; families before about 2023 have their own.
ALIASES = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "hidden_size": ("n_embd", "d_model"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "attention_heads"),
    "num_key_value_heads": ("num_kv_heads",),
    "max_position_embeddings": ("n_positions", "max_seq_len", "model_max_length"),
    "linear_conv_kernel_dim": ("short_conv_kernel_size",),
    "mamba_n_heads": ("mamba_num_heads", "n_mamba_heads"),
    "mamba_d_head": ("mamba_head_dim",),
    "mamba_d_state": ("ssm_state_size",),
    "mamba_n_groups": ("n_groups", "mamba_ngroups"),
    "mamba_d_conv": ("conv_kernel",),
}
WIDTHS = {"num_key_value_heads", "kv_lora_rank", "v_head_dim", "swa_num_key_value_heads", "index_head_dim"}
SAME_AS = {"kimi_k2": "deepseek_v3"}  # remote code with the same attention layer
# In the file of a family that is not in families.yaml, a name with one of these parts means a cache that is not known.
SIGNS = (
    *("window", "chunk", "linear", "mamba", "ssm", "conv", "index", "compress", "shared_layers", "pattern", "interval"),
    *(
        "layer_types",
        "block_type",
        "per_layer",
        "encoder",
        "recurrent",
        "delta",
        "kv_share",
        "swa",
        "global",
        "local_",
        "cross",
    ),
)


@functools.cache
def _families() -> dict[str, dict[str, Any]]:
    return load_yaml("mla_edu.hf", "families.yaml")


def spec_from_hf(source: str | Path | Mapping[str, Any]) -> ModelSpec:
    """The cache of a model that the registry has never seen, from its Hugging Face ``config.json``.

    Families of ``families.yaml`` are read as transformers 5.23 reads them, with its defaults where the file is silent.
    Any other is read only where the file itself says everything: multi-head or latent attention over all tokens in
    every layer, with the number of key/value heads spelt out. The number of parameters is not in such a file.

    Args:
        source: the file, a folder that holds it, or its contents.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the cache cannot be known from the file; says why.
    """
    hf = read_hf_config(source)
    name = hf["model_type"]
    if hf.get("is_encoder_decoder"):
        raise ValueError(f"{name!r} is an encoder-decoder; expected a decoder-only model")
    family = _families().get(SAME_AS.get(name, name))
    if family is None:
        _refuse_unknown_layout(hf)
    dims = _dimensions(hf, family)
    types = layer_types(hf, dims, family)
    layers = Counter(t for t in types if t not in NO_ATTENTION)
    if not layers or set(layers) <= {"linear_attention", "conv"}:
        raise ValueError(f"{name!r} has no attention layer; expected at least one, since nothing else caches tokens")
    index_layers = _index_layers(hf, dims, types)
    for layer_type in layers:
        window = WINDOW_OF.get(layer_type)
        if window:
            _require(dims, window, name)
    compressed = any("compressed" in layer_type for layer_type in layers)
    return ModelSpec(
        name=str(source) if isinstance(source, str | Path) else name,
        title=name,
        kind="csa" if compressed else _kind(dims),
        num_layers=len(types),
        max_position_embeddings=dims.get("max_position_embeddings"),
        config=attention_config(dims, layers),
        cache=cache_groups(dims, layers, index_layers),
        state_elements=state_elements(dims, layers, index_layers),
        status="config",
        where="the dict" if isinstance(source, Mapping) else str(source),
        why=_why(name, layers, family is not None),
    )


def _kind(dims: Mapping[str, Any]) -> str:
    if dims.get("kv_lora_rank"):
        return "mla"
    if dims["num_key_value_heads"] == dims["num_attention_heads"]:
        return "mha"
    return "mqa" if dims["num_key_value_heads"] == 1 else "gqa"


def _why(name: str, layers: Mapping[str, int], known: bool) -> str:
    parts = ", ".join(f"{count} {layer_type.replace('_', ' ')}" for layer_type, count in layers.items())
    reading = "as transformers 5.23 reads it" if known else "from the numbers that it spells out"
    return f"config.json of {name!r} read {reading}: {parts} layers."


def _require(dims: Mapping[str, Any], key: str, name: str) -> int:
    value = dims.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} is {value!r} in the config.json of {name!r}; expected a positive integer")
    return value


def _refuse_unknown_layout(hf: Mapping[str, Any]) -> None:
    name, harmless = hf["model_type"], set()
    if not (hf.get("sliding_window") and hf.get("use_sliding_window", True)):
        harmless |= {"sliding_window", "max_window_layers"}
    if set(hf.get("layer_types") or ()) == {"full_attention"}:
        harmless |= {"layer_types"}
    for key, value in hf.items():
        telling = value not in (None, False, [], {}) and key not in harmless and not key.startswith("mlp_")
        if telling and any(sign in key for sign in SIGNS):
            raise ValueError(f"model_type {name!r} is not known, and {key} = {str(value)[:40]} may change its cache")
    if not hf.get("kv_lora_rank") and not (hf.get("num_key_value_heads") or hf.get("num_kv_heads")):
        raise ValueError(f"model_type {name!r} is not known, and its config.json gives no num_key_value_heads")


def _dimensions(hf: Mapping[str, Any], family: Mapping[str, Any] | None) -> dict[str, Any]:
    """The file's numbers over the family's defaults, under one name each, with what follows from them filled in."""
    name = hf["model_type"]
    dims = {key: value for key, value in hf.items() if value is not None}
    dims |= {k: v for k, v in (family or {"defaults": {}})["defaults"].items() if k not in hf}
    for key, others in ALIASES.items():
        for other in others:
            if other in dims:
                dims.setdefault(key, dims[other])
    if name == "longcat_flash":  # two attention layers in each block
        dims["num_hidden_layers"] = 2 * _require(dims, "num_layers", name)
    for pattern in ("layer_types", "layers_block_type", "hybrid_override_pattern"):
        if pattern in dims:
            dims.setdefault("num_hidden_layers", len(dims[pattern]))
    _require(dims, "num_hidden_layers", name)
    hidden_size, heads = (_require(dims, key, name) for key in ("hidden_size", "num_attention_heads"))
    if not dims.get("num_key_value_heads"):
        dims["num_key_value_heads"] = heads
    if name == "falcon" and dims["multi_query"] and not dims["new_decoder_architecture"]:
        dims["num_key_value_heads"] = 1
    if name == "gpt_bigcode":
        dims["num_key_value_heads"] = 1 if dims["multi_query"] else heads
    if name == "zamba2":  # attention over the concatenation with the embeddings
        dims["head_dim"] = 2 * hidden_size // heads
    if dims.get("kv_lora_rank"):
        if not isinstance(dims.get("qk_rope_head_dim"), int):
            raise ValueError(f"the config.json of {name!r} has kv_lora_rank; expected qk_rope_head_dim beside it")
        dims.setdefault("v_head_dim", hidden_size // heads)
    else:
        dims["head_dim"] = _require(dims, "head_dim", name) if dims.get("head_dim") else hidden_size // heads
    if name == "mimo_v2_flash":  # local layers have twice the heads
        dims.setdefault("swa_num_key_value_heads", 2 * dims["num_key_value_heads"])
        if dims.get("sliding_window_size"):  # does not count the query itself
            dims["sliding_window"] = dims["sliding_window_size"] + 1
    if name == "gemma4_text":
        _gemma4_dimensions(dims)
    _linear_dimensions(dims)
    for key in WIDTHS & set(dims):
        _require(dims, key, name)
    return dims


def _gemma4_dimensions(dims: dict[str, Any]) -> None:
    """The plain names are those of the local layers; the global ones stand in one of two places."""
    dims |= {"swa_num_key_value_heads": dims["num_key_value_heads"], "swa_head_dim": dims["head_dim"]}
    if "per_layer_config" in dims:  # as transformers saves it: the same entry for every global layer
        dims |= next(iter(dims["per_layer_config"].values()))
        return
    dims["head_dim"] = dims.get("global_head_dim", 512)
    if dims.get("attention_k_eq_v"):
        dims["num_key_value_heads"] = dims.get("num_global_key_value_heads", dims["num_key_value_heads"])


def _linear_dimensions(dims: dict[str, Any]) -> None:
    """Dimensions of recurrent layers that stand in a dictionary of their own, or follow from others."""
    kda = dims.get("linear_attn_config") or {}
    ours = {"head_dim": "linear_head_dim", "num_heads": "linear_num_heads"}
    ours["short_conv_kernel_size"] = "linear_conv_kernel_dim"
    dims |= {ours[key]: value for key, value in kda.items() if key in ours}
    if "mamba_n_heads" in dims and dims.get("mamba_d_head", "auto") == "auto":
        inner = dims.get("mamba_d_ssm") or dims["mamba_expand"] * dims["hidden_size"]
        dims["mamba_d_head"] = inner // dims["mamba_n_heads"]


def _index_layers(hf: Mapping[str, Any], dims: Mapping[str, Any], types: list[str]) -> int:
    """Layers with an indexer of their own; ``"shared"`` ones reuse an earlier layer's choice."""
    owners = hf.get("indexer_types")
    if owners is None and (pattern := hf.get("index_topk_pattern")) is not None:
        owners = ["full" if letter in ("F", "full") else "shared" for letter in pattern]
    if owners is None:
        every, offset = max(hf.get("index_topk_freq", 1), 1), hf.get("index_skip_topk_offset", 2)
        owners = ["full" if max(i - offset + 1, 0) % every == 0 else "shared" for i in range(len(types))]
    if len(owners) != len(types):
        raise ValueError(f"indexer_types has {len(owners)} entries; expected num_hidden_layers, {len(types)}")
    return sum(t == "indexed_attention" and owner == "full" for t, owner in zip(types, owners, strict=True))
