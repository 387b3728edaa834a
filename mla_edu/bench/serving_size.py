"""How much of the engine is measured, and on what model."""

from dataclasses import dataclass
from typing import Any

from mla_edu.bench.grid import LITE
from mla_edu.models import ModelConfig


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        model: what is served, in float32.
        texts: how many at a time, and how many tokens their prompts have.
        new_tokens: that each is written on with.
        shared_tokens: that prompts begin with alike, where their first tokens are timed; and that are cached where
            guesses are verified.
        own_tokens: of these prompts, behind the shared ones.
        most_guesses: that a step verifies.
        expanded_pages: of keys and values, in whose memory requests run at a time.
        requests: of a scheduler without a model.
        longest_prompt: of these.
    """

    model: ModelConfig
    texts: tuple[tuple[int, int], ...]
    new_tokens: int
    shared_tokens: int
    own_tokens: int
    most_guesses: int
    expanded_pages: int
    requests: int
    longest_prompt: int


def _config(vocab_size: int, inner: int, mla: dict[str, Any], moe: dict[str, Any]) -> ModelConfig:
    """A dense layer and one of experts, as DeepSeek-V2-Lite's first two."""
    routing = {"num_experts_per_tok": 6, "n_shared_experts": 2, "scoring_func": "softmax", "norm_topk_prob": False}
    values: dict[str, Any] = {"layers": ("mla", "mla"), "feed_forward": ("dense", "moe"), "mla": mla}
    values |= {"hidden_size": mla["hidden_size"], "intermediate_size": inner, "moe": routing | moe}
    return ModelConfig(vocab_size=vocab_size, **values)


FULL = Size(  # the widths of DeepSeek-V2-Lite; of its 27 layers two, of its 64 experts a quarter
    model=_config(4096, 10944, LITE.model_dump(), {"n_routed_experts": 16, "moe_intermediate_size": 1408}),
    texts=((1, 64), (4, 64), (16, 64), (1, 1024)),
    new_tokens=17,
    shared_tokens=2048,
    own_tokens=64,
    most_guesses=8,
    expanded_pages=8,
    requests=256,
    longest_prompt=1024,
)
TOY = Size(
    model=_config(
        61,
        40,
        LITE.model_dump() | {"hidden_size": 32, "num_attention_heads": 4, "kv_lora_rank": 16, "v_head_dim": 8},
        {"n_routed_experts": 8, "moe_intermediate_size": 12},
    ),
    texts=((1, 5), (2, 9)),
    new_tokens=4,
    shared_tokens=128,
    own_tokens=3,
    most_guesses=2,
    expanded_pages=4,
    requests=5,
    longest_prompt=20,
)
