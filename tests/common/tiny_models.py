"""Small whole models of transformers, with every weight random: what ours are compared with."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mla_edu.testing import randomize

SMALL = {
    "vocab_size": 53,
    "hidden_size": 40,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "rms_norm_eps": 0.1,
    "attention_bias": True,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 15,
    "kv_lora_rank": 13,
    "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 6,
    "v_head_dim": 7,
}
EXPERTS = {
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 9,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.7,
    "first_k_dense_replace": 1,
}
GROUPS = {"n_group": 3, "topk_group": 2}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 5.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
MODELS = {
    "deepseek_v2": ("deepseek_v2", LATENT | EXPERTS | GROUPS | {"topk_method": "group_limited_greedy"}),
    "deepseek_v2-lite": ("deepseek_v2", LATENT | EXPERTS | {"q_lora_rank": None, "topk_method": "greedy"}),
    "deepseek_v3": ("deepseek_v3", LATENT | EXPERTS | GROUPS | {"rope_parameters": YARN}),
    "kimi_k2": ("deepseek_v3", LATENT | EXPERTS | {"n_group": 1, "topk_group": 1}),
    "glm4_moe_lite": (
        "glm4_moe_lite",
        LATENT | EXPERTS | GROUPS | {"head_dim": 6, "mlp_layer_types": ["sparse", "dense", "sparse"]},
    ),
    "youtu": ("youtu", LATENT | {"tie_word_embeddings": True}),
    "minicpm3": (
        "minicpm3",
        LATENT | {"scale_emb": 3, "scale_depth": 1.2, "dim_model_base": 16, "tie_word_embeddings": False},
    ),
    "llama": ("llama", {"num_key_value_heads": 2, "head_dim": 6}),
    "mistral": ("mistral", {"num_key_value_heads": 2, "head_dim": 6, "sliding_window": 7}),
}


def their_model(family, options, seed=0):
    """A small model of transformers in float64, every weight, bias and correction random."""
    config = AutoConfig.for_model(family, **SMALL | options)
    config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager").eval()
    randomize(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) / 4)
    return model


def draw_tokens(length, seed=0, batch=2):
    """Token ids of the small models' vocabulary."""
    return torch.randint(SMALL["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))
