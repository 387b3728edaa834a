"""Muon steps each linear map by itself."""

import pytest
import torch

from mla_edu.models import Decoder, ModelConfig
from mla_edu.testing import randomize, relative_error
from mla_edu.train.muon import Muon, fused_maps

CONFIG = ModelConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=32,
    layers=["mla", "mamba2"],
    feed_forward=["moe", "dense"],
    mla={
        "num_attention_heads": 3,
        "q_lora_rank": None,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 5,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
    },
    mamba2={"num_heads": 4, "head_dim": 6, "state_size": 5, "n_groups": 2},
    moe={"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 7},
)


@pytest.fixture
def model():
    return randomize(Decoder(CONFIG, dtype=torch.float64))


def test_views_of_a_fused_parameter_make_up_the_whole(model):
    maps = fused_maps(model)
    assert len(maps) == 4
    for parameter, split in maps.items():
        counted = torch.zeros_like(parameter)
        for view in split(counted):
            view += 1
        assert (counted == 1).all()


def stepped(parameters, splits=None):
    """The change of one step at rate 1."""
    before = [parameter.detach().clone() for parameter in parameters]
    Muon(parameters, lr=1.0, splits=splits).step()
    return [old - new.detach() for old, new in zip(before, parameters, strict=True)]


def gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def test_each_map_is_stepped_as_if_it_were_alone(model):
    gradients(model, 0)
    weight = model.layers[0].self_attn.kv_a_proj_with_mqa.weight
    experts = model.layers[0].mlp.experts.gate_up_proj
    kv_b = model.layers[0].self_attn.kv_b_proj.weight
    pieces = [
        (weight, lambda w: w[8:]),  # the rotary key
        (experts, lambda w: w[2, :7]),  # the gate of the third expert
        (kv_b, lambda w: w[11:16]),  # the keys of the second head
    ]
    alone = []
    for parameter, piece in pieces:
        single = torch.nn.Parameter(piece(parameter).detach().clone())
        single.grad = piece(parameter.grad).clone()
        alone.append(stepped([single])[0])
    together = stepped([weight, experts, kv_b], fused_maps(model))
    for (_, piece), change, expected in zip(pieces, together, alone, strict=True):
        assert relative_error(piece(change), expected) < 1e-12


def test_a_step_is_nearly_orthogonal(model):
    gradients(model, 1)
    (change,) = stepped([model.layers[1].mlp.up_proj.weight])
    singular = torch.linalg.svdvals(change) / (32 / 24) ** 0.5
    assert singular.min() > 0.6 and singular.max() < 1.3
