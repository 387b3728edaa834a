"""What every layer and model refuses in a line, and the inputs of size zero that they take."""

import pytest
import torch

from mla_edu import GQAConfig, GroupedQueryAttention, MLAConfig, MultiHeadLatentAttention
from mla_edu.cache import KVCache, LatentCache, PagedKVCache, PagedLatentCache, PageTable
from mla_edu.config import Mamba2Config, MoEConfig
from mla_edu.layers.mamba2 import Mamba2
from mla_edu.layers.moe import MixtureOfExperts
from mla_edu.models import Decoder, ModelConfig, generate
from mla_edu.serving import Engine

WIDTHS = {"q_lora_rank": 7, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
MLA = MLAConfig(hidden_size=24, num_attention_heads=3, **WIDTHS)
GQA = GQAConfig(hidden_size=24, num_attention_heads=3, num_key_value_heads=3, head_dim=8)
PARTS = {"num_attention_heads": 3, **WIDTHS}
MODEL = ModelConfig(vocab_size=32, hidden_size=24, intermediate_size=32, layers=["mla"], mla=PARTS)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (MultiHeadLatentAttention, MLAConfig),
        (GroupedQueryAttention, GQAConfig),
        (Mamba2, Mamba2Config),
        (MixtureOfExperts, MoEConfig),
        (Decoder, ModelConfig),
    ],
)
def test_a_layer_is_made_of_its_own_configuration(kind, config):
    for wrong in (MODEL, GQA, MLA, None, {"hidden_size": 24}, "mla"):
        if not isinstance(wrong, config):
            given = type(wrong).__name__
            with pytest.raises(TypeError, match=f"config is a {given}; expected a {config.__name__}"):
                kind(wrong)


@pytest.mark.parametrize("layer", [MultiHeadLatentAttention(MLA), GroupedQueryAttention(GQA)])
def test_hidden_states_are_a_tensor(layer):
    for wrong in (None, "x", [[1.0]], 3):
        with pytest.raises(TypeError, match="hidden_states is .*; expected a tensor"):
            layer(wrong)


def test_tokens_are_a_tensor_of_integers():
    model = Decoder(MODEL)
    for wrong in (None, [1, 2]):
        with pytest.raises(TypeError, match="tokens is .*; expected a tensor"):
            model(wrong)
    with pytest.raises(ValueError, match="tokens is torch.bool of shape"):
        model(torch.zeros(1, 2, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(1, 0, 24), (0, 3, 24), (0, 0, 24)])
@pytest.mark.parametrize("mode", ["expanded", "absorbed", "auto", None])
def test_no_tokens_give_no_outputs(shape, mode):
    layer, options = GroupedQueryAttention(GQA), {}
    if mode is not None:
        layer, options = MultiHeadLatentAttention(MLA), {"mode": mode}
    assert layer(torch.zeros(shape), **options).shape == shape


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("config", [MLA, GQA])
def test_no_new_tokens_leave_a_cache_as_it_is(config, paged):
    mla = config is MLA
    layer = MultiHeadLatentAttention(config) if mla else GroupedQueryAttention(config)
    if paged:
        table = PageTable(4, 8, batch_size=2)
        cache = (PagedLatentCache if mla else PagedKVCache)(config, table, dtype=torch.float32)
    else:
        cache = (LatentCache if mla else KVCache)(config, 2, 9, torch.float32)
    for options in [{"mode": "expanded"}, {"mode": "absorbed"}] if mla else [{}]:
        layer(torch.randn(2, 3, 24), cache, **options)
        assert layer(torch.randn(2, 0, 24), cache, **options).shape == (2, 0, 24)
    assert cache.lengths == [6, 6] if mla else [3, 3]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": "1"}, TypeError, "temperature is '1'; expected a number"),
        ({"temperature": True}, TypeError, "temperature is True; expected a number"),
        ({"top_p": None}, TypeError, "top_p is None; expected a number"),
        ({"stop_tokens": 3}, TypeError, "stop_tokens is 3; expected several tokens"),
        ({"max_new_tokens": "1"}, ValueError, "max_new_tokens is '1'; expected an integer"),
    ],
)
def test_how_tokens_are_chosen_is_checked_before_any_is(options, error, message):
    with pytest.raises(error, match=message):
        generate(Decoder(MODEL), [1], **options)


def test_a_word_is_no_flag():
    for name in ("share_prefixes", "capture"):
        with pytest.raises(TypeError, match=f"{name} is 'no'; expected True or False"):
            Engine(Decoder(MODEL), num_pages=4, **{name: "no"})
