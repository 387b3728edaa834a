import pytest
import torch

from mla_edu.cache import KVCache
from mla_edu.models import Decoder, ModelConfig
from mla_edu.testing import randomize, relative_error


def model_config(num_layers=2, **options):
    """A small model with grouped-query attention."""
    gqa = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
    fixed = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 64, "layers": ["gqa"] * num_layers, "gqa": gqa}
    return ModelConfig(**fixed | options)


@pytest.fixture
def tokens():
    return torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_token_changes_no_earlier_logits_and_every_later_one(tokens):
    model = randomize(Decoder(model_config()))
    other = tokens.clone()
    other[:, 4] = (tokens[:, 4] + 1) % 50
    change = (model(other) - model(tokens)).abs().amax(dim=(0, 2))
    assert (change[:4] == 0).all()
    assert (change[4:] > 1e-4).all()


@torch.no_grad()
def test_every_block_begins_as_the_identity(tokens):
    model = Decoder(model_config(3))
    x = model.embed_tokens(tokens)
    for layer in model.layers:
        assert torch.equal(layer(x), x)


@torch.no_grad()
def test_every_branch_of_a_trained_block_counts(tokens):
    model = randomize(Decoder(model_config()))
    expected = model(tokens)
    for name in ("layers.1.self_attn.o_proj", "layers.0.mlp.down_proj", "layers.0.mlp.gate_proj"):
        weight = model.get_submodule(name).weight
        kept = weight.clone()
        weight.zero_()
        assert relative_error(model(tokens), expected) > 1e-2
        weight.copy_(kept)


def test_seed_decides_all_weights():
    first, same, other = (Decoder(model_config(**MIXED), seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(weight, same[name]) for name, weight in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_weights_start_as_wide_as_their_inputs_ask():
    gqa = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}
    weight = Decoder(model_config(1, hidden_size=256, gqa=gqa)).layers[0].self_attn.q_proj.weight
    assert abs(weight.std().item() * 256**0.5 - 1) < 0.05


MIXED = {
    "layers": ["mamba2", "mla", "gqa", "mamba2"],
    "feed_forward": ["dense", "moe", "dense", "moe"],
    "mla": {
        "num_attention_heads": 3,
        "q_lora_rank": None,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 5,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
    },
    "mamba2": {"num_heads": 4, "head_dim": 6, "state_size": 5, "n_groups": 2},
    "moe": {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 7, "n_shared_experts": 1},
}


@torch.no_grad()
def test_layers_of_all_kinds_decode_to_what_the_full_pass_gives(tokens):
    model = randomize(Decoder(model_config(**MIXED), dtype=torch.float64))
    cache = model.new_cache(batch_size=2, max_seq_len=9)
    logits = torch.cat([model(piece, cache) for piece in tokens.split((3, 1, 4, 1), dim=1)], dim=1)
    assert relative_error(logits, model(tokens)) < 1e-11
    cache.truncate(8)
    assert relative_error(model(tokens[:, 8:], cache), model(tokens)[:, 8:]) < 1e-11


@torch.no_grad()
def test_sequences_of_different_lengths_decode_side_by_side(tokens):
    model = randomize(Decoder(model_config(**MIXED), dtype=torch.float64))
    cache, full = model.new_cache(batch_size=2, max_seq_len=9), model(tokens)
    with cache.step(5, sequences=[1]):
        model(tokens[1:, :5], cache)
    logits = model(torch.stack((tokens[0, :4], tokens[1, 5:])), cache)
    assert relative_error(logits[0], full[0, :4]) < 1e-11
    assert relative_error(logits[1], full[1, 5:]) < 1e-11
    assert cache.lengths == [4, 9]


@torch.no_grad()
def test_a_step_that_fails_leaves_the_cache(tokens):
    model = randomize(Decoder(model_config(**MIXED), dtype=torch.float64))
    cache, full = model.new_cache(batch_size=2, max_seq_len=9), model(tokens)
    model(tokens[:, :5], cache)
    kept, model.layers[3].mlp = model.layers[3].mlp, torch.nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        model(tokens[:, 5:], cache)
    model.layers[3].mlp = kept
    assert cache.length == 5
    assert relative_error(model(tokens[:, 5:], cache), full[:, 5:]) < 1e-11


def test_each_layer_gets_the_cache_that_it_needs():
    model = Decoder(model_config(**MIXED))
    cache = model.new_cache(batch_size=3, max_seq_len=11)
    names = [type(layer).__name__ for layer in cache.layers]
    assert names == ["StateCache", "LatentCache", "KVCache", "StateCache"]
    per_token, state = 12 + 2 * 2 * 6, model.config.mamba2.state_elements
    assert cache.nbytes == 4 * 3 * (11 * per_token + 2 * 2 * state)


def test_tied_weights_are_one_tensor(tokens):
    model = Decoder(model_config(tie_word_embeddings=True))
    assert sum(weight.shape == (50, 24) for weight in model.parameters()) == 1
    assert model(tokens).shape == (2, 9, 50)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model: model(torch.tensor([[50]])), ValueError, "tokens lie from 50 to 50; expected 0 to 49"),
        (lambda model: model(torch.zeros(1, 2)), ValueError, r"tokens is torch.float32 of shape \[1, 2\]"),
        (
            lambda model: model(torch.zeros(1, 2, dtype=torch.long), KVCache(model.config.gqa)),
            TypeError,
            "cache is a KVCache; expected a ModelCache",
        ),
        (
            lambda model: model(torch.zeros(1, 5, dtype=torch.long), model.new_cache(max_seq_len=4)),
            ValueError,
            "5 new tokens after 0 cached ones of sequence 0; expected at most max_seq_len = 4",
        ),
    ],
)
def test_a_wrong_call_is_one_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call(Decoder(model_config(1)))
