"""How much of the engine is measured, and on what model."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mla_edu.bench.grid import LITE
from mla_edu.models import Decoder, ModelConfig
from mla_edu.testing import randomize

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        model: what is served.
        dtype: of its weights. In float32 all write the same text, which is checked; in bf16 up to rounding.
        texts: how many at a time, and how many tokens their prompts have.
        new_tokens: that each is written on with.
        shared_tokens: that prompts begin with alike, where their first tokens are timed; and that are cached where
            guesses are verified.
        own_tokens: of these prompts, behind the shared ones.
        most_guesses: that a step verifies.
        max_batch_tokens: of a step, where prompts are long or many.
        expanded_pages: of keys and values, in whose memory requests run at a time.
        page_size: of these pages.
        at_once: tokens of the prompts of these requests, and those that they are written on with.
        at_once_rounds: of these requests, at most.
        requests: of a scheduler without a model.
        longest_prompt: of these.
    """

    model: ModelConfig
    dtype: Literal["fp32", "bf16"]
    texts: tuple[tuple[int, int], ...]
    new_tokens: int
    shared_tokens: int
    own_tokens: int
    most_guesses: int
    max_batch_tokens: int
    expanded_pages: int
    page_size: int
    at_once: tuple[int, int]
    at_once_rounds: int
    requests: int
    longest_prompt: int


def _config(vocab_size: int, inner: int, mla: dict[str, Any], moe: dict[str, Any], num_layers: int = 2) -> ModelConfig:
    """A dense layer and others of experts, as those of DeepSeek-V2-Lite."""
    routing = {"num_experts_per_tok": 6, "n_shared_experts": 2, "scoring_func": "softmax", "norm_topk_prob": False}
    kinds: dict[str, Any] = {"layers": ("mla",) * num_layers, "feed_forward": ("dense",) + ("moe",) * (num_layers - 1)}
    values: dict[str, Any] = {**kinds, "mla": mla}
    values |= {"hidden_size": mla["hidden_size"], "intermediate_size": inner, "moe": routing | moe}
    return ModelConfig(vocab_size=vocab_size, **values)


FULL = Size(  # the widths of DeepSeek-V2-Lite; of its 27 layers two, of its 64 experts a quarter
    model=_config(4096, 10944, LITE.model_dump(), {"n_routed_experts": 16, "moe_intermediate_size": 1408}),
    dtype="fp32",
    texts=((1, 64), (4, 64), (16, 64), (1, 1024)),
    new_tokens=17,
    shared_tokens=2048,
    own_tokens=64,
    most_guesses=8,
    max_batch_tokens=512,
    expanded_pages=8,
    page_size=16,
    at_once=(24, 8),
    at_once_rounds=100,
    requests=256,
    longest_prompt=1024,
)
GPU = Size(  # DeepSeek-V2-Lite, whole: 15.7e9 random weights; the keys and values take 5 GB
    model=_config(
        102_400, 10_944, LITE.model_dump(), {"n_routed_experts": 64, "moe_intermediate_size": 1408}, num_layers=27
    ),
    dtype="bf16",
    texts=((1, 512), (4, 512), (16, 512), (64, 512)),
    new_tokens=33,
    shared_tokens=2048,
    own_tokens=64,
    most_guesses=8,
    max_batch_tokens=32_768,
    expanded_pages=288,
    page_size=64,
    at_once=(1000, 24),
    at_once_rounds=1,
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
    dtype="fp32",
    texts=((1, 5), (2, 9)),
    new_tokens=4,
    shared_tokens=128,
    own_tokens=3,
    most_guesses=2,
    max_batch_tokens=512,
    expanded_pages=4,
    page_size=16,
    at_once=(24, 8),
    at_once_rounds=100,
    requests=5,
    longest_prompt=20,
)


def random_model(size: Size, device: torch.device) -> Decoder:
    """The model of a size, its weights drawn where they lie."""
    model = Decoder(size.model, dtype=DTYPES[size.dtype], device="meta").to_empty(device=device).requires_grad_(False)
    if device.type == "cpu":
        return randomize(model)
    generator = torch.Generator(device).manual_seed(0)
    for weight in model.parameters():
        weight.normal_(std=weight.shape[-1] ** -0.5 if weight.ndim > 1 else 1, generator=generator)
    return model


class NoModel(Decoder):
    """A model of two tokens that computes nothing: what is left of a step is the engine's own."""

    def __init__(self, device: torch.device) -> None:
        widths = {"kv_lora_rank": 1, "qk_nope_head_dim": 1, "qk_rope_head_dim": 2, "v_head_dim": 1, "q_lora_rank": None}
        mla: Any = {"num_attention_heads": 1, **widths}
        config = ModelConfig(vocab_size=2, hidden_size=1, intermediate_size=1, layers=("mla",), mla=mla)
        super().__init__(config, device=device)

    def hidden_states(self, tokens: Tensor, cache: Any = None, steps: Any = ()) -> Tensor:  # noqa: ARG002
        """Zeros."""
        return torch.zeros(*tokens.shape, 1, device=tokens.device)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros(*hidden_states.shape[:-1], 2, device=hidden_states.device)
