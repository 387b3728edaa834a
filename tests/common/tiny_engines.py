"""Small models, what a plain loop writes with them, and drafters of any quality: what an engine is held to."""

import random
from functools import cache

import torch

from mla_edu.models import Decoder, ModelConfig
from mla_edu.serving import Drafter
from mla_edu.testing import randomize

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
    "mtp": {"layers": ["mla", "mla"], "mla": MLA, "num_mtp_layers": 1},
    "gqa": {"layers": ["gqa", "gqa"], "gqa": GQA},
    "window": {"layers": ["gqa", "gqa"], "gqa": GQA | {"sliding_window": 5}},
    "hybrid": {"layers": ["mamba2", "mla"], "mla": MLA, "mamba2": MAMBA},
}


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


class Guesses(Drafter):
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
