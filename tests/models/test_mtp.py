"""The module for one token further: equal to that of transformers, and loaded from where it was saved."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from mla_edu.cache import KVCache, LatentCache
from mla_edu.models import Decoder, ModelConfig, load_model, save_model
from mla_edu.testing import poison, randomize, relative_error
from tiny_models import MODELS, draw_tokens, their_model

ROUNDED = 1e-5  # their norms, rotations and routers compute in float32
EXACT = 1e-11
TOKENS, CHUNKS = 17, (7, 1, 4, 1, 1, 3)
ONE = {"num_nextn_predict_layers": 1, "num_mtp_layers": 1}
FURTHER = {
    "experts": ("deepseek_v3", MODELS["deepseek_v3"][1]),
    "experts by softmax": ("deepseek_v2", MODELS["deepseek_v2"][1] | ONE),
    "dense": ("youtu", MODELS["youtu"][1] | ONE),
}


class Theirs:
    """A small model of transformers and its module, and what they make of ``tokens``."""

    def __init__(self, family, options):
        self.model = their_model(family, options)
        self.mtp = MtpModel(self.model, 1).double()
        randomize(self.mtp.layers, 2)
        for name, buffer in self.mtp.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(3)) / 4)
        self.cache = MtpCache(config=self.model.config.get_mtp_config())

    def hidden_states(self, tokens):
        """As their generation with ``use_mtp`` takes them."""
        return self.model(tokens, use_cache=False, output_hidden_states=True).hidden_states[-1]

    def further(self, hidden_states, next_tokens):
        """Their module's next hidden states, behind those that its cache holds."""
        start = self.cache.get_seq_length() + 1
        positions = torch.arange(start, start + next_tokens.shape[1])[None]
        return self.mtp.forward_layer(0, hidden_states, positions, self.cache, input_ids=next_tokens)

    def ours(self):
        """Ours of the same file and the same weights."""
        model = Decoder(ModelConfig.from_hf(self.model.config.to_dict(), mtp=True), dtype=torch.float64)
        weights = {name.removeprefix("model."): weight for name, weight in self.model.state_dict().items()}
        if model.lm_head is None:
            del weights["lm_head.weight"]
        for name, weight in self.mtp.layers[0].state_dict().items():
            place = "mtp." + re.sub("^post_norm", "norm", re.sub("^mtp_block", "layer", name))
            weights[place] = weight
        model.load_state_dict(weights)
        return model


@pytest.fixture(params=FURTHER)
def theirs(request):
    return Theirs(*FURTHER[request.param])


@torch.no_grad()
def chain(further, hidden_states, tokens, logits, steps=3):
    """Hidden states along a chain of greedy guesses, each from the hidden state and the guess before it."""
    found = [further(hidden_states, tokens[:, 1:])]
    for _ in range(steps - 1):
        guess = logits(found[-1][:, -1:]).argmax(-1)
        found.append(further(found[-1][:, -1:], guess))
    return torch.cat(found, dim=1)


def drafting(model, batch=2, max_seq_len=TOKENS + 3):
    """A cache of the model, and one of its module over the same table, both full of NaN."""
    cache = model.new_cache(batch, max_seq_len)
    mtp_cache = LatentCache(model.config.mla, dtype=torch.float64, table=cache.table)
    for layer in (*cache.layers, mtp_cache):
        poison(layer)
    return cache, mtp_cache


@torch.no_grad()
def our_chain(model, tokens, chunks):
    """As ``chain``, the model and its module in the same steps over one table; the guesses in steps of their own."""
    cache, mtp_cache = drafting(model)
    found = []
    for piece, following in zip(tokens[:, :-1].split(chunks, 1), tokens[:, 1:].split(chunks, 1), strict=True):
        with cache.step(piece.shape[1]):
            found.append(model.mtp(model.hidden_states(piece, cache), following, model.embed_tokens, mtp_cache))
    for _ in range(2):
        guess = model.logits(found[-1][:, -1:]).argmax(-1)
        found.append(model.mtp(found[-1][:, -1:], guess, model.embed_tokens, mtp_cache))
    return torch.cat(found, dim=1)


