"""The decode steps that are measured, and what each must move and compute at least."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

from mla_edu.cost import attention_macs_per_score, kv_cache_bytes
from mla_edu.registry import get_model

LAYER = get_model("deepseek-v3").config  # a latent of 512 and 64 rotary numbers, as in all of DeepSeek's models
RANK = LAYER.kv_lora_rank
ROPE = LAYER.qk_rope_head_dim
FLOPS_PER_SCORE = 2 * attention_macs_per_score(LAYER, "absorbed") // LAYER.num_attention_heads
PAGE_SIZE = 64
Dtype = Literal["bf16", "fp16", "fp8"]


class Case(BaseModel):
    """One decode step of one layer, all sequences of one length."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heads: PositiveInt
    s_q: PositiveInt  # new tokens
    context: PositiveInt  # cached tokens of each sequence, the new ones included
    batch: PositiveInt
    dtype: Dtype  # of the cache

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self)

    @property
    def rows(self) -> int:
        """Queries of a sequence: heads times new tokens."""
        return self.heads * self.s_q

    @property
    def cache_bytes(self) -> int:
        return kv_cache_bytes(LAYER, self.context, self.batch, "fp8_mla" if self.dtype == "fp8" else self.dtype)

    @property
    def bytes(self) -> int:
        """The cache and the queries read once, the results written once, in 16 bit."""
        return self.cache_bytes + 2 * self.batch * self.rows * (RANK + ROPE + RANK)

    @property
    def flops(self) -> int:
        """Of scores and weighted sum, every query with every key."""
        return self.batch * self.rows * self.context * FLOPS_PER_SCORE


# What matters most comes first, should time run out; small cases before large ones.
GRID = {
    "s_q": (1, 2),
    "dtype": ("bf16", "fp8"),
    "heads": (16, 128, 32, 64),
    "batch": (1, 8, 32, 128),
    "context": (2**10, 2**12, 2**14, 2**16, 2**17),
}
# A few steps that an interpreter does in seconds; the length is no multiple of a page.
TOY = {"s_q": (1, 2), "dtype": ("bf16", "fp8"), "heads": (16,), "batch": (2,), "context": (150,)}


def cases(axes: dict[str, Sequence[Any]]) -> Iterator[Case]:
    """Every combination of the values of the axes, the first axis outermost.

    Raises:
        ValueError: a value out of range.
    """
    for values in itertools.product(*axes.values()):
        yield Case(**dict(zip(axes, values, strict=True)))
