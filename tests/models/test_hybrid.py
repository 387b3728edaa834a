"""Mamba-2 and MLA layers in one model, against a Bamba whose attention modules are DeepSeek-V3's."""

import pytest
import torch
from transformers import BambaConfig, BambaForCausalLM, DeepseekV3Config, DynamicCache
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from mla_edu.models import Decoder, ModelConfig
from mla_edu.testing import randomize, relative_error
from tiny_models import draw_tokens

ROUNDED = 1e-5
MLA = {
    "num_attention_heads": 4,
    "q_lora_rank": 9,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
LAYERS = ["mamba2", "mamba2", "mla", "mamba2", "mla"]
CONFIG = ModelConfig(
    vocab_size=53,
    hidden_size=24,
    intermediate_size=32,
    rms_norm_eps=0.1,
    layers=LAYERS,
    mla=MLA,
    mamba2={"num_heads": 4, "head_dim": 12, "state_size": 5, "n_groups": 2, "norm_eps": 0.1},
)


@pytest.fixture(scope="module")
def pair():
    """Their model and ours, of the same weights. Both parts of theirs have to compute attention in the same way."""
    bamba = BambaConfig(
        vocab_size=53,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=len(LAYERS),
        num_attention_heads=4,
        num_key_value_heads=4,
        attn_layer_indices=[i for i, kind in enumerate(LAYERS) if kind == "mla"],
        mamba_n_heads=4,
        mamba_d_head=12,
        mamba_expand=2,
        mamba_d_state=5,
        mamba_n_groups=2,
        mamba_chunk_size=5,
        rms_norm_eps=0.1,
        pad_token_id=None,
        attn_implementation="eager",
    )
    latent = DeepseekV3Config(hidden_size=24, num_key_value_heads=4, attn_implementation="eager", **MLA)
    theirs = BambaForCausalLM(bamba)
    for i, layer in enumerate(theirs.model.layers):
        if LAYERS[i] == "mla":
            layer.self_attn = DeepseekV3Attention(latent, layer_idx=i)
    theirs.model.rotary_emb = DeepseekV3RotaryEmbedding(latent)
    theirs = randomize(theirs.double().eval())
    renamed = {"pre_ff_layernorm": "post_attention_layernorm", "feed_forward": "mlp", "final_layernorm": "norm"}
    weights = {}
    for name, weight in theirs.state_dict().items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        weights[name.removeprefix("model.")] = weight
    ours = Decoder(CONFIG, dtype=torch.float64)
    ours.load_state_dict(weights)
    return theirs, ours


@torch.no_grad()
def test_logits_equal(pair):
    theirs, ours = pair
    tokens = draw_tokens(23)
    assert relative_error(ours(tokens), theirs(tokens, use_cache=False).logits) < ROUNDED


@torch.no_grad()
def test_both_decode_to_what_their_full_pass_gives(pair):
    theirs, ours = pair
    tokens = draw_tokens(23)
    full = theirs(tokens, use_cache=False).logits
    cache, their_cache, done = ours.new_cache(batch_size=2, max_seq_len=23), DynamicCache(config=theirs.config), 0
    for piece in tokens.split((9, 1, 6, 1, 1, 5), dim=1):
        end = done + piece.shape[1]
        positions = torch.arange(done, end)[None]  # Bamba counts from 0 at each call where none are given
        options = {"position_ids": positions, "past_key_values": their_cache}
        assert relative_error(theirs(piece, **options).logits, full[:, done:end]) < ROUNDED
        assert relative_error(ours(piece, cache), full[:, done:end]) < ROUNDED
        done = end


def broken(model, mistake, cache):
    if mistake == "conv state":
        for layer in cache.layers:
            if hasattr(layer, "inputs"):
                layer.inputs.zero_()
    elif mistake == "state":
        cache.layers[3].states.zero_()
    elif mistake == "latent norm":
        model.layers[2].self_attn.kv_a_layernorm.weight.fill_(1)
    else:
        model.layers[1].residual_scale = 0.9


@pytest.mark.parametrize("mistake", ["conv state", "state", "latent norm", "residual"])
@torch.no_grad()
def test_a_mistake_shows(pair, mistake):
    theirs, ours = pair
    tokens, kept = draw_tokens(23), {name: weight.clone() for name, weight in ours.state_dict().items()}
    cache = ours.new_cache(batch_size=2, max_seq_len=23)
    ours(tokens[:, :15], cache)
    broken(ours, mistake, cache)
    found = ours(tokens[:, 15:], cache)
    ours.load_state_dict(kept)
    ours.layers[1].residual_scale = 1.0
    assert relative_error(found, theirs(tokens, use_cache=False).logits[:, 15:]) > 30 * ROUNDED
