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
MAMBA = Mamba2Config(hidden_size=24, num_heads=4, head_dim=6, state_size=5)
MOE = MoEConfig(hidden_size=24, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, n_shared_experts=1)
LAYERS = [(MultiHeadLatentAttention, MLA), (GroupedQueryAttention, GQA), (Mamba2, MAMBA)]


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


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "bf16"}, TypeError, "dtype is 'bf16'; expected a torch.dtype"),
        ({"dtype": torch.int8}, ValueError, "dtype is torch.int8; expected torch.float64"),
        ({"dtype": torch.complex64}, ValueError, "dtype is torch.complex64; expected torch.float64"),
        ({"device": "nowhere"}, ValueError, "device is 'nowhere'; expected one that is there"),
        ({"device": True}, TypeError, "device is True; expected a torch.device"),
    ],
)
def test_weights_are_of_a_kind_that_a_layer_computes_with(options, error, message):
    for kind, config in ((MixtureOfExperts, MOE), (Decoder, MODEL), *LAYERS):
        with pytest.raises(error, match=message):
            kind(config, **options)


@pytest.mark.parametrize("seed", [None, "0", 1.5, True, 2**64])
def test_a_seed_is_one_that_torch_takes(seed):
    with pytest.raises(ValueError, match="seed is .*; expected an integer from "):
        Decoder(MODEL, seed=seed)


def test_hidden_states_lie_where_the_weights_do():
    for kind, config in LAYERS:
        with pytest.raises(ValueError, match="hidden_states is on meta; expected cpu, as the weights"):
            kind(config)(torch.zeros(1, 2, 24, device="meta"))


def test_a_mode_is_shown_in_a_line():
    with pytest.raises(ValueError, match="mode is tensor.*; expected 'expanded', 'absorbed' or 'auto'") as caught:
        MultiHeadLatentAttention(MLA)(torch.zeros(1, 2, 24), mode=torch.zeros(3, 3))
    assert "\n" not in str(caught.value)
