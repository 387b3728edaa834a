"""Every family of transformers that we read, small: its configuration, and what its attention layer is made of."""

import copy
import dataclasses
import functools
import importlib
import json
import math
import re
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TINY = {  # of these, a family gets the numbers that its config class knows
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 6),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 64),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 32),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input", "rotary_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "index_head_dim", "mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 512),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size"), 5),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 64),
    **dict.fromkeys(("num_experts_per_tok", "index_n_heads", "linear_num_heads", "linear_num_key_heads"), 2),
    "num_key_value_heads": 2,
    "kv_lora_rank": 24,
    "q_lora_rank": 32,
    "v_head_dim": 16,
    "index_topk": 4,
    "laurel_rank": 4,
    "linear_num_value_heads": 4,
    "zero_expert_num": 0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SIX = ["linear_attention", "full_attention"] * 3
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}  # of pictures, in three directions
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
SPECIAL = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense"] * 6},
    "deepseek_v2": {"topk_method": "greedy"},
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "max_window_layers": 4,
        "num_key_value_heads": 2,
    },
    "dots3_note_text": {
        "num_key_value_heads": 4,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_kv_lora_rank": 40,
        "swa_q_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
        "moe_shared_expert_intermediate_size": 16,
        "n_shared_experts": 1,
        "n_group": 1,
        "sliding_window": 5,
    },
    "deepseek_v4": {"layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"] * 3},
    "ernie4_5_vl_moe_text": {"rope_parameters": MROPE | {"mrope_section": [3, 3, 2]}},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {"num_hidden_layers": 10, "num_kv_shared_layers": 4, "activation_sparsity_pattern": None},
    "gemma4_text": {
        "num_hidden_layers": 8,  # the last layer is global, though the pattern makes it local
        "global_head_dim": 48,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
    },
    "glm5_next_text": {"index_kpool": 4, "qk_rope_head_dim": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "glm4v_moe_text": {"rope_parameters": MROPE | {"mrope_section": [1, 1, 2]}},
    "glm4v_text": {"rope_parameters": MROPE},
    "glm_ocr_text": {"rope_parameters": MROPE},
    "paddleocr_vl_text": {"rope_parameters": MROPE},
    "granitemoehybrid": {"layer_types": SIX},
    "gemma4_unified_text": {
        "num_hidden_layers": 8,
        "global_head_dim": 48,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
    },
    "hrm_text": {"num_hidden_layers": 2, "H_cycles": 2, "L_cycles": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_vl_text": {"head_dim": 16, "rope_parameters": MROPE | {"mrope_section": [2, 2, 2, 2]}},
    "hunyuan_v1_moe": {"head_dim": 16},
    "inkling2_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_head_dim": 8,
        "sliding_window_size": 5,
    },
    "inkling_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_head_dim": 8,
        "sliding_window_size": 5,
    },
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 1},
    "kimi_linear": {
        "linear_attn_config": {
            "head_dim": 8,
            "num_heads": 2,
            "short_conv_kernel_size": 4,
            "full_attn_layers": [2, 4, 6],
            "kda_layers": [1, 3, 5],
        }
    },
    "jetmoe": {"kv_channels": 16},
    "laguna": {"layer_types": ["full_attention", "sliding_attention"] * 3},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 3},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 3},
    "longcat_flash": {"head_dim": 8, "num_layers": 3, "moe_topk": 2},
    "mellum": {"layer_types": ["full_attention", "sliding_attention"] * 3},
    "mimo_v2_flash": {"v_head_dim": 8},
    "minimax_m3_vl_text": {
        "rotary_dim": 8,
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "sparse_attention_config": {"sparse_attention_freq": [0, 1] * 3, "sparse_index_dim": 12},
    },
    "ministral": {"head_dim": 16},
    "mixtral": {"sliding_window": 5},
    "modernbert-decoder": {"local_attention": 10, "cls_token_id": 3, "sep_token_id": 3},
    "nemotron_h": {
        "num_hidden_layers": None,
        "layer_types": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "full_attention"],
    },
    "phi3": {"sliding_window": 5},
    "phi4_multimodal": {
        "sliding_window": 5,
        "vision_config": TOWER | {"num_hidden_layers": 1, "image_size": 28, "crop_size": 28},
        "audio_config": TOWER
        | {"num_blocks": 1, "nemo_conv_channels": 8, "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16},
    },
    "qwen2": {"use_sliding_window": True, "max_window_layers": 4},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 4},
    "qwen3_moe": {"use_sliding_window": True},
    **{
        name: {"use_sliding_window": True, "max_window_layers": 4, "rope_parameters": MROPE}
        for name in ("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text")
    },
    "smollm3": {"use_sliding_window": True, "no_rope_layer_interval": 3},
    "step3p5": {
        "layer_types": ["full_attention", "sliding_attention"] * 3,
        "sliding_window": 5,
        "num_nextn_predict_layers": 0,
    },
    "zamba": {"num_hidden_layers": 9, "n_mamba_heads": 2, "attn_layer_period": 3, "attn_layer_offset": 1},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 3, "mamba_ngroups": 1},
}
CAUSAL = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)  # others have a model of the text alone, whose name is
MODEL = r"\w+TextModel|Mistral4Model"


