"""The engine writes what the plain loop writes, whatever is shared, cut, preempted or guessed."""

import random
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_edu.cache import StateCache
from mla_edu.cost import cheaper_mode
from mla_edu.layers import mla as mla_layer
from mla_edu.models import Decoder, ModelConfig
from mla_edu.serving import Engine, NGramDrafter, SamplingParams
from mla_edu.testing import poison, randomize

VOCAB = 11
MLA = {
    "num_attention_heads": 3,
    "q_lora_rank": 9,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
GQA = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
MOE = {"n_routed_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 7, "n_shared_experts": 1}
MAMBA = {"num_heads": 4, "head_dim": 6, "state_size": 5, "n_groups": 2}
SHAPES = {
    "mla": {"layers": ["mla", "mla"], "mla": MLA},
    "mla-moe": {"layers": ["mla", "mla"], "mla": MLA, "moe": MOE, "feed_forward": ["dense", "moe"]},
    "gqa": {"layers": ["gqa", "gqa"], "gqa": GQA},
    "window": {"layers": ["gqa", "gqa"], "gqa": GQA | {"sliding_window": 5}},
    "hybrid": {"layers": ["mamba2", "mla"], "mla": MLA, "mamba2": MAMBA},
}
ATTENTION_ONLY = [name for name in SHAPES if name != "hybrid"]


@cache
def model_of(name):
    config = ModelConfig(vocab_size=VOCAB, hidden_size=24, intermediate_size=32, **SHAPES[name])
    return randomize(Decoder(config, dtype=torch.float64), seed=5).requires_grad_(False)


@cache
def plain(name, prompt, count):
    """Greedy tokens, everything computed again for each."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model_of(name)(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


class Guesses:
    """A drafter of any quality: it knows the right tokens, and mixes in others."""

    def __init__(self, name, num_drafts, share_right, seed):
        self.name, self.num_drafts, self.share_right = name, num_drafts, share_right
        self.random = random.Random(seed)

    def propose(self, requests):
        for request in requests:
            right = plain(self.name, request.prompt, request.params.max_new_tokens + self.num_drafts)
            done = len(request.output)
            count = min(self.random.randint(0, self.num_drafts), max(request.num_left - 1, 0))
            request.drafts = [
                token if self.random.random() < self.share_right else (token + self.random.randint(1, 10)) % VOCAB
                for token in right[done : done + count]
            ]


@st.composite
def workloads(draw, names=tuple(SHAPES)):
    name = draw(st.sampled_from(names))
    page_size = draw(st.sampled_from((1, 3, 16, 64)))
    beginning = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7)) * draw(st.integers(1, 3))
    prompts = draw(
        st.lists(
            st.tuples(st.integers(0, len(beginning)), st.lists(st.integers(0, VOCAB - 1), max_size=4)),
            min_size=1,
            max_size=5,
        )
    )
    prompts = [tuple(beginning[:shared] + own) or (1,) for shared, own in prompts]
    counts = [draw(st.integers(1, 9)) for _ in prompts]
    longest = max(len(prompt) + count - 1 for prompt, count in zip(prompts, counts, strict=True))
    fewest = -(-longest // page_size)
    num_pages = fewest + draw(st.integers(0, 2 + fewest))
    drafter = None
    if name != "hybrid":
        quality = draw(st.sampled_from((None, "ngram", 1.0, 0.7, 0.0)))
        if quality == "ngram":
            drafter = NGramDrafter(draw(st.integers(1, 4)), draw(st.integers(1, 3)))
        elif quality is not None:
            drafter = Guesses(name, draw(st.integers(1, 5)), quality, draw(st.integers(0, 99)))
    options = {
        "num_pages": num_pages,
        "page_size": page_size,
        "mla": draw(st.sampled_from(("latent", "expanded"))),
        "max_batch_tokens": draw(st.sampled_from((1, 2, 3, 5, 8, 64))),
        "share_prefixes": False if name == "hybrid" else draw(st.booleans()),
        "drafter": drafter,
    }
    waits = [draw(st.integers(0, 3)) for _ in prompts]
    return name, prompts, counts, waits, options


def run(name, prompts, counts, waits, options):
    """Requests that come one by one, with steps between them."""
    engine = Engine(model_of(name), **options)
    for layer in engine.cache.layers:
        if not isinstance(layer, StateCache):
            poison(layer)
    requests = []
    for prompt, count, wait in zip(prompts, counts, waits, strict=True):
        requests.append(engine.submit(prompt, SamplingParams(max_new_tokens=count)))
        for _ in range(wait):
            engine.step()
    for _ in range(2000):
        if engine.is_idle:
            break
        engine.step()
    assert engine.is_idle
    assert engine.table.allocator.num_free == options["num_pages"]
    assert engine.table.lengths == [0] * engine.table.batch_size
    return engine, requests


@settings(max_examples=60, deadline=None)
@given(workloads())
def test_greedy_tokens_are_those_of_the_plain_loop(workload):
    name, prompts, counts, *_ = workload
    _, requests = run(*workload)
    for request, prompt, count in zip(requests, prompts, counts, strict=True):
        assert request.output == plain(name, prompt, count)
        assert request.finish_reason == "length"
