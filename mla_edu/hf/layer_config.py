"""From a model's dimensions to the configuration of one attention layer."""

from collections.abc import Mapping
from typing import Any

from mla_edu.config import GQAConfig, MLAConfig, config_from_hf
from mla_edu.hf.layout import COMPRESSED


def attention_config(dims: Mapping[str, Any], layers: Mapping[str, int]) -> GQAConfig | MLAConfig | None:
    """One attention layer with these dimensions, a global one where the model has both kinds.

    Its rotary settings are those that ``dims`` gives. None where neither class can express the layer: a key and a value
    of different widths, DeepSeek-V4's shared key and value, a rope type that the classes do not have.
    """
    if set(layers) & set(COMPRESSED):
        return None
    dims = {"rope_theta": None, **dims}
    try:
        if dims.get("qk_rope_head_dim") == 0:  # nothing to rotate
            names = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
            widths = {name: dims[name] for name in names}
            return MLAConfig(dims["hidden_size"], dims["num_attention_heads"], **widths, rope_theta=None)
        if dims.get("kv_lora_rank"):
            growing_queries = "llama_4_scaling_beta" in (dims.get("rope_scaling") or {})
            return config_from_hf({**dims, "model_type": "mistral4" if growing_queries else "deepseek_v3"})
        if "head_dim" in dims and dims.get("v_head_dim") in (None, dims["head_dim"]):
            window = dims.get("sliding_window") if set(layers) == {"sliding_attention"} else None
            return config_from_hf({**dims, "sliding_window": window, "model_type": "mistral"})
    except ValueError:
        pass
    return None
