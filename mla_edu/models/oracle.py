"""Tiny random models of transformers, of the families that our MLA is compared with. Needs torch and transformers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mla_edu.config import MLAConfig
from mla_edu.testing import randomize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# One setting of YaRN that shows: a factor on the softmax, another on the magnitude.
YARN = {
    "rope_type": "yarn",
    "factor": 5.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

# What every model of a family has, whatever its config.json says: the families that our MLA is compared with.
MLA_FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"rope_interleave": True},
    "deepseek_v3": {},
    "deepseek_v32": {"rope_interleave": True},
    "glm4_moe_lite": {},
    "glm_moe_dsa": {"rope_interleave": True},
    "kimi_linear": {"rope_theta": None, "rope_scaling": None, "rope_interleave": True},
    "longcat_flash": {"rope_interleave": True, "mla_scale_q_lora": True, "mla_scale_kv_lora": True},
    "minicpm3": {"rope_interleave": False},
    "mistral4": {"rope_scaling": YARN, "llama_4_scaling_beta": 0.3},
    "youtu": {},
}


def family_config(family: str, config: MLAConfig) -> MLAConfig:
    """``config``, with what every model of the family has: see ``MLA_FAMILIES``."""
    fixed = MLA_FAMILIES[family]
    if family in ("deepseek_v32", "glm_moe_dsa", "longcat_flash"):  # their queries are always compressed
        fixed = {"q_lora_rank": config.q_lora_rank or 5, **fixed}
    return MLAConfig(**config.model_dump() | fixed)


def family_model(family: str, config: MLAConfig, seed: int = 0) -> "PreTrainedModel":
    """A tiny model of transformers in float64 with random weights, whose attention layers are of ``config``.

    It has three layers, of which ``kimi_linear`` has full attention in the last only, and ``longcat_flash`` two blocks
    of two.

    Args:
        family: one of ``MLA_FAMILIES``.
        config: from ``family_config``.
        seed: of the weights.
    """
    from transformers import AutoConfig, AutoModel, PreTrainedModel

    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling:
        rope = config.rope_scaling.model_dump(exclude_none=True)
    rope["rope_theta"] = config.rope_theta
    if family == "mistral4":
        rope["llama_4_scaling_beta"] = config.llama_4_scaling_beta
    widths = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    options: dict[str, Any] = {name: getattr(config, name) for name in ("hidden_size", "num_attention_heads", *widths)}
    options |= {"attention_bias": config.attention_bias, "num_key_value_heads": config.num_attention_heads}
    options |= {"vocab_size": 11, "num_hidden_layers": 3, "attn_implementation": "eager", "rms_norm_eps": 0.1}
    options["pad_token_id"] = None
    options |= {"intermediate_size": 8, "moe_intermediate_size": 4, "first_k_dense_replace": 3}
    if family not in ("deepseek_v2", "deepseek_v3", "longcat_flash", "minicpm3", "mistral4", "youtu"):
        options["mlp_layer_types"] = ["dense"] * 3
    match family:
        case "kimi_linear":
            options["layer_types"] = ["linear_attention", "linear_attention", "full_attention"]
            options |= {"linear_num_heads": 2, "linear_head_dim": 4}
        case "longcat_flash":
            options |= {"num_layers": 2, "n_routed_experts": 2, "zero_expert_num": 1, "moe_topk": 2}
            del options["num_hidden_layers"]
    if family != "kimi_linear":
        options |= {"rope_parameters": rope, "rope_interleave": config.rope_interleave}
    if family in ("glm4_moe_lite", "longcat_flash"):
        options["head_dim"] = config.qk_rope_head_dim  # the width that these two rotate
    build: Callable[..., PreTrainedModel] = AutoModel.from_config
    return randomize(build(AutoConfig.for_model(family, **options), dtype=torch.float64), seed)


@torch.no_grad()
def family_attention(model: "PreTrainedModel", layer: int, hidden_states: Tensor) -> Tensor:
    """The output of the model's own attention layer on ``hidden_states``, under a causal mask written out here.

    Args:
        model: from ``family_model``, or a larger one of the same families.
        layer: the index that transformers uses in its cache.
        hidden_states: ``[batch, seq, hidden]``.
    """
    batch, seq, _ = hidden_states.shape
    their: Any = model
    if model.config.model_type == "longcat_flash":
        attention = their.layers[layer // 2].self_attn[layer % 2]
    else:
        attention = their.layers[layer].self_attn
    positions = torch.arange(seq, device=hidden_states.device)[None]
    future = positions.mT < positions
    mask = hidden_states.new_zeros(batch, 1, seq, seq).masked_fill(future, float("-inf"))
    rotary = their.rotary_emb(hidden_states, positions) if hasattr(model, "rotary_emb") else None
    options = {"attention_mask": mask, "position_embeddings": rotary, "position_ids": positions}
    output: Tensor = attention(hidden_states, **options)[0]
    return output
