"""Families whose numbers follow from the file in a way of their own: as transformers 5.23, or their makers, read it."""

from collections.abc import Callable
from typing import Any

from mla_edu.hf.dimensions import Dimensions, check
from mla_edu.hf.show import shown


def _falcon(dims: Dimensions) -> dict[str, Any]:
    return {"num_key_value_heads": 1} if dims.multi_query and not dims.new_decoder_architecture else {}


def _qwen(dims: Dimensions) -> dict[str, Any]:
    """A window that is switched off counts as none, whatever the file lists."""
    return {"sliding_window": None} if dims.use_sliding_window is False else {}


def _gpt_bigcode(dims: Dimensions) -> dict[str, Any]:
    return {"num_key_value_heads": 1 if dims.multi_query else dims.num_attention_heads}


def _zamba2(dims: Dimensions) -> dict[str, Any]:
    """Attention over the concatenation with the embeddings."""
    return {"head_dim": 2 * dims.need("hidden_size") // dims.need("num_attention_heads")}


def _mimo(dims: Dimensions) -> dict[str, Any]:
    """Local layers have twice the heads; ``sliding_window_size`` does not count the query itself."""
    found: dict[str, Any] = {}
    if dims.swa_num_key_value_heads is None:
        found["swa_num_key_value_heads"] = 2 * dims.need("num_key_value_heads")
    if dims.sliding_window_size:
        found["sliding_window"] = dims.sliding_window_size + 1
    return found


def _gemma4(dims: Dimensions) -> dict[str, Any]:
    """The plain names are those of the local layers; the global ones stand in one of two places."""
    found: dict[str, Any] = {"swa_num_key_value_heads": dims.num_key_value_heads, "swa_head_dim": dims.head_dim}
    if dims.per_layer_config:  # as transformers saves it: the same entry for every global layer
        entry = next(iter(dims.per_layer_config.values()))
        own = check({key: entry.get(key) for key in ("head_dim", "num_key_value_heads")}, "gemma4_text")
        return found | own.model_dump(exclude_none=True)
    found["head_dim"] = dims.global_head_dim or 512
    if dims.attention_k_eq_v and dims.num_global_key_value_heads:
        found["num_key_value_heads"] = dims.num_global_key_value_heads
    return found


def _chatglm(dims: Dimensions) -> dict[str, Any]:
    groups = dims.need("multi_query_group_num") if dims.multi_query_attention else dims.need("num_attention_heads")
    return {"num_key_value_heads": groups, "head_dim": dims.kv_channels or dims.head_dim}


def _refined_web(dims: Dimensions) -> dict[str, Any]:
    """Falcon as first published: its heads of keys and values by number, or one for all."""
    if dims.n_head_kv is None and dims.multi_query is None:
        raise ValueError("n_head_kv is None; expected a positive number, or multi_query beside it")
    return {"num_key_value_heads": dims.n_head_kv or (1 if dims.multi_query else dims.num_attention_heads)}


def _blocks(dims: Dimensions) -> dict[str, Any]:
    """Nemotron's search: each layer has its own number of query heads for a key/value head, or no attention."""
    heads, found = dims.need("num_attention_heads"), []
    for block in dims.block_configs or ():
        attention = block.get("attention")
        if not isinstance(attention, dict):
            raise ValueError(f"block_configs has attention {shown(attention)}; expected a JSON object")
        if attention.get("no_op") or attention.get("replace_with_linear"):
            continue
        group = attention.get("n_heads_in_group")
        if isinstance(group, bool) or not isinstance(group, int) or group < 1 or heads % group:
            raise ValueError(f"n_heads_in_group is {shown(group)}; expected a divisor of num_attention_heads, {heads}")
        found.append(heads // group)
    return {"heads_of_layers": found}


def _ouro(dims: Dimensions) -> dict[str, Any]:
    """Every pass through the layers has keys and values of its own."""
    return {"num_hidden_layers": dims.need("num_hidden_layers") * dims.need("total_ut_steps")}


def _hrm(dims: Dimensions) -> dict[str, Any]:
    """As published, the layers of one stack; as transformers saves it, a cache for each pass through each stack."""
    if dims.num_layers_per_stack:
        return {}
    passes = dims.need("H_cycles") * (dims.need("L_cycles") + 1)
    return {"num_hidden_layers": dims.need("num_hidden_layers") * passes}


def _bailing(dims: Dimensions) -> dict[str, Any]:
    """The linear layers have the heads of the others; ``head_dim`` is theirs as published."""
    width = dims.linear_head_dim or dims.need("head_dim")
    return {"linear_num_heads": dims.need("num_attention_heads"), "linear_head_dim": width}


def _olmo_hybrid(dims: Dimensions) -> dict[str, Any]:
    heads = dims.linear_num_key_heads or dims.need("num_attention_heads")
    key = dims.linear_key_head_dim or int(0.75 * dims.need("hidden_size") / heads)
    return {
        "linear_num_key_heads": heads,
        "linear_num_value_heads": dims.linear_num_value_heads or dims.need("num_attention_heads"),
        "linear_key_head_dim": key,
        "linear_value_head_dim": dims.linear_value_head_dim or 2 * key,
    }


def _hy_v4(dims: Dimensions) -> dict[str, Any]:
    """The first layer has an indexer, and each fourth after it; no other list is read."""
    if dims.indexer_types:
        return {}
    return {"index_topk_freq": 4, "index_skip_topk_offset": 2, "index_topk_pattern": None}


def _dots3(dims: Dimensions) -> dict[str, Any]:
    """Local layers have latents of their own; their widths stand in one of two places."""
    window = dims.sliding_window or dims.sliding_window_size or 512
    if dims.per_layer_config == {}:
        raise ValueError("per_layer_config is {}; expected an entry for each local layer, or no per_layer_config")
    if dims.per_layer_config:  # as transformers saves it: the same entry for every local layer
        entry = next(iter(dims.per_layer_config.values()))
        parts = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")
        said = {key: getattr(dims, key) if entry.get(key) is None else entry[key] for key in parts}
        own = check(said | {"head_dim": entry.get("head_dim")}, "dots3_note_text")
        plain, rotated, width = own.need("qk_nope_head_dim"), own.need("qk_rope_head_dim"), own.head_dim
        if width is not None and width != plain + rotated:
            parts_sum = f"qk_nope_head_dim + qk_rope_head_dim, {plain} + {rotated}"
            raise ValueError(f"head_dim of per_layer_config is {width}; expected {parts_sum}")
        return {"sliding_window": window, "swa_kv_lora_rank": own.kv_lora_rank, "swa_qk_rope_head_dim": rotated}
    latent, rotary = dims.swa_kv_lora_rank or 1024, dims.swa_qk_rope_head_dim
    if rotary is None and (dims.swa_head_dim or dims.swa_qk_nope_head_dim):
        rotary = max((dims.swa_head_dim or 256) - (dims.swa_qk_nope_head_dim or 192), 0)
    rotary = 64 if rotary is None else rotary
    return {"sliding_window": window, "swa_kv_lora_rank": latent, "swa_qk_rope_head_dim": rotary}


def _modernbert(dims: Dimensions) -> dict[str, Any]:
    return {"sliding_window": dims.need("local_attention") // 2}


def _step3p5(dims: Dimensions) -> dict[str, Any]:
    """The list goes on to the layers for multi-token prediction."""
    return {"layer_types": dims.layer_types and dims.layer_types[: dims.need("num_hidden_layers")]}


SPECIAL: dict[str, Callable[[Dimensions], dict[str, Any]]] = {
    "falcon": _falcon,
    "gpt_bigcode": _gpt_bigcode,
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), _qwen),
    "zamba2": _zamba2,
    "mimo_v2_flash": _mimo,
    "gemma4_text": _gemma4,
    "gemma4_unified_text": _gemma4,
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text"), _qwen),
    "chatglm": _chatglm,
    "qwen": lambda dims: {"head_dim": dims.kv_channels or dims.head_dim},
    **dict.fromkeys(("RefinedWeb", "RefinedWebModel"), _refined_web),
    "phi-msft": lambda dims: {"num_key_value_heads": dims.n_head_kv or dims.num_attention_heads},
    "nemotron-nas": _blocks,
    "ouro": _ouro,
    "hrm_text": _hrm,
    "bailing_hybrid": _bailing,
    "olmo_hybrid": _olmo_hybrid,
    "minimax": lambda dims: {"lightning_heads": dims.num_attention_heads},
    "zamba": lambda dims: {"head_dim": dims.attention_head_dim or _zamba2(dims)["head_dim"]},
    "hy_v4": _hy_v4,
    **dict.fromkeys(("inkling_text", "inkling2_text"), lambda dims: {"sliding_window": dims.sliding_window_size}),
    "dots3_note_text": _dots3,
    "modernbert-decoder": _modernbert,
    "step3p5": _step3p5,
}
