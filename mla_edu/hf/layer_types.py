"""The type of each layer of a ``config.json``, where the file lists them and where they follow from a rule.

A rule takes the file's dimensions, its family and the family's name, and returns one type per layer. The rules are
those of transformers 5.23's config classes; its names for the types are kept.
"""

from collections.abc import Callable

from mla_edu.hf.dimensions import Dimensions
from mla_edu.hf.families import Family
from mla_edu.hf.layout import LAYER_TYPES
from mla_edu.hf.show import shown

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
INDEXED = "indexed_attention"
OLD_NAMES = {
    "mamba": LINEAR,
    "attention": FULL,
    "deepseek_sparse_attention": "indexed_attention",
    "minimax_m3_sparse": "indexed_attention",
}
Rule = Callable[[Dimensions, Family, str], list[str]]


def layer_types(dims: Dimensions, family: Family, name: str) -> list[str]:
    """One type per layer.

    Raises:
        ValueError: the file lists a type that is not known or too few of them, or does not say which layers attend.
    """
    count = dims.need("num_hidden_layers")
    if dims.layer_types and family.rule not in ("full", "window", "loops", "blocks"):
        types = [OLD_NAMES.get(layer_type, layer_type) for layer_type in dims.layer_types]
        if family.rest == LINEAR and dims.index_head_dim:
            types = [INDEXED if layer_type == FULL else layer_type for layer_type in types]
        if name == "dots3_note_text" and not dims.per_layer_config:  # as published
            full = FULL if dims.use_dsa is False else INDEXED
            types = [full if layer_type in (FULL, INDEXED) else layer_type for layer_type in types]
    else:
        types = RULES[family.rule](dims, family, name)
    for layer_type in types:
        if layer_type not in LAYER_TYPES:
            known = ", ".join(LAYER_TYPES)
            raise ValueError(f"layer_types of {name!r} has {shown(layer_type)}; expected one of {known}")
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
        raise ValueError(f"indexer_types is {shown(owners)}; expected a list of 'full' and 'shared'")
    return sum(t == INDEXED and owner == "full" for t, owner in zip(types, owners, strict=True))


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
    windowed = dims.sliding_window and dims.use_sliding_window is not False
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
        raise ValueError(f"{family.key} of {name!r} is {shown(n)}; expected a positive integer")
    full = INDEXED if dims.index_head_dim else FULL
    place = n - 1 if family.at is None else family.at
    types = [full if i % n == place else family.rest for i in range(dims.need("num_hidden_layers"))]
    if name in ("gemma4_text", "gemma4_unified_text", "beam"):
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
            f"linear_attn_config has full_attn_layers {shown(full)} and kda_layers {shown(linear)}; "
            f"expected every layer from 1 to {every[-1]} in one of them"
        )
    return [FULL if i in full else LINEAR for i in every]


def _listed(dims: Dimensions, family: Family, name: str) -> list[str]:
    raise ValueError(f"the config.json of {name!r} has no layer_types; expected them, one per layer")


def _compressed(dims: Dimensions, family: Family, name: str) -> list[str]:
    names = {0: SLIDING, 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    ratios = dims.compress_ratios
    if not ratios or not set(ratios) <= set(names):
        raise ValueError(f"compress_ratios of {name!r} is {shown(ratios)}; expected a list of 0, 4 and 128")
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


def _prefixed(dims: Dimensions, family: Family, name: str) -> list[str]:
    """The first dense layers count for themselves (Cohere2-MoE)."""
    first, rest = dims.first_k_dense_replace or 0, dims.need("num_hidden_layers") - (dims.first_k_dense_replace or 0)
    if not isinstance(dims.sliding_window_pattern, int):
        raise ValueError(f"sliding_window_pattern is {shown(dims.sliding_window_pattern)}; expected a positive integer")
    runs = ((first, dims.need("prefix_dense_sliding_window_pattern")), (rest, dims.sliding_window_pattern))
    return [SLIDING if (i + 1) % every else FULL for count, every in runs for i in range(count)]


def _flint(dims: Dimensions, family: Family, name: str) -> list[str]:
    last = dims.need("num_hidden_layers") - 1
    return [FULL if i < 2 or i % 4 == 1 or i == last else SLIDING for i in range(last + 1)]


def _dots3(dims: Dimensions, family: Family, name: str) -> list[str]:
    full = FULL if dims.use_dsa is False else INDEXED
    every = dims.use_sliding_window is False
    return [full if every or i < 2 or i % 4 == 1 else SLIDING for i in range(dims.need("num_hidden_layers"))]


def _inkling(dims: Dimensions, family: Family, name: str) -> list[str]:
    count, local = dims.need("num_hidden_layers"), dims.local_layer_ids
    local = [i for i in range(count) if (i + 1) % 6] if local is None or name != "inkling_text" else local
    return ["hybrid_sliding" if i in local else "hybrid" for i in range(count)]


def _lfm3(dims: Dimensions, family: Family, name: str) -> list[str]:
    kinds = ["conv" if i == 0 else SLIDING if i % 4 == 0 else "conv" for i in range(dims.need("num_hidden_layers"))]
    return [FULL if i % 4 == 2 else kind for i, kind in enumerate(kinds)]


def _zamba(dims: Dimensions, family: Family, name: str) -> list[str]:
    period, offset = dims.need("attn_layer_period"), dims.need("attn_layer_offset")
    rest = ["hybrid" if i % period == offset else LINEAR for i in range(dims.need("num_hidden_layers") - 3)]
    return [LINEAR, LINEAR, "hybrid", *rest]


def _minimax_m3(dims: Dimensions, family: Family, name: str) -> list[str]:
    sparse = (dims.sparse_attention_config or {}).get("sparse_attention_freq")
    if sparse is None:
        return _all(FULL)(dims, family, name)
    if not isinstance(sparse, list):
        raise ValueError(f"sparse_attention_freq is {shown(sparse)}; expected a list")
    return [INDEXED if each else FULL for each in sparse]


def _blocks(dims: Dimensions, family: Family, name: str) -> list[str]:
    """Layers without attention keep nothing, wherever they stand."""
    count, attending = dims.need("num_hidden_layers"), len(dims.heads_of_layers or ())
    if len(dims.block_configs or ()) != count:
        given = len(dims.block_configs or ())
        raise ValueError(f"block_configs has {given} entries; expected num_hidden_layers, {count}")
    return [FULL] * attending + ["mlp"] * (count - attending)


def _loops(dims: Dimensions, family: Family, name: str) -> list[str]:
    """All layers see every token, in each pass."""
    _full(dims, family, name)
    return [FULL] * dims.need("num_hidden_layers")


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
    "indexed": _all(INDEXED),
    "all_hybrid": _all("hybrid"),
    "period": _period,
    "indices": _indices,
    "full_idxs": _full_idxs,
    "pattern": _pattern,
    "open": _all(FULL),
    "prefixed": _prefixed,
    "flint": _flint,
    "dots3": _dots3,
    "inkling": _inkling,
    "lfm3": _lfm3,
    "zamba": _zamba,
    "minimax_m3": _minimax_m3,
    "blocks": _blocks,
    "loops": _loops,
}
