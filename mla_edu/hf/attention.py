"""From a model's file to the configuration of one of its attention layers."""

from collections.abc import Mapping
from typing import Any

from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.hf.dimensions import Dimensions
from mla_edu.hf.families import AttentionFacts, Family
from mla_edu.hf.layout import COMPRESSED
from mla_edu.hf.rope import read_rope
from mla_edu.hf.show import shown


def attention_config(
    hf: Mapping[str, Any], dims: Dimensions, family: Family, layers: Mapping[str, int]
) -> GQAConfig | MLAConfig:
    """One attention layer of the model, one with full attention where it has several kinds.

    It holds widths, biases and rotation. Norms of queries and keys, gates, and caps of the scores, which some families
    have, are not part of it.

    Args:
        hf: the file, for its flags and its rotary settings.
        dims: its numbers.
        family: what it does not say.
        layers: how many layers of each type.

    Raises:
        ValueError: neither class can express the layer, or the file leaves a part of it open; says which.
    """
    kinds = sorted(set(layers) - {"linear_attention"})
    if family.loads and len(kinds) > 1:
        raise ValueError(f"the layers are of types {' and '.join(kinds)}; expected one type, which a layer of ours has")
    facts = family.attention
    if facts is None or set(layers) & set(COMPRESSED):
        raise ValueError("the layer is of a kind that GQAConfig and MLAConfig do not have, or of an unknown family")
    for switch in facts.unless:
        if _flag(hf, family, switch):
            raise ValueError(f"{switch} is True; expected False, without which the layer is of another kind")
    theta, scaling = read_rope(hf, facts, dims)
    if dims.is_mla:
        return _mla(hf, dims, family, facts, theta, scaling)
    stretch: Any = scaling or None  # pydantic makes of it the class that its rope_type names
    key, value = dims.need("head_dim"), dims.v_head_dim
    if value not in (None, key):
        raise ValueError(f"v_head_dim is {value}; expected head_dim, {key}, since GQAConfig has one width for both")
    windows = [layer_type == "sliding_attention" for layer_type in layers]
    return GQAConfig(
        hidden_size=dims.need("hidden_size"),
        num_attention_heads=dims.need("num_attention_heads"),
        num_key_value_heads=dims.need("num_key_value_heads"),
        head_dim=key,
        rope_theta=theta,
        rope_scaling=stretch,
        qkv_bias=_flag(hf, family, facts.qkv_bias),
        o_bias=_flag(hf, family, facts.o_bias),
        sliding_window=dims.sliding_window if all(windows) else None,
    )


def _mla(
    hf: Mapping[str, Any],
    dims: Dimensions,
    family: Family,
    facts: AttentionFacts,
    theta: float | None,
    scaling: dict[str, Any],
) -> MLAConfig:
    rotated = dims.need("qk_rope_head_dim")
    if facts.rotated_width and hf.get(facts.rotated_width, rotated) != rotated:
        said = hf[facts.rotated_width]
        raise ValueError(f"{facts.rotated_width} is {shown(said)}; expected qk_rope_head_dim, {rotated}")
    beta = 0.0
    if facts.growing_queries:
        beta = scaling.pop("llama_4_scaling_beta", None)
        scaling.pop("max_position_embeddings", None)
        if beta is None:
            raise ValueError("llama_4_scaling_beta is None; expected a number beside the settings of YaRN")
    stretch: Any = scaling or None
    return MLAConfig(
        hidden_size=dims.need("hidden_size"),
        num_attention_heads=dims.need("num_attention_heads"),
        q_lora_rank=dims.q_lora_rank,
        kv_lora_rank=dims.need("kv_lora_rank"),
        qk_nope_head_dim=dims.need("qk_nope_head_dim"),
        qk_rope_head_dim=rotated,
        v_head_dim=dims.need("v_head_dim"),
        rope_theta=theta,
        rope_scaling=stretch,
        rope_interleave=_flag(hf, family, facts.rope_interleave),
        attention_bias=_flag(hf, family, facts.qkv_bias),
        mla_scale_q_lora=facts.scaled_latents,
        mla_scale_kv_lora=facts.scaled_latents,
        llama_4_scaling_beta=beta,
    )


def _flag(hf: Mapping[str, Any], family: Family, flag: bool | str) -> bool:
    """A constant, or what the file or the family says under a name."""
    if isinstance(flag, bool):
        return flag
    value = hf.get(flag, family.defaults.get(flag, False))
    if not isinstance(value, bool):
        raise ValueError(f"{flag} is {shown(value)}; expected true or false")
    return value