def worst(theirs, model):
    """Largest relative error of hidden states, of a whole pass, in uneven chunks and along a chain."""
    tokens = draw_tokens(TOKENS + 1)
    with torch.no_grad():
        expected = chain(theirs.further, theirs.hidden_states(tokens[:, :-1]), tokens, theirs.mtp._project_to_logits)
        whole = model.mtp(model.hidden_states(tokens[:, :-1]), tokens[:, 1:], model.embed_tokens)
        pieces = our_chain(model, tokens, CHUNKS)
    return max(relative_error(whole, expected[:, :TOKENS]), relative_error(pieces, expected))


def test_it_equals_transformers_whole_in_chunks_and_along_a_chain_of_guesses(theirs):
    assert worst(theirs, theirs.ours()) < ROUNDED


@torch.no_grad()
def test_guesses_come_out_of_the_models_own_head(theirs):
    model, tokens = theirs.ours(), draw_tokens(TOKENS + 1)
    hidden_states = model.mtp(model.hidden_states(tokens[:, :-1]), tokens[:, 1:], model.embed_tokens)
    guess, logits, _ = theirs.mtp(
        input_ids=tokens[:, 1:],
        last_hidden_states=theirs.hidden_states(tokens[:, :-1]),
        attention_mask=None,
        position_ids=torch.arange(1, TOKENS + 1)[None],
        mtp_cache=theirs.cache,
    )
    ours = model.logits(hidden_states)
    assert relative_error(ours[:, -1:], logits) < ROUNDED
    assert torch.equal(ours[:, -1:].argmax(-1), guess)


def breakage(model, mistake):
    """Breaks one part of a model with a module."""
    mtp = model.mtp
    match mistake:
        case "sides swapped":
            mtp.eh_proj.weight.data = mtp.eh_proj.weight.data.roll(model.config.hidden_size, dims=1)
        case "token off by one":
            forward = mtp.forward
            mtp.forward = lambda hidden, tokens, *rest: forward(hidden, tokens.roll(1, dims=1), *rest)
        case "hidden state before the final norm":
            model.norm = torch.nn.Identity()
        case "module's own norm":
            mtp.norm.weight.data = model.norm.weight.data
        case "no causal order":
            forward = mtp.forward
            mtp.forward = lambda hidden, tokens, *rest: forward(hidden.flip(1), tokens.flip(1), *rest).flip(1)
        case _:
            norm = getattr(mtp, mistake)
            norm.forward = lambda x: x


@pytest.mark.parametrize(
    "mistake",
    [
        "sides swapped",
        "token off by one",
        "hidden state before the final norm",
        "module's own norm",
        "no causal order",
        "enorm",
        "hnorm",
        "norm",
    ],
)
def test_a_mistake_shows(mistake):
    theirs = Theirs(*FURTHER["experts"])
    model = theirs.ours()
    breakage(model, mistake)
    assert worst(theirs, model) > 1e-2


@torch.no_grad()
def test_guesses_are_taken_back_by_their_number():
    """Three guesses past the text, forgotten; the next step of model and module is as if they had never been."""
    theirs = Theirs(*FURTHER["experts"])
    model, tokens = theirs.ours(), draw_tokens(TOKENS + 1)
    whole = model.mtp(model.hidden_states(tokens[:, :-1]), tokens[:, 1:], model.embed_tokens)
    cache, mtp_cache = drafting(model)
    for start, end in ((0, 9), (9, TOKENS)):
        with cache.step(end - start):
            hidden_states = model.hidden_states(tokens[:, start:end], cache)
            out = model.mtp(hidden_states, tokens[:, start + 1 : end + 1], model.embed_tokens, mtp_cache)
        assert relative_error(out, whole[:, start:end]) < EXACT
        for guess in range(3):
            model.mtp(out[:, -1:], draw_tokens(1, seed=guess), model.embed_tokens, mtp_cache)
        assert cache.length == end + 3
        cache.truncate(end)


def small(**options):
    fixed = {"vocab_size": 53, "hidden_size": 24, "intermediate_size": 32, "rms_norm_eps": 0.01, "num_mtp_layers": 1}
    model = randomize(Decoder(ModelConfig(**fixed | options), dtype=torch.float64))
    for name, buffer in model.named_buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(len(name))) / 4)
    return model


