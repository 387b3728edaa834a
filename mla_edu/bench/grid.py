"""The decode steps that are measured, and what each must move and compute at least."""

import functools
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError, field_validator, model_validator

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
# Of the sequences: all of the context; drawn from 1 to twice the context; one of the context, the others of a 64th.
Lengths = Literal["equal", "uniform", "one-long"]
SHORT = 64  # times as long the long one is


class Case(BaseModel):
    """Attention of one decode step of one layer over pages: what the kernel does."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    dtypes: ClassVar[tuple[CacheFormat, ...]] = ("bf16", "fp16", "fp8_mla")

    heads: PositiveInt
    s_q: PositiveInt  # new tokens
    context: PositiveInt  # cached tokens of a sequence, the new ones included; ``lengths`` says of which
    batch: PositiveInt
    dtype: CacheFormat
    lengths: Lengths = "equal"  # "uniform": drawn up to twice ``context``; "one-long": one such, others a 64th

    @field_validator("dtype")
    @classmethod
    def _known(cls, dtype: CacheFormat) -> CacheFormat:
        if dtype not in cls.dtypes:
            raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(cls.dtypes)}")
        return dtype

    @model_validator(mode="after")
    def _room_for_short_ones(self) -> Self:
        if self.lengths == "one-long" and (self.batch < 2 or self.context % SHORT):
            raise ValueError(
                f"batch is {self.batch} and context {self.context}; expected at least 2 sequences and a multiple of "
                f"{SHORT} tokens with lengths one-long"
            )
        return self

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self if value != "equal")

    @property
    def sequences(self) -> tuple[int, ...]:
        """Cached tokens of each sequence, the new ones included; those that are drawn are always the same."""
        if self.lengths == "uniform":
            draw = random.Random(0)
            return tuple(draw.randint(1, 2 * self.context) for _ in range(self.batch))
        others = self.context if self.lengths == "equal" else self.context // SHORT
        return (self.context, *[others] * (self.batch - 1))

    @property
    def rows(self) -> int:
        """Queries of a sequence: heads times new tokens."""
        return self.heads * self.s_q

    @property
    def cache_bytes(self) -> int:
        """Of all sequences."""
        return kv_cache_bytes(LAYER, sum(self.sequences), 1, self.dtype)

    @property
    def cost(self) -> Cost:
        """What must be computed and moved at least."""
        return _kernel_cost(self)

    @property
    def bytes(self) -> int:
        """The cache and the queries read once, the results written once, in 16 bits."""
        return self.cost.bytes

    @property
    def flops(self) -> int:
        """Of scores and weighted sum, every query with every key."""
        return self.cost.flops


@functools.cache
def _kernel_cost(case: Case) -> Cost:
    counts = Counter(case.sequences)
    costs = [kernel_cost(LAYER, case.rows, length, count, case.dtype) for length, count in counts.items()]
    return sum(costs, Cost(0, 0))


class LayerCase(Case):
    """One decode step of a whole layer of DeepSeek-V2-Lite, projections included: one sequence, one new token.

    Here ``context`` are the tokens that are cached before the step. The weights are in the cache's format.
    """

    dtypes: ClassVar[tuple[CacheFormat, ...]] = ("fp32", "bf16", "fp16")

    heads: Literal[16] = 16
    s_q: Literal[1] = 1
    batch: Literal[1] = 1
    lengths: Literal["equal"] = "equal"

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
    "lengths": ("equal",),
}
ODD: Axes = {**GRID, "s_q": (1,), "heads": (16, 128), "batch": (7, 33, 100), "context": (2**12, 2**16)}
RAGGED: Axes = {**GRID, "lengths": ("uniform",), "s_q": (1,), "batch": (32, 128), "context": (2**12, 2**14)}
ONE_LONG: Axes = {**GRID, "lengths": ("one-long",), "s_q": (1,), "batch": (32,), "context": (2**17,)}
WHOLE = ({**GRID, "s_q": (1,)}, ODD, RAGGED, ONE_LONG, {**GRID, "s_q": (2,)})
# A few steps that an interpreter does in seconds; the lengths are no multiples of a page.
TOY: Axes = {
    "s_q": (1, 2),
    "dtype": ("bf16", "fp8_mla"),
    "heads": (16,),
    "batch": (2,),
    "context": (150,),
    "lengths": ("equal", "uniform"),
}

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
        try:
            yield kind(**dict(zip(axes, values, strict=True)))
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(" ".join([*map(str, first["loc"]), first["msg"]]).removeprefix("Value error, ")) from None


def words(kind: type[Case]) -> dict[str, tuple[str, ...]]:
    """The axes whose values are words, and which they can be."""
    return {"dtype": kind.dtypes, "lengths": get_args(Lengths)}