def tiny_config(family: str):
    """A small config of the family's class, from the numbers in TINY that the class has with a default."""
    cls = transformers.CONFIG_MAPPING[family]
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    optional = ("num_key_value_heads", "n_group", "topk_group", "num_experts_per_tok")  # a class may leave them None
    values = {k: v for k, v in TINY.items() if k in defaults and (defaults[k] is not None or k in optional)}
    if "kv_lora_rank" in values:
        values["num_key_value_heads"] = 4
        values.pop("head_dim", None)
    return cls(**values | copy.deepcopy(SPECIAL.get(family, {})))  # the classes write into what they are given


@functools.cache
def _saved(family: str) -> str:
    return tiny_config(family).to_json_string(use_diff=False)


def saved(family: str) -> dict[str, Any]:
    """The small configuration of a family as transformers saves it."""
    file = json.loads(_saved(family))
    file.pop("time_step_limit", None)  # a list in JSON, where their classes want a tuple
    return file


def build(config, device: str = "cpu") -> nn.Module:
    """A model of this configuration with random weights, or without any on ``"meta"``."""
    with torch.device(device):
        if config.model_type in CAUSAL:
            return transformers.AutoModelForCausalLM.from_config(config)
        module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
        return next(value for name, value in vars(module).items() if re.fullmatch(MODEL, name))(config)


@dataclasses.dataclass(frozen=True)
class TheirLayer:
    """What transformers builds for one attention layer: the last one with softmax attention."""

    shapes: dict[str, tuple[int, ...]]  # of its parameters
    scale: float | None  # of the scores, where the module keeps it
    frequencies: list[float] | None  # of its rotation; None: it has none
    magnitude: float | None  # of the rotated vectors

    def projections(self, hidden_size: int) -> dict[str, Any]:
        """Widths and biases of queries, keys and values together, and of the output; however they are cut."""
        ours = {name: shape for name, shape in self.shapes.items() if "norm" not in name and "sinks" not in name}
        out = {name for name in ours if name.split(".")[0] in ("o_proj", "out_proj", "c_proj", "dense")}
        sizes = {name: math.prod(shape) // hidden_size for name, shape in ours.items() if name.endswith("weight")}
        return {
            "qkv": sum(size for name, size in sizes.items() if name not in out),
            "o": sum(size for name, size in sizes.items() if name in out),
            "qkv_bias": any(name.endswith("bias") for name in ours.keys() - out),
            "o_bias": any(name.endswith("bias") for name in out),
        }


def their_layer(config) -> TheirLayer:
    """The layer of a configuration of transformers, from its own modules."""
    model = build(config, "meta")
    layers, rotary = [], None
    for name, module in model.named_modules():
        children = dict(module.named_children())
        if "rotary" in name.rsplit(".", 1)[-1] and rotary is None:
            rotary = type(module)
        attends = {"k_proj", "kv_b_proj", "c_attn", "query_key_value"} & set(children) and "indexer" not in name
        if attends and not hasattr(module, "f_a_proj"):  # Kimi's linear layers have one
            layers.append(module)
    if hasattr(config, "linear_num_heads"):
        layers = [layer for layer in layers if hasattr(layer, "kv_b_proj")]
    state = {name: tuple(tensor.shape) for name, tensor in layers[-1].state_dict().items()}
    scale = next(
        (getattr(layers[-1], name) for name in ("scaling", "softmax_scale") if hasattr(layers[-1], name)), None
    )
    frequencies = magnitude = None
    if rotary is not None:
        built = rotary(config)
        prefix = "full_attention_" if hasattr(built, "full_attention_inv_freq") else ""
        frequencies = getattr(built, f"{prefix}inv_freq").tolist()
        magnitude = getattr(built, f"{prefix}attention_scaling")
    return TheirLayer(state, scale, frequencies, magnitude)
