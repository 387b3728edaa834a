"""The decode steps that are measured, and what each must move and compute at least."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, PositiveInt, field_validator

from mla_edu.config import MLAConfig
from mla_edu.cost import (
    CacheFormat,
    Cost,
    attention_cost,
    bytes_per_number,
    kernel_cost,
    kv_cache_bytes,
    number_format,
    projection_cost,
)
from mla_edu.registry import get_model

LAYER = cast(MLAConfig, get_model("deepseek-v3").config)  # latent 512, rotary 64, as in all of DeepSeek's models
RANK = LAYER.kv_lora_rank
ROPE = LAYER.qk_rope_head_dim
PAGE_SIZE = 64
LITE = cast(MLAConfig, get_model("deepseek-v2-lite").config)  # the layer that is timed whole


class Case(BaseModel):
    """Attention of one decode step of one layer over pages, all sequences of one length: what the kernel does."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    dtypes: ClassVar[tuple[CacheFormat, ...]] = ("bf16", "fp16", "fp8_mla")

    heads: PositiveInt
    s_q: PositiveInt  # new tokens
    context: PositiveInt  # cached tokens of each sequence, the new ones included
    batch: PositiveInt
    dtype: CacheFormat

    @field_validator("dtype")
    @classmethod
    def _known(cls, dtype: CacheFormat) -> CacheFormat:
        if dtype not in cls.dtypes:
            raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(cls.dtypes)}")
        return dtype

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self)

    @property
    def rows(self) -> int:
        """Queries of a sequence: heads times new tokens."""
        return self.heads * self.s_q

    @property
    def cache_bytes(self) -> int:
        """Of all sequences."""
        return kv_cache_bytes(LAYER, self.context, self.batch, self.dtype)

    @property
    def cost(self) -> Cost:
        """What must be computed and moved at least."""
        return kernel_cost(LAYER, self.rows, self.context, self.batch, self.dtype)

    @property
    def bytes(self) -> int:
        """The cache and the queries read once, the results written once, in 16 bit."""
        return self.cost.bytes

    @property
    def flops(self) -> int:
        """Of scores and weighted sum, every query with every key."""
        return self.cost.flops


class LayerCase(Case):
    """One decode step of a whole layer of DeepSeek-V2-Lite, projections included: one sequence, one new token.

    Here ``context`` are the tokens that are cached before the step. The weights are in the cache's format.
    """

    dtypes: ClassVar[tuple[CacheFormat, ...]] = ("fp32", "bf16", "fp16")

    heads: Literal[16] = 16
    s_q: Literal[1] = 1
    batch: Literal[1] = 1

    @property
    def cache_bytes(self) -> int:
        """Cached tokens and the new one."""
        return kv_cache_bytes(LITE, self.context + self.s_q, self.batch, self.dtype)

    @property
    def weight_bytes(self) -> int:
        """Of all projections and of the latent's norm."""
        dtype = number_format(self.dtype)
        return projection_cost(LITE, dtype=dtype).bytes + LITE.kv_lora_rank * bytes_per_number(dtype)

    @property
    def cost(self) -> Cost:
        """Cache and weights are read once; attention is absorbed."""
        attention = attention_cost(LITE, self.context, self.s_q, self.batch, self.dtype, mode="absorbed")
        projections = projection_cost(LITE, self.s_q, self.batch, number_format(self.dtype))
        return Cost(attention.flops + projections.flops, self.cache_bytes + self.weight_bytes)


Axes = Mapping[str, Sequence[Any]]
AnyCase = TypeVar("AnyCase", bound=Case)

# What matters most comes first, should time run out; small cases before large ones.
GRID: Axes = {
    "s_q": (1, 2),
    "dtype": ("bf16", "fp8_mla"),
    "heads": (16, 128, 32, 64),
    "batch": (1, 8, 32, 128),
    "context": (2**10, 2**12, 2**14, 2**16, 2**17),
}
# A few steps that an interpreter does in seconds; the length is no multiple of a page.
TOY: Axes = {"s_q": (1, 2), "dtype": ("bf16", "fp8_mla"), "heads": (16,), "batch": (2,), "context": (150,)}

# Every CPU multiplies fp32 at full speed; bf16 only those that have units for it (AMX or AVX512-BF16).
LAYER_GRID: Axes = {"dtype": ("fp32", "bf16"), "context": (2**10, 2**12, 2**14)}
LAYER_TOY: Axes = {"dtype": ("fp32",), "context": (150,)}


def cases(axes: Axes, kind: type[AnyCase] = Case) -> Iterator[AnyCase]:  # type: ignore[assignment]
    """Every combination of the values of the axes, the first axis outermost.

    Args:
        axes: values of the fields of a case.
        kind: ``Case`` or ``LayerCase``.

    Raises:
        ValueError: a value out of range.
    """
    for values in itertools.product(*axes.values()):
        yield kind(**dict(zip(axes, values, strict=True)))