HEADS = {"num_attention_heads": 3}
MLA = HEADS | {"q_lora_rank": 9, "kv_lora_rank": 8, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 6}
MOE = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 7, "n_shared_experts": 1}
GQA = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
DENSE = {"layers": ["mla"] * 2, "mla": MLA}
EXPERTS = DENSE | {"feed_forward": ["dense", "moe"], "moe": MOE}
SAVED = {
    "dense": ("deepseek_v3", DENSE | {"tie_word_embeddings": True}),
    "experts": ("deepseek_v3", EXPERTS),
    "experts by softmax": (
        "deepseek_v2",
        EXPERTS | {"moe": MOE | {"scoring_func": "softmax", "norm_topk_prob": False}},
    ),
    "GQA": ("mla_edu", {"layers": ["gqa"] * 2, "gqa": GQA}),
    "scaled": ("mla_edu", DENSE | {"embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 0.25}),
}
EAGER = {"dtype": torch.float64, "attn_implementation": "eager", "experts_implementation": "eager"}
LEFT_OUT = "layers 2 are left out; they predict further tokens"


@pytest.mark.parametrize("name", SAVED)
@torch.no_grad()
def test_it_is_saved_and_loaded_bit_for_bit_where_it_is_asked_for(tmp_path, name):
    model_type, options = SAVED[name]
    model, tokens = small(**options), draw_tokens(6)
    assert save_model(model, tmp_path / "out") == model_type
    again = load_model(tmp_path / "out", mtp=True)
    assert again.config == model.config
    for (name, weight), (other, same) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(weight, same)
    with pytest.warns(UserWarning, match=LEFT_OUT):
        alone = load_model(tmp_path / "out")
    assert alone.mtp is None
    assert alone.config.num_mtp_layers == 0
    assert torch.equal(alone(tokens), model(tokens))


@pytest.mark.parametrize("name", ["dense", "experts", "experts by softmax"])
@torch.no_grad()
def test_transformers_loads_the_model_before_it_unharmed(tmp_path, name):
    model, tokens = small(**SAVED[name][1]), draw_tokens(9)
    save_model(model, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **EAGER)
    assert relative_error(theirs(tokens, use_cache=False).logits, model(tokens)) < ROUNDED
    behind = type(theirs.model.layers[-1])(theirs.config, len(model.layers))  # what a layer of that number is to them
    assert hasattr(behind.mlp, "experts") == (name != "dense")


@torch.no_grad()
def test_the_factor_on_embeddings_is_on_its_own_too():
    scaled, plain = small(**DENSE, embedding_scale=3.0), small(**DENSE)
    plain.load_state_dict(scaled.state_dict())
    plain.embed_tokens.weight *= 3
    hidden_states, tokens = torch.ones(2, 6, 24, dtype=torch.float64), draw_tokens(6)
    expected = plain.mtp(hidden_states, tokens, plain.embed_tokens)
    assert relative_error(scaled.mtp(hidden_states, tokens, scaled.embed_tokens), expected) < EXACT


@torch.no_grad()
def test_transformers_loads_it_from_the_place_that_deepseek_v3_has_it_in(tmp_path):
    """They look for layer 61 alone, whatever the model."""
    model = small(layers=["mla"] * 61, feed_forward=["dense"] * 60 + ["moe"], mla=MLA, moe=MOE)
    tokens = draw_tokens(TOKENS + 1)
    save_model(model, tmp_path / "out")
    main = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **EAGER)
    theirs = MtpModel.from_pretrained(main)
    hidden_states, positions = model.hidden_states(tokens[:, :-1]), torch.arange(1, TOKENS + 1)[None]
    cache = MtpCache(config=main.config.get_mtp_config())
    expected = theirs.forward_layer(0, hidden_states, positions, cache, input_ids=tokens[:, 1:])
    assert relative_error(model.mtp(hidden_states, tokens[:, 1:], model.embed_tokens), expected) < ROUNDED


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@torch.no_grad()
def test_copies_of_embedding_and_head_are_not_read(tmp_path):
    """DeepSeek-V3's folder has them."""
    model = small(**EXPERTS)
    save_model(model, tmp_path / "out")
    copies = {f"model.layers.2.{name}.weight": torch.zeros(2) for name in ("embed_tokens", "shared_head.head")}
    rewrite(tmp_path / "out", lambda tensors: tensors.update(copies))
    again = load_model(tmp_path / "out", mtp=True)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


def test_a_checkpoint_without_it_is_refused(tmp_path):
    save_model(small(**EXPERTS, num_mtp_layers=0), tmp_path / "none")
    save_model(small(**EXPERTS), tmp_path / "lost")

    def lose(tensors):
        for name in [name for name in tensors if name.startswith("model.layers.2.")]:
            del tensors[name]

    rewrite(tmp_path / "lost", lose)
    for name in ("none", "lost"):
        with pytest.raises(
            ValueError, match=rf"mtp is True; expected a module for further tokens in .*{name}: num_nex"
        ):
            load_model(tmp_path / name, mtp=True)
    save_model(small(**EXPERTS), tmp_path / "part")
    rewrite(tmp_path / "part", lambda tensors: tensors.pop("model.layers.2.shared_head.norm.weight"))
    with pytest.raises(ValueError, match=r"model.layers.2.shared_head.norm.weight is missing; expected shape \[24\]"):
        load_model(tmp_path / "part", mtp=True)


V3 = {"model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168}


def test_the_module_of_deepseek_v3_has_its_size():
    """11.5 billion parameters of its own (DeepSeek-V3, README_WEIGHTS.md), if eh_proj is not counted."""
    assert ModelConfig.from_hf(V3).num_mtp_layers == 0
    model = Decoder(ModelConfig.from_hf(V3, mtp=True), device="meta")
    sizes = {name: weight.numel() for name, weight in model.mtp.named_parameters()}
    assert sizes.pop("eh_proj.weight") == 2 * 7168**2
    assert round(sum(sizes.values()) / 1e9, 1) == 11.5


def test_more_than_one_is_refused():
    with pytest.raises(ValueError, match="num_mtp_layers is 2; expected less than or equal to 1"):
        ModelConfig.from_hf(V3 | {"num_nextn_predict_layers": 2}, mtp=True)


def test_it_starts_beside_the_same_model():
    fixed = {"vocab_size": 53, "hidden_size": 24, "intermediate_size": 32} | DENSE
    more, less = (Decoder(ModelConfig(**fixed, num_mtp_layers=number)).state_dict() for number in (1, 0))
    assert {name for name in more if not name.startswith("mtp.")} == less.keys()
    assert all(torch.equal(weight, more[name]) for name, weight in less.items())


@pytest.mark.parametrize(
    ("shape", "dtype", "tokens", "message"),
    [
        ((2, 3, 23), torch.float64, torch.zeros(2, 3, dtype=int), r"hidden_states has shape \[2, 3, 23\]"),
        ((2, 3, 24), torch.float32, torch.zeros(2, 3, dtype=int), "hidden_states is torch.float32; expected torch.fl"),
        ((2, 3, 24), torch.float64, torch.zeros(2, 2, dtype=int), r"next_tokens has shape \[2, 2\]; expected \[2, 3\]"),
        ((2, 3, 24), torch.float64, torch.full((2, 3), 53), "tokens lie from 53 to 53; expected 0 to 52"),
    ],
)
def test_a_wrong_call_is_one_clear_error(shape, dtype, tokens, message):
    model = small(**DENSE)
    with pytest.raises(ValueError, match=message):
        model.mtp(torch.zeros(shape, dtype=dtype), tokens, model.embed_tokens)


def test_a_cache_of_another_kind_is_refused():
    model, other = small(**DENSE), small(layers=["gqa"], gqa=GQA)
    hidden_states, tokens = torch.zeros(1, 1, 24, dtype=torch.float64), torch.zeros(1, 1, dtype=int)
    with pytest.raises(ValueError, match=r"keys has shape \[1, 1, 3, 9\]; expected \[1, 1, 2, 6\]"):
        model.mtp(hidden_states, tokens, model.embed_tokens, KVCache(other.config.gqa, dtype=torch.float64))
