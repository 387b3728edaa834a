"""What ``mla_decode`` checks before anything runs: each mistake is one error that names the argument and the value."""

import sys

import torch
from torch import Tensor

from mla_edu.cost import fp8_row_bytes
from mla_edu.validation import shown

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def check_tensors(q: Tensor, kv_cache: Tensor, block_table: Tensor, seq_lens: Tensor, kv_lora_rank: int) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless the tensors fit each other."""
    tensors = (("q", q, 4), ("kv_cache", kv_cache, 3), ("block_table", block_table, 2), ("seq_lens", seq_lens, 1))
    device = q.device if isinstance(q, Tensor) else None
    for name, tensor, ndim in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; expected a torch.Tensor")
        if tensor.ndim != ndim:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {ndim} dimensions")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}; expected {device}, as q")
    dtype, (batch, s_q, num_heads, width) = q.dtype, q.shape
    if dtype not in DTYPES:
        raise TypeError(f"q is {dtype}; expected {', '.join(map(str, DTYPES))}")
    for name, tensor, _ in tensors[2:]:
        if tensor.dtype not in INTEGERS:
            raise TypeError(f"{name} is {tensor.dtype}; expected torch.int32 or torch.int64")
        if tensor.shape[0] != batch:
            raise ValueError(f"{name} has {tensor.shape[0]} sequences; expected {batch}, as q")

    if not s_q or not num_heads:
        raise ValueError(f"q has shape {[batch, s_q, num_heads, width]}; expected at least one token and one head")
    if isinstance(kv_lora_rank, bool) or not isinstance(kv_lora_rank, int):
        raise TypeError(f"kv_lora_rank is {kv_lora_rank!r}; expected an integer")
    if not 1 <= kv_lora_rank <= width:
        raise ValueError(f"kv_lora_rank is {kv_lora_rank}; expected 1 to {width}, the width of q")
    _, page_size, row_size = kv_cache.shape
    cache_dtype, expected = kv_cache.dtype, width
    if cache_dtype == torch.uint8:
        if dtype != torch.bfloat16:
            raise TypeError(f"q is {dtype}; expected torch.bfloat16 with an fp8 cache")
        if (width - kv_lora_rank) % 2:
            raise ValueError(f"the rotary part is {width - kv_lora_rank} wide; expected an even number in an fp8 cache")
        expected = fp8_row_bytes(kv_lora_rank, width - kv_lora_rank)
        page, row, number = kv_cache.stride()
        if number != 1 or row % 4 or page % 4 or kv_cache.data_ptr() % 16:
            raise ValueError(f"kv_cache has strides {[page, row, number]}; expected aligned rows of bytes in order")
    elif cache_dtype != dtype:
        raise TypeError(f"kv_cache is {cache_dtype}; expected {dtype}, as q, or torch.uint8")
    if row_size != expected:
        raise ValueError(f"kv_cache has rows of {row_size}; expected {expected}")
    if not page_size:
        raise ValueError(f"kv_cache has shape {list(kv_cache.shape)}; expected pages of at least one token")


def check_numbers(sm_scale: float, num_splits: int | None) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless both are numbers that mean something."""
    if isinstance(sm_scale, bool) or not isinstance(sm_scale, int | float):
        raise TypeError(f"sm_scale is {sm_scale!r}; expected a number")
    if not abs(sm_scale) <= sys.float_info.max:
        raise ValueError(f"sm_scale is {shown(sm_scale)}; expected a finite number")
    if num_splits is not None:
        if isinstance(num_splits, bool) or not isinstance(num_splits, int):
            raise TypeError(f"num_splits is {num_splits!r}; expected an integer or None")
        if not 1 <= num_splits <= 65_535:
            raise ValueError(f"num_splits is {num_splits}; expected 1 to 65535")


def check_values(block_table: Tensor, seq_lens: Tensor, kv_cache: Tensor) -> None:
    """Raise ``ValueError`` unless every length fits the table, and every page that is used is one of the pool."""
    num_pages, page_size, _ = kv_cache.shape
    longest = block_table.shape[1] * page_size
    wrong = (seq_lens < 0) | (seq_lens > longest)
    if wrong.any():
        b = int(wrong.int().argmax())
        raise ValueError(f"seq_lens[{b}] is {seq_lens[b]}; expected 0 to {longest}, what block_table can hold")
    used = torch.arange(block_table.shape[1], device=seq_lens.device) * page_size < seq_lens[:, None]
    wrong = used & ((block_table < 0) | (block_table >= num_pages))
    if wrong.any():
        b, i = wrong.nonzero()[0].tolist()
        raise ValueError(f"block_table[{b}, {i}] is {block_table[b, i]}; expected 0 to {num_pages - 1}")


def check_buffers(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    kv_lora_rank: int,
    *,
    out: Tensor | None,
    lse: Tensor | None,
    workspace: Tensor | None,
) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless the buffers can be written to without touching anything else."""
    if out is None and lse is None and workspace is None:
        return
    dtype, device, (batch, s_q, num_heads, _) = q.dtype, q.device, q.shape
    lse_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    taken = [
        ("q", *_stretch(q)),
        ("kv_cache", *_stretch(kv_cache)),
        ("block_table", *_stretch(block_table)),
        ("seq_lens", *_stretch(seq_lens)),
    ]
    for name, buffer, wanted, shape in (
        ("out", out, dtype, (batch, s_q, num_heads, kv_lora_rank)),
        ("lse", lse, lse_dtype, (batch, num_heads, s_q)),
        ("workspace", workspace, torch.uint8, None),
    ):
        if buffer is None:
            continue
        if not isinstance(buffer, Tensor):
            raise TypeError(f"{name} is a {type(buffer).__name__}; expected a torch.Tensor or None")
        if buffer.dtype != wanted:
            raise TypeError(f"{name} is {buffer.dtype}; expected {wanted}")
        if buffer.device != device:
            raise ValueError(f"{name} is on {buffer.device}; expected {device}, as q")
        if shape is not None and buffer.shape != shape:
            raise ValueError(f"{name} has shape {list(buffer.shape)}; expected {list(shape)}")
        if shape is None and buffer.ndim != 1:
            raise ValueError(f"{name} has shape {list(buffer.shape)}; expected one dimension")
        start, end = _stretch(buffer)
        if start % 16 or not buffer.is_contiguous():
            raise ValueError(
                f"{name} has strides {list(buffer.stride())}; expected it contiguous, at a multiple of 16 bytes"
            )
        for other, other_start, other_end in taken:
            if start < other_end and other_start < end:
                raise ValueError(f"{name} shares memory with {other}; expected memory of its own")
        taken.append((name, start, end))


def _stretch(tensor: Tensor) -> tuple[int, int]:
    """Where the memory from the first to the last number of a tensor begins and ends; twice 0 if it has none."""
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.nbytes
    count = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + count * tensor.element_size()
