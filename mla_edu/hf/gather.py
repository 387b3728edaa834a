"""From a file to ``Dimensions``: its numbers over those of its family, with what follows from them filled in."""

from collections.abc import Mapping
from typing import Any

from mla_edu.hf.dimensions import ALIASES, Dimensions, check, complete
from mla_edu.hf.families import Family
from mla_edu.hf.show import shown
from mla_edu.hf.special import SPECIAL

# Sizes that every model has, and lists that tell them as well.
SIZES: dict[str, set[str]] = {
    "num_hidden_layers": {"layer_types", "layers_block_type", "hybrid_override_pattern"},
    "hidden_size": set(),
}
# What a null leaves open is computed from the other numbers. For other numbers of the family, null is refused.
NULLABLE = {"num_key_value_heads", "head_dim", "q_lora_rank", "sliding_window", "layer_types"}


def read_dimensions(hf: Mapping[str, Any], family: Family, name: str) -> Dimensions:
    """The numbers of a file over those of its family, with what follows from them filled in.

    Args:
        hf: the file.
        family: ``UNKNOWN`` where transformers has none of that name: then every name of a number is read.
        name: its ``model_type``.

    Raises:
        ValueError: a number is missing, null, of another type, or out of range.
    """
    _check_given(hf, family, name)
    values = _own_values(hf, family)
    values |= _nested(check(values, name), name)
    if family.per_block > 1:
        values["num_hidden_layers"] = _attention_layers(values, family, name)
    dims = check(values, name)
    if name in SPECIAL:
        update = SPECIAL[name](complete(dims, family, name))
        dims = check(dims.model_dump(exclude_none=True) | update, name)
    dims = complete(dims, family, name)
    heads, groups = dims.need("num_attention_heads"), dims.need("num_key_value_heads")
    if heads % groups and not dims.is_mla:
        raise ValueError(f"num_key_value_heads is {groups}; expected a divisor of num_attention_heads, {heads}")
    return dims


def _check_given(hf: Mapping[str, Any], family: Family, name: str) -> None:
    """Refuse null where the family's class computes nothing for it, and a latent where it has none."""
    defined = {key for key, default in family.defaults.items() if default is not None}
    for key in [*(defined - NULLABLE), *family.never_null, *family.required]:
        if hf.get(key, None if key in family.required else "silent") is None:
            number = "an entry for each local layer" if key == "per_layer_config" else "a positive number"
            raise ValueError(f"{key} is None; expected {number}, as in every {name!r} model")
    if family.defaults and "kv_lora_rank" not in family.defaults and hf.get("kv_lora_rank") is not None:
        said = shown(hf["kv_lora_rank"])
        raise ValueError(f"kv_lora_rank is {said}; expected none in a {name!r} model, which has no MLA")


def _own_values(hf: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """What the file and the family say, without names of other families, which the family's class would overlook."""
    values = {**hf, **{key: value for key, value in family.defaults.items() if key not in hf}}
    if values.get("use_sliding_window") is False and values.get("sliding_window") == 0:  # as Qwen2-MoE is saved
        values["sliding_window"] = None
    strange: set[str] = set()
    if family.defaults:
        strange = {other for others in ALIASES.values() for other in others} - {*family.names, "layers_block_type"}
        width = "head_dim" if "kv_lora_rank" in family.defaults else "v_head_dim"
        strange |= {width, "num_kv_shared_layers", "index_head_dim"} - set(family.defaults)
        if width == "head_dim" and values.get("linear_head_dim"):  # as transformers saves it, then the rotary key's
            strange.add(width)
    for key in unsaid_sizes(hf, family):
        values[key] = dict(zip(SIZES, family.sizes or (), strict=True))[key]
    return {key: value for key, value in values.items() if value is not None and key not in strange}


def unsaid_sizes(hf: Mapping[str, Any], family: Family) -> list[str]:
    """Which of the family's sizes stand in for what the file does not say."""
    if family.sizes is None:
        return []
    return [key for key, others in SIZES.items() if not {key, *ALIASES[key], *others} & set(hf)]


def _nested(dims: Dimensions, name: str) -> dict[str, Any]:
    """Numbers that stand in a dictionary of their own."""
    ours = {"head_dim": "linear_head_dim", "num_heads": "linear_num_heads"}
    ours["short_conv_kernel_size"] = "linear_conv_kernel_dim"
    found = {ours[key]: value for key, value in (dims.linear_attn_config or {}).items() if key in ours}
    if name == "dbrx":
        found["num_key_value_heads"] = (dims.attn_config or {}).get("kv_n_heads", 1)
    if name == "minimax_m3_vl_text" and "sparse_index_dim" in (sparse := dims.sparse_attention_config or {}):
        found["index_head_dim"] = sparse["sparse_index_dim"]
    if name == "jetmoe":  # each expert has its own queries
        queries = dims.need("num_key_value_heads") * dims.need("num_experts_per_tok")
        found |= {"num_attention_heads": queries, "head_dim": dims.need("kv_channels")}
    return found


def _attention_layers(values: Mapping[str, Any], family: Family, name: str) -> int:
    """The layers of a family whose file counts blocks, or layers, or both."""
    said = check(values, name).num_hidden_layers
    if family.names[0] not in values and said is not None and said % family.per_block == 0:
        return said
    blocks = check({key: value for key, value in values.items() if key != "num_hidden_layers"}, name).num_hidden_layers
    if blocks is None:
        raise ValueError(f"{family.names[0]} is None; expected a positive number, as in every {name!r} model")
    if values.get("num_hidden_layers", family.per_block * blocks) != family.per_block * blocks:
        each = f"{family.per_block} in each of {blocks} blocks"
        raise ValueError(f"num_hidden_layers is {said}; expected {family.per_block * blocks}, {each}")
    return family.per_block * blocks


def without_mla(hf: Mapping[str, Any], family: Family) -> tuple[dict[str, Any], Family]:
    """A model of a family with MLA that has multi-head attention in its place (DeepSeek-VL2-Tiny, DeepSeek-OCR)."""
    parts = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "head_dim")
    defaults = {key: value for key, value in family.defaults.items() if key not in parts}
    plain = {"defaults": defaults, "never_null": (), "attention": None, "loads": False}
    return {key: value for key, value in hf.items() if key not in parts}, family.model_copy(update=plain)
