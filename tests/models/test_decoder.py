import pytest
import torch

from mla_edu import GQAConfig
from mla_edu.models.decoder import Decoder
from mla_edu.testing import randomize, relative_error

CONFIG = GQAConfig(hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=6)


@pytest.fixture
def tokens():
    return torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_token_changes_no_earlier_logits_and_every_later_one(tokens):
    model = randomize(Decoder(CONFIG, num_layers=2, vocab_size=50))
    other = tokens.clone()
    other[:, 4] = (tokens[:, 4] + 1) % 50
    change = (model(other) - model(tokens)).abs().amax(dim=(0, 2))
    assert (change[:4] == 0).all()
    assert (change[4:] > 1e-4).all()


@torch.no_grad()
def test_every_block_begins_as_the_identity(tokens):
    model = Decoder(CONFIG, num_layers=3, vocab_size=50)
    x = model.embedding(tokens)
    for block in model.blocks:
        assert torch.equal(block(x), x)


@torch.no_grad()
def test_every_branch_of_a_trained_block_counts(tokens):
    model = randomize(Decoder(CONFIG, num_layers=2, vocab_size=50))
    expected = model(tokens)
    for name in ("blocks.1.attention.o_proj", "blocks.0.mlp.down_proj", "blocks.0.mlp.gate_proj"):
        weight = model.get_submodule(name).weight
        kept = weight.clone()
        weight.zero_()
        assert relative_error(model(tokens), expected) > 1e-2
        weight.copy_(kept)


def test_seed_decides_the_weights():
    first, same, other = (Decoder(CONFIG, num_layers=1, seed=seed).head.weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_weights_start_as_wide_as_their_inputs_ask():
    weight = (
        Decoder(GQAConfig(hidden_size=256, num_attention_heads=4, num_key_value_heads=4, head_dim=64), num_layers=1)
        .blocks[0]
        .attention.q_proj.weight
    )
    assert abs(weight.std().item() * 256**0.5 - 1) < 0.05
