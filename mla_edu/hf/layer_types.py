"""The type of each layer of a ``config.json``, where the file lists them and where they follow from a rule.

A rule takes the file's dimensions, its family and the family's name, and returns one type per layer. The rules are
those of transformers 5.23's config classes; its names for the types are kept.
"""

from collections.abc import Callable

from mla_edu.hf.dimensions import Dimensions
from mla_edu.hf.families import Family
from mla_edu.hf.layout import LAYER_TYPES

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
OLD_NAMES = {
    "mamba": LINEAR,
    "attention": FULL,
    "deepseek_sparse_attention": "indexed_attention",
}
Rule = Callable[[Dimensions, Family, str], list[str]]


def layer_types(dims: Dimensions, family: Family, name: str) -> list[str]:
    """One type per layer.

    Raises:
        ValueError: the file lists a type that is not known or too few of them, or does not say which layers attend.
    """
    count = dims.need("num_hidden_layers")
    if dims.layer_types and family.rule not in ("full", "window"):
        types = [OLD_NAMES.get(layer_type, layer_type) for layer_type in dims.layer_types]
        if family.rest == LINEAR and dims.index_head_dim:
            types = ["indexed_attention" if layer_type == FULL else layer_type for layer_type in types]
    else:
        types = RULES[family.rule](dims, family, name)
    for layer_type in types:
        if layer_type not in LAYER_TYPES:
            raise ValueError(f"layer_types of {name!r} has {layer_type!r}; expected one of {', '.join(LAYER_TYPES)}")
    if len(types) != count:
        raise ValueError(f"layer_types of {name!r} has {len(types)} entries; expected num_hidden_layers, {count}")
    shared = dims.num_kv_shared_layers or 0  # the last layers read an earlier layer's keys and values
    if shared >= count:
        raise ValueError(f"num_kv_shared_layers is {shared}; expected less than num_hidden_layers, {count}")
    return types[: count - shared] + ["mlp"] * shared


def index_layers(dims: Dimensions, types: list[str]) -> int:
    """Layers with an indexer of their own; ``"shared"`` ones reuse an earlier layer's choice.

    Raises:
        ValueError: the file lists too few or too many of them, or another word.
    """
    owners = dims.indexer_types
    if owners is None and dims.index_topk_pattern is not None:
        owners = [{"F": "full", "S": "shared"}.get(word, word) for word in dims.index_topk_pattern]
    if owners is None:
        every = max(1 if dims.index_topk_freq is None else dims.index_topk_freq, 1)
        offset = 2 if dims.index_skip_topk_offset is None else dims.index_skip_topk_offset
        owners = ["full" if max(i - offset + 1, 0) % every == 0 else "shared" for i in range(len(types))]
    if len(owners) != len(types):
        raise ValueError(f"indexer_types has {len(owners)} entries; expected num_hidden_layers, {len(types)}")
    if not set(owners) <= {"full", "shared"}:
        raise ValueError(f"indexer_types is {owners}; expected a list of 'full' and 'shared'")
    return sum(t == "indexed_attention" and owner == "full" for t, owner in zip(types, owners, strict=True))


def _all(layer_type: str) -> Rule:
    return lambda dims, family, name: [layer_type] * dims.need("num_hidden_layers")


def _full(dims: Dimensions, family: Family, name: str) -> list[str]:
    windowed = dims.sliding_window and dims.use_sliding_window is not False
    if windowed or set(dims.layer_types or [FULL]) != {FULL}:
        raise ValueError(
            f"the config.json of {name!r} has a sliding window or several layer types; "
            "expected neither, since that family's layers see every token"
        )
    return [FULL] * (len(dims.layer_types) if dims.layer_types else dims.need("num_hidden_layers"))


def _window(dims: Dimensions, family: Family, name: str) -> list[str]:
    """Every layer slides, if there is a window and it is in use."""
    windowed = dims.sliding_window and dims.use_sliding_window is not False
    return dims.layer_types or [SLIDING if windowed else FULL] * dims.need("num_hidden_layers")


def _last_layers(dims: Dimensions, family: Family, name: str) -> list[str]:
    """Layers from ``max_window_layers`` on slide, where the window is in use (Qwen2)."""
    count = dims.need("num_hidden_layers")
    windowed = dims.sliding_window and dims.use_sliding_window
    first = dims.need("max_window_layers") if windowed else count
    return [SLIDING if i >= first else FULL for i in range(count)]


