"""The type of each layer of a ``config.json``, where the file lists them and where they follow from a rule.

A rule takes the file, its dimensions and its family's entry of ``families.yaml``, and returns one type per layer. The
rules are those of transformers 5.23's config classes; its names for the types are kept.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mla_edu.hf.layout import LAYER_TYPES

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
OLD_NAMES = {
    "mamba": LINEAR,
    "attention": FULL,
    "deepseek_sparse_attention": "indexed_attention",
}
Rule = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], list[str]]


def layer_types(hf: Mapping[str, Any], dims: Mapping[str, Any], family: Mapping[str, Any] | None) -> list[str]:
    """One type per layer.

    Raises:
        ValueError: the file lists a type that is not known or too few of them, or does not say which layers attend.
    """
    name, count = hf["model_type"], dims["num_hidden_layers"]
    rule = family["rule"] if family else "full"
    listed = hf.get("layer_types") or hf.get("layers_block_type")
    if listed and rule not in ("full", "window"):
        types = [OLD_NAMES.get(layer_type, layer_type) for layer_type in listed]
        if family.get("rest") == LINEAR and "index_head_dim" in dims:
            types = ["indexed_attention" if layer_type == FULL else layer_type for layer_type in types]
    else:
        types = RULES[rule](hf, dims, family)
    for layer_type in types:
        if layer_type not in LAYER_TYPES:
            raise ValueError(f"layer_types of {name!r} has {layer_type!r}; expected one of {', '.join(LAYER_TYPES)}")
    if len(types) != count:
        raise ValueError(f"layer_types of {name!r} has {len(types)} entries; expected num_hidden_layers, {count}")
    shared = dims.get("num_kv_shared_layers", 0)  # the last layers read an earlier layer's keys and values
    return types[: count - shared] + ["mlp"] * shared


def _full(hf, dims, family):
    listed = set(hf.get("layer_types") or [FULL])
    if (hf.get("sliding_window") and hf.get("use_sliding_window", True)) or listed != {FULL}:
        raise ValueError(
            f"the config.json of {hf['model_type']!r} has a sliding window or several layer types; "
            "expected neither, since that family's layers see every token"
        )
    return [FULL] * dims["num_hidden_layers"]


def _window(hf, dims, family):
    """Every layer slides, if there is a window and it is in use."""
    windowed = dims.get("sliding_window") and dims.get("use_sliding_window", True)
    listed = hf.get("layer_types")
    return list(listed) if listed else [SLIDING if windowed else FULL] * dims["num_hidden_layers"]


def _last_layers(hf, dims, family):
    """Layers from ``max_window_layers`` on slide, where the window is in use (Qwen2)."""
    windowed = dims.get("sliding_window") and dims["use_sliding_window"]
    first = dims["max_window_layers"] if windowed else dims["num_hidden_layers"]
    return [SLIDING if i >= first else FULL for i in range(dims["num_hidden_layers"])]


def _alternate(hf, dims, family):
    """Every other layer below ``max_window_layers`` slides, where the window is in use (Qwen2-MoE)."""
    first_full = dims["max_window_layers"] if dims["use_sliding_window"] else 0
    return [SLIDING if i % 2 == 0 and i < first_full else FULL for i in range(dims["num_hidden_layers"])]


def _every(hf, dims, family):
    """One layer in ``n`` attends to everything, by default the last of each ``n``."""
    n = hf.get(family.get("key"), family["n"])
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"{family['key']} of {hf['model_type']!r} is {n!r}; expected a positive integer")
    full = "indexed_attention" if "index_head_dim" in dims else FULL
    types = [full if i % n == family.get("at", n - 1) else family["rest"] for i in range(dims["num_hidden_layers"])]
    if hf["model_type"] == "gemma4_text":
        types[-1] = full
    return types


def _no_rope(hf, dims, family):
    """Layers with rotation are local (Llama-4); in SmolLM3 those without, where its window is in use."""
    count, every = dims["num_hidden_layers"], dims["no_rope_layer_interval"]
    has_rope = hf.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(count)]
    if hf["model_type"] == "smollm3":
        local = dims["use_sliding_window"] and dims.get("sliding_window")
        return [family["rest"] if local and not rope else FULL for rope in has_rope]
    return [family["rest"] if rope else FULL for rope in has_rope]


def _mimo(hf, dims, family):
    pattern = hf.get("hybrid_layer_pattern")
    if pattern is None:
        pattern = [int(i != 0 and (i + 1) % 6 != 0) for i in range(dims["num_hidden_layers"])]
    return [SLIDING if local else FULL for local in pattern]


def _kda(hf, dims, family):
    """Kimi's lists count from 1."""
    full = (hf.get("linear_attn_config") or {}).get("full_attn_layers")
    if not full:
        raise ValueError(f"full_attn_layers of {hf['model_type']!r} is {full}; expected a list of layers, from 1")
    return [FULL if i + 1 in full else LINEAR for i in range(dims["num_hidden_layers"])]


def _listed(hf, dims, family):
    raise ValueError(f"the config.json of {hf['model_type']!r} has no layer_types; expected them, one per layer")


def _compressed(hf, dims, family):
    names = {0: SLIDING, 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    ratios = hf.get("compress_ratios")
    if not ratios or not set(ratios) <= set(names):
        raise ValueError(f"compress_ratios of {hf['model_type']!r} is {ratios}; expected a list of 0, 4 and 128")
    return [names[ratio] for ratio in ratios[: dims["num_hidden_layers"]]]  # one more for multi-token prediction


RULES: dict[str, Rule] = {
    "full": _full,
    "window": _window,
    "last_layers": _last_layers,
    "alternate": _alternate,
    "every": _every,
    "no_rope": _no_rope,
    "mimo": _mimo,
    "kda": _kda,
    "listed": _listed,
    "compressed": _compressed,
    "indexed": lambda hf, dims, family: ["indexed_attention"] * dims["num_hidden_layers"],
    "all_hybrid": lambda hf, dims, family: ["hybrid"] * dims["num_hidden_layers"],
    "period": lambda hf, dims, family: [
        FULL if i % dims["attn_layer_period"] == dims["attn_layer_offset"] else LINEAR
        for i in range(dims["num_hidden_layers"])
    ],
    "indices": lambda hf, dims, family: [
        FULL if i in (hf.get("attn_layer_indices") or ()) else LINEAR for i in range(dims["num_hidden_layers"])
    ],
    "full_idxs": lambda hf, dims, family: [
        FULL if i in hf.get("full_attn_idxs", range(dims["num_hidden_layers"])) else "conv"
        for i in range(dims["num_hidden_layers"])
    ],
    "pattern": lambda hf, dims, family: [
        {"M": LINEAR, "E": "moe", "*": FULL, "-": "mlp"}.get(letter, letter)
        for letter in hf.get("hybrid_override_pattern", "")
    ],
}
