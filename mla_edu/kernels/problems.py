"""Random decode steps that are hard to get right by accident, and the bounds that an answer is held to.

Both are those of FlashMLA's tests: shuffled pages, NaN in all memory that no sequence owns, a number that is no page
in every unused entry of the block table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mla_edu.kernels import reference
from mla_edu.ops.fp8 import pack_fp8

NO_PAGE = 2_147_480_000
QUERY_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8_mla": torch.bfloat16}


@dataclass(frozen=True)
class Problem:
    """The arguments of one call of ``mla_decode``."""

    q: Tensor
    kv_cache: Tensor
    block_table: Tensor
    seq_lens: Tensor
    kv_lora_rank: int
    sm_scale: float
    causal: bool

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What ``mla_decode`` takes by position."""
        return self.q, self.kv_cache, self.block_table, self.seq_lens

    @property
    def options(self) -> dict[str, Any]:
        """What ``mla_decode`` takes by name."""
        return {"kv_lora_rank": self.kv_lora_rank, "sm_scale": self.sm_scale, "causal": self.causal}

    def expected(self) -> tuple[Tensor, Tensor]:
        """``(out, lse)`` of the specification, in float64, on the same rounded inputs."""
        kv_cache = self.kv_cache if self.kv_cache.dtype == torch.uint8 else self.kv_cache.double()
        return reference.decode(self.q.double(), kv_cache, self.block_table, self.seq_lens, **self.options)


def random_problem(
    seq_lens: Sequence[int],
    *,
    num_heads: int = 3,
    s_q: int = 1,
    dtype: str = "bf16",
    kv_lora_rank: int = 512,
    qk_rope_head_dim: int = 64,
    page_size: int = 64,
    causal: bool = True,
    strided: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Problem:
    """A decode step over ragged sequences whose pages lie anywhere in the pool.

    Args:
        seq_lens: tokens of each sequence; 0 is allowed.
        num_heads: of queries.
        s_q: new tokens.
        dtype: of the cache: "fp32", "fp16", "bf16" or "fp8_mla", the fp8 layout; queries are of the same, or bf16.
        kv_lora_rank: width of the latent.
        qk_rope_head_dim: width of the rotary part; 0 is allowed.
        page_size: tokens in a page.
        causal: as in ``mla_decode``.
        strided: all tensors are views into wider ones.
        seed: of the numbers and of where pages lie.
        device: of all tensors.

    Raises:
        ValueError: unknown dtype.
    """
    if dtype not in QUERY_DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected {', '.join(QUERY_DTYPES)}")
    generator = torch.Generator().manual_seed(seed)
    width, batch = kv_lora_rank + qk_rope_head_dim, len(seq_lens)
    pages = [-(-length // page_size) for length in seq_lens]
    max_pages, num_pages = max(pages) + 2, sum(pages) + 3

    def numbers(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / 10).clamp(-1, 1).to(QUERY_DTYPES[dtype])

    q = numbers(batch, s_q, num_heads, width)
    rows = numbers(num_pages * page_size, width)
    # A row that a mistake reads instead of another shows: some tokens matter far more than others.
    rows[::7] *= 4
    owned = torch.zeros(num_pages * page_size, dtype=torch.bool)
    block_table = torch.full((batch, max_pages), NO_PAGE, dtype=torch.int32)
    free = torch.randperm(num_pages, generator=generator).tolist()
    for b, (length, count) in enumerate(zip(seq_lens, pages, strict=True)):
        mine, free = free[:count], free[count:]
        block_table[b, :count] = torch.tensor(mine, dtype=torch.int32)
        for i, page in enumerate(mine):
            owned[page * page_size : page * page_size + min(page_size, length - i * page_size)] = True
    if dtype == "fp8_mla":
        packed = pack_fp8(rows, kv_lora_rank)
        packed[~owned] = 0xFF  # NaN in e4m3, in fp32 and in bf16
        rows = packed
    else:
        rows[~owned] = float("nan")
    kv_cache, lens = rows.unflatten(0, (num_pages, page_size)), torch.tensor(seq_lens, dtype=torch.int32)
    q, kv_cache, block_table, lens = (tensor.to(device) for tensor in (q, kv_cache, block_table, lens))
    if strided:
        q, kv_cache, block_table, lens = map(_inside_a_wider, (q, kv_cache, block_table, lens))
    scale = (128 + qk_rope_head_dim) ** -0.5 * 4  # scores large enough that the softmax is not flat
    return Problem(q, kv_cache, block_table, lens, kv_lora_rank, sm_scale=scale, causal=causal)


def _inside_a_wider(tensor: Tensor) -> Tensor:
    """The same numbers as a view of a tensor twice as large in its second dimension (or the only one)."""
    dim = min(1, tensor.ndim - 1)
    return torch.stack((tensor, torch.zeros_like(tensor)), dim=dim).select(dim, 0)


def check_answer(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Raise ``AssertionError`` unless out and lse are as near as FlashMLA's tests ask of its own kernels.

    Out within 8e-4 or 2.01/128 of the value, lse within 1e-6 or 8.01/65536 of it, number by number; infinities and NaN
    in the same places; and the direction of all of out within 5e-6 in cosine.
    """
    bounds = {"out": (8e-4, 2.01 / 128), "lse": (1e-6, 8.01 / 65536)}
    for (name, (absolute, relative)), got, want in zip(bounds.items(), actual, expected, strict=True):
        got = got.to(want)
        if got.shape != want.shape:
            raise AssertionError(f"{name} has shape {list(got.shape)}; expected {list(want.shape)}")
        if not torch.equal(got.isinf(), want.isinf()) or not torch.equal(got.isnan(), want.isnan()):
            raise AssertionError(f"{name} has infinities or NaN in the wrong places")
        error = (got - want).abs()[want.isfinite()]
        bound = torch.maximum(torch.full_like(error, absolute), relative * want.abs()[want.isfinite()])
        if (error > bound).any():
            raise AssertionError(f"{name} is off by up to {error.max():.2g} in {(error > bound).sum()} places")
    finite = expected[0].isfinite()
    got, want = actual[0][finite].double(), expected[0][finite].double()
    if (size := (got**2 + want**2).sum()) and (distance := 1 - 2 * (got * want).sum() / size) > 5e-6:
        raise AssertionError(f"out has a cosine distance of {distance:.2g}")