def _alternate(dims: Dimensions, family: Family, name: str) -> list[str]:
    """Every other layer below ``max_window_layers`` slides, where the window is in use (Qwen2-MoE)."""
    first_full = dims.need("max_window_layers") if dims.use_sliding_window else 0
    return [SLIDING if i % 2 == 0 and i < first_full else FULL for i in range(dims.need("num_hidden_layers"))]


def _every(dims: Dimensions, family: Family, name: str) -> list[str]:
    """One layer in ``n`` attends to everything, by default the last of each ``n``."""
    said = getattr(dims, family.key) if family.key else None
    n = family.n if said is None else said
    if not isinstance(n, int) or family.rest is None:
        raise ValueError(f"{family.key} of {name!r} is {n!r}; expected a positive integer")
    full = "indexed_attention" if dims.index_head_dim else FULL
    place = n - 1 if family.at is None else family.at
    types = [full if i % n == place else family.rest for i in range(dims.need("num_hidden_layers"))]
    if name == "gemma4_text":
        types[-1] = full
    return types


def _no_rope(dims: Dimensions, family: Family, name: str) -> list[str]:
    """Layers with rotation are local (Llama-4); in SmolLM3 those without, where its window is in use."""
    count, every = dims.need("num_hidden_layers"), dims.need("no_rope_layer_interval")
    has_rope = dims.no_rope_layers or [int((i + 1) % every != 0) for i in range(count)]
    rest = family.rest or FULL
    if name == "smollm3":
        local = dims.use_sliding_window and dims.sliding_window
        return [rest if local and not rope else FULL for rope in has_rope]
    return [rest if rope else FULL for rope in has_rope]


def _mimo(dims: Dimensions, family: Family, name: str) -> list[str]:
    pattern = dims.hybrid_layer_pattern
    if pattern is None:
        pattern = [int(i != 0 and (i + 1) % 6 != 0) for i in range(dims.need("num_hidden_layers"))]
    return [SLIDING if local else FULL for local in pattern]


def _kda(dims: Dimensions, family: Family, name: str) -> list[str]:
    """Kimi's lists count from 1, and name every layer once."""
    lists = dims.linear_attn_config or {}
    full, linear = lists.get("full_attn_layers"), lists.get("kda_layers")
    if full is None:
        raise ValueError(
            f"layer_types is missing; expected it, or linear_attn_config with full_attn_layers, in a {name!r} model"
        )
    every = list(range(1, dims.need("num_hidden_layers") + 1))
    if (
        not isinstance(full, list)
        or not isinstance(linear, list)
        or sorted(map(repr, full + linear)) != sorted(map(repr, every))
    ):
        raise ValueError(
            f"linear_attn_config has full_attn_layers {full!r} and kda_layers {linear!r}; "
            f"expected every layer from 1 to {every[-1]} in one of them"
        )
    return [FULL if i in full else LINEAR for i in every]


def _listed(dims: Dimensions, family: Family, name: str) -> list[str]:
    raise ValueError(f"the config.json of {name!r} has no layer_types; expected them, one per layer")


def _compressed(dims: Dimensions, family: Family, name: str) -> list[str]:
    names = {0: SLIDING, 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    ratios = dims.compress_ratios
    if not ratios or not set(ratios) <= set(names):
        raise ValueError(f"compress_ratios of {name!r} is {ratios}; expected a list of 0, 4 and 128")
    return [names[ratio] for ratio in ratios[: dims.need("num_hidden_layers")]]  # one more for multi-token prediction


def _period(dims: Dimensions, family: Family, name: str) -> list[str]:
    period, offset = dims.need("attn_layer_period"), dims.need("attn_layer_offset")
    return [FULL if i % period == offset else LINEAR for i in range(dims.need("num_hidden_layers"))]


def _indices(dims: Dimensions, family: Family, name: str) -> list[str]:
    return [FULL if i in (dims.attn_layer_indices or ()) else LINEAR for i in range(dims.need("num_hidden_layers"))]


def _full_idxs(dims: Dimensions, family: Family, name: str) -> list[str]:
    count = dims.need("num_hidden_layers")
    full = range(count) if dims.full_attn_idxs is None else dims.full_attn_idxs
    return [FULL if i in full else "conv" for i in range(count)]


def _pattern(dims: Dimensions, family: Family, name: str) -> list[str]:
    letters = {"M": LINEAR, "E": "moe", "*": FULL, "-": "mlp"}
    return [letters.get(letter, letter) for letter in dims.hybrid_override_pattern or ""]


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
    "indexed": _all("indexed_attention"),
    "all_hybrid": _all("hybrid"),
    "period": _period,
    "indices": _indices,
    "full_idxs": _full_idxs,
    "pattern": _pattern,
}
