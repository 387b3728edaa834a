"""Whole models against transformers: the same logits from the same weights, in one pass and in uneven chunks."""

import pytest
import torch

from mla_edu.models import Decoder, ModelConfig
from mla_edu.testing import relative_error
from tiny_models import MODELS, draw_tokens, their_model

ROUNDED = 1e-5  # their norms, rotations and routers compute in float32
EXACT = 1e-10
TOKENS, CHUNKS = 23, (9, 1, 6, 1, 1, 5)


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


@torch.no_grad()
def test_logits_equal_those_of_transformers(pair):
    theirs, ours = pair
    tokens = draw_tokens(TOKENS)
    assert relative_error(ours(tokens), theirs(tokens, use_cache=False).logits) < ROUNDED


@torch.no_grad()
def test_uneven_chunks_give_the_logits_of_the_full_pass(pair):
    _, ours = pair
    tokens = draw_tokens(TOKENS)
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
    ours, tokens = our_model(theirs), draw_tokens(TOKENS)
    broken_part(ours, mistake)
    assert relative_error(ours(tokens), theirs(tokens, use_cache=False).logits) > 30 * ROUNDED
