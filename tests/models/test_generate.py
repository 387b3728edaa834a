"""Generation: the tokens of the full pass, drawn as asked, through a cache that holds what it should."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from mla_edu.models import Decoder, ModelConfig, generate, save_model
from mla_edu.models.generate import choose
from mla_edu.testing import randomize

MLA = {
    "num_attention_heads": 3,
    "q_lora_rank": 9,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
CONFIG = ModelConfig(vocab_size=53, hidden_size=24, intermediate_size=32, layers=["mla", "mla"], mla=MLA)
PROMPT = [5, 17, 3, 9]


@pytest.fixture(scope="module")
def model():
    return randomize(Decoder(CONFIG, dtype=torch.float64))


@torch.no_grad()
def test_greedy_tokens_are_those_of_the_full_pass(model):
    tokens = list(PROMPT)
    for _ in range(12):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert list(generate(model, PROMPT, max_new_tokens=12)) == tokens[len(PROMPT) :]


@torch.no_grad()
def test_transformers_writes_the_same_text(model, tmp_path):
    save_model(model, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    text = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert list(generate(model, PROMPT, max_new_tokens=12)) == text[0, len(PROMPT) :].tolist()


def test_tokens_come_as_they_are_chosen_and_the_cache_holds_all_but_the_last(model):
    cache = model.new_cache(max_seq_len=20)
    stream = generate(model, PROMPT, max_new_tokens=9, cache=cache)
    for number in range(9):
        next(stream)
        assert cache.length == len(PROMPT) + number
    with pytest.raises(StopIteration):
        next(stream)


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(model):
    text = list(generate(model, PROMPT, max_new_tokens=12))
    stop = next(token for token in text[3:] if token not in text[:3])
    assert list(generate(model, PROMPT, max_new_tokens=12, stop_tokens={stop})) == text[: text.index(stop)]


def test_a_seed_decides_the_draws(model):
    def drawn(seed):
        return list(generate(model, PROMPT, max_new_tokens=12, temperature=2.0, seed=seed))

    assert drawn(1) == drawn(1) != drawn(2)


def test_draws_have_the_probabilities_of_the_softmax():
    logits, generator = torch.tensor([0.0, 1.0, 2.0, -1.0]), torch.Generator().manual_seed(0)
    draws = torch.tensor([choose(logits, 0.7, 1.0, generator) for _ in range(20_000)])
    counts = draws.bincount(minlength=4) / len(draws)
    assert (counts - (logits / 0.7).softmax(-1)).abs().max() < 0.015


@pytest.mark.parametrize(("temperature", "top_p"), [(1e-38, 1.0), (5e-324, 1.0), (1.0, 1e-320), (1e-300, 1e-300)])
def test_numbers_too_small_for_float32_draw_the_likeliest(temperature, top_p):
    logits = torch.tensor([-700.0, 3.0, 500.0, 499.0])
    assert {choose(logits, temperature, top_p) for _ in range(20)} == {2}


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, {2}), (0.7, {2, 1}), (0.95, {2, 1, 0}), (1.0, {2, 1, 0, 3})])
def test_as_few_tokens_are_drawn_as_have_the_probability_together(top_p, kept):
    logits = torch.tensor([0.09, 0.3, 0.6, 0.01]).log()
    generator = torch.Generator().manual_seed(0)
    assert {choose(logits, 1.0, top_p, generator) for _ in range(2000)} == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_tokens": []}, "prompt_tokens is empty"),
        ({"prompt_tokens": [53]}, "a token of prompt_tokens is 53; expected an integer from 0 to 52"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1; expected an integer of at least 0"),
        ({"temperature": -0.1}, "temperature is -0.1; expected at least 0"),
        ({"temperature": float("nan")}, "temperature is nan; expected at least 0"),
        ({"top_p": 0}, "top_p is 0; expected more than 0 and at most 1"),
    ],
)
def test_bad_input_is_said_at_the_call(model, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **{"prompt_tokens": PROMPT} | options)


def test_a_cache_that_is_too_small_is_refused_before_anything_is_computed(model):
    cache = model.new_cache(max_seq_len=8)
    with pytest.raises(
        ValueError, match=r"cache holds \[0\] tokens of 8; expected an empty one of one sequence, for 4"
    ):
        generate(model, PROMPT, max_new_tokens=5, cache=cache)
    assert cache.length == 0
    assert len(list(generate(model, PROMPT, max_new_tokens=4, cache=cache))) == 4


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_no_numbers_are_one_error(temperature):
    broken = randomize(Decoder(CONFIG, dtype=torch.float64))
    with torch.no_grad():
        broken.lm_head.weight[7, 0] = torch.nan
    with pytest.raises(ValueError, match="the largest logit is nan; expected a finite one: a weight may be damaged"):
        next(generate(broken, PROMPT, temperature=temperature))


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5])
def test_a_seed_out_of_range(model, seed):
    with pytest.raises(ValueError, match=f"seed is {seed}; expected an integer from 0 to"):
        generate(model, PROMPT, seed=seed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gpt"}, "model is a str; expected a Decoder"),
        ({"cache": 1}, "cache is a int; expected a ModelCache, from model.new_cache"),
        ({"prompt_tokens": 3}, "prompt_tokens is 3; expected a list of tokens"),
        ({"prompt_tokens": torch.tensor([[1, 2]])}, r"prompt_tokens is tensor\(\[\[1, 2\]\]\); expected a list"),
    ],
)
def test_arguments_of_the_wrong_type_are_one_error(model, options, message):
    with pytest.raises(TypeError, match=message):
        generate(**{"model": model, "prompt_tokens": PROMPT} | options)


@pytest.mark.parametrize("stop_tokens", ["\n", [None], [-1], [True]])
def test_a_stop_token_is_a_token(model, stop_tokens):
    with pytest.raises(ValueError, match="a token of stop_tokens is .*; expected an integer of at least 0"):
        generate(model, PROMPT, stop_tokens=stop_tokens)


@pytest.mark.parametrize("name", ["dtype", "device"])
def test_a_false_value_does_not_stand_for_the_models_own(model, name):
    """``device=0`` is the first GPU, not the device of the weights."""
    with pytest.raises((TypeError, ValueError), match=f"{name} is 0; expected"):
        model.new_cache(max_seq_len=4, **{name: 0})
