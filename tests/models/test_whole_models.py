"""Whole models against transformers: the same logits from the same weights, in one pass and in uneven chunks."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mla_edu.models import Decoder, ModelConfig
from mla_edu.testing import randomize, relative_error

ROUNDED = 1e-5  # their norms, rotations and routers compute in float32
EXACT = 1e-10
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
TOKENS, CHUNKS = 23, (9, 1, 6, 1, 1, 5)


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


def our_model(theirs, model_type=None):
    """Ours of the same file and the same weights."""
    file = theirs.config.to_dict() | ({"model_type": model_type} if model_type else {})
    model = Decoder(ModelConfig.from_hf(file), dtype=torch.float64)
    weights = {name.removeprefix("model."): weight for name, weight in theirs.state_dict().items()}
    if model.lm_head is None:
        del weights["lm_head.weight"]
    model.load_state_dict(weights)
    return model


@pytest.fixture(params=MODELS)
def pair(request):
    family, options = MODELS[request.param]
    theirs = their_model(family, options)
    return theirs, our_model(theirs, request.param if request.param == "kimi_k2" else None)


def draw_tokens(seed=0, batch=2):
    return torch.randint(SMALL["vocab_size"], (batch, TOKENS), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_logits_equal_those_of_transformers(pair):
    theirs, ours = pair
    tokens = draw_tokens()
    assert relative_error(ours(tokens), theirs(tokens, use_cache=False).logits) < ROUNDED


@torch.no_grad()
def test_uneven_chunks_give_the_logits_of_the_full_pass(pair):
    _, ours = pair
    tokens = draw_tokens()
    cache = ours.new_cache(batch_size=2, max_seq_len=TOKENS)
    logits = torch.cat([ours(piece, cache) for piece in tokens.split(CHUNKS, dim=1)], dim=1)
    assert relative_error(logits, ours(tokens)) < EXACT
    assert cache.length == TOKENS


def broken_part(model, mistake):
    """Breaks one part of a model."""
    layer = model.layers[-1]
    match mistake:
        case "routing weights":
            layer.mlp.gate.config = layer.mlp.gate.config.model_copy(update={"norm_topk_prob": False})
        case "shared experts":
            layer.mlp.shared_experts = None
        case "latent norm":
            layer.self_attn.kv_a_layernorm = torch.nn.Identity()
        case "residual":
            layer.residual_scale = 0.9
        case "final norm":
            model.norm.weight.fill_(1)
        case "eps of the norms":
            for layer in model.layers:
                layer.input_layernorm.eps = 1e-6


@pytest.mark.parametrize(
    "mistake", ["routing weights", "shared experts", "latent norm", "residual", "final norm", "eps of the norms"]
)
@torch.no_grad()
def test_a_mistake_shows(mistake):
    theirs = their_model(*MODELS["deepseek_v3"])
    ours, tokens = our_model(theirs), draw_tokens()
    broken_part(ours, mistake)
    assert relative_error(ours(tokens), theirs(tokens, use_cache=False).logits) > 30 * ROUNDED
