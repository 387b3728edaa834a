"""``mla_decode``: checks its arguments, then hands them to one backend."""

import functools
import importlib.util
import math
import os
import sys
import warnings
from types import ModuleType
from typing import Any, Literal, get_args, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mla_edu.cost import fp8_row_bytes

Backend = Literal["triton", "reference", "auto"]
BACKENDS = get_args(Backend)
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@overload
def mla_decode(
    q: Float[Tensor, "batch s_q heads row"],
    kv_cache: Tensor,
    block_table: Int[Tensor, "batch max_pages"],
    seq_lens: Int[Tensor, " batch"],
    *,
    kv_lora_rank: int,
    sm_scale: float,
    causal: bool = True,
    num_splits: int | None = None,
    backend: Backend = "auto",
    return_lse: Literal[False] = False,
    validate: bool = False,
) -> Float[Tensor, "batch s_q heads kv_lora_rank"]: ...


@overload
def mla_decode(
    q: Float[Tensor, "batch s_q heads row"],
    kv_cache: Tensor,
    block_table: Int[Tensor, "batch max_pages"],
    seq_lens: Int[Tensor, " batch"],
    *,
    kv_lora_rank: int,
    sm_scale: float,
    causal: bool = True,
    num_splits: int | None = None,
    backend: Backend = "auto",
    return_lse: Literal[True],
    validate: bool = False,
) -> tuple[Float[Tensor, "batch s_q heads kv_lora_rank"], Float[Tensor, "batch heads s_q"]]: ...


def mla_decode(
    q: Float[Tensor, "batch s_q heads row"],
    kv_cache: Tensor,
    block_table: Int[Tensor, "batch max_pages"],
    seq_lens: Int[Tensor, " batch"],
    *,
    kv_lora_rank: int,
    sm_scale: float,
    causal: bool = True,
    num_splits: int | None = None,
    backend: Backend = "auto",
    return_lse: bool = False,
    validate: bool = False,
) -> (
    Float[Tensor, "batch s_q heads kv_lora_rank"]
    | tuple[Float[Tensor, "batch s_q heads kv_lora_rank"], Float[Tensor, "batch heads s_q"]]
):
    """Attention of absorbed queries over a paged latent cache: one decode step of one layer.

    A sequence of length 0 gives 0 and a log-sum-exp of -inf, and so does a query that sees no key. Memory outside the
    sequences (unused pages, the tail of a last page, entries of the block table past a sequence's end) is not read.
    A NaN in a token, codes of NaN in fp8 included, makes out and log-sum-exp NaN for the queries that see the token,
    and has no effect on others. No gradient flows back.

    Args:
        q: absorbed queries of the ``s_q`` newest tokens, latent part first, then the rotary part; bf16, fp16, fp32, or
            fp64 for the reference alone.
        kv_cache: ``[num_pages, page_size, row]`` in the dtype of ``q``; or uint8 ``[..., 656]`` (for a latent of 512
            and 64 rotary numbers), the layout of ``mla_edu.ops.fp8``, with ``q`` in bf16.
        block_table: int32, the page of each block of ``page_size`` tokens.
        seq_lens: int32, cached tokens, the ``s_q`` new ones included.
        kv_lora_rank: width of the latent, which is key and value.
        sm_scale: what the scores are multiplied by.
        causal: query i sees the keys up to ``seq_len - s_q + i``; else all.
        num_splits: pieces that a sequence is cut into. None chooses by batch, table and GPU. With a number, a
            sequence's result does not depend on the rest of the batch, to the bit.
        backend: ``"triton"``, which on CPU tensors is interpreted; ``"reference"``, plain PyTorch; ``"auto"``: Triton
            for a GPU, the reference for a CPU. What is asked for is used, or the call fails.
        return_lse: also return the natural log-sum-exp of each query's scaled scores, in fp32. That of a query without
            keys is -inf, where FlashMLA's is +inf.
        validate: check ``seq_lens`` and ``block_table`` on a GPU too, which waits for it; on a CPU they always are.

    Returns:
        ``out`` in the dtype of ``q``, or ``(out, lse)``.

    Raises:
        TypeError: an argument is of the wrong type, or a tensor of the wrong dtype.
        ValueError: shapes, devices or values that do not fit, an unknown backend, or a shape that no tile holds.
        ImportError: Triton is not installed, and asked for.
    """
    _check_tensors(q, kv_cache, block_table, seq_lens, kv_lora_rank)
    _check_numbers(sm_scale, num_splits)
    check_backend(backend)
    if q.device.type == "cpu" or validate:
        _check_values(block_table, seq_lens, kv_cache)
    options: dict[str, Any] = {"kv_lora_rank": kv_lora_rank, "sm_scale": sm_scale, "causal": causal}
    if backend == "reference" or (backend == "auto" and q.device.type == "cpu"):
        from mla_edu.kernels import reference

        out, lse = reference.decode(q, kv_cache, block_table, seq_lens, **options)
    else:
        if q.dtype == torch.float64:
            raise TypeError("q is torch.float64; expected backend='reference' with it: Triton's kernels have fp32")
        out, lse = _triton(q.device.type).decode(q, kv_cache, block_table, seq_lens, num_splits=num_splits, **options)
    return (out, lse) if return_lse else out


def check_backend(backend: str) -> None:
    """Raise ``ValueError`` unless there is such a backend."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected 'triton', 'reference' or 'auto'")


def _check_tensors(q: Tensor, kv_cache: Tensor, block_table: Tensor, seq_lens: Tensor, kv_lora_rank: int) -> None:
    tensors = {"q": (q, 4), "kv_cache": (kv_cache, 3), "block_table": (block_table, 2), "seq_lens": (seq_lens, 1)}
    for name, (tensor, ndim) in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; expected a torch.Tensor")
        if tensor.ndim != ndim:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {ndim} dimensions")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {q.device}, as q")
    if q.dtype not in DTYPES:
        raise TypeError(f"q is {q.dtype}; expected {', '.join(map(str, DTYPES))}")
    for name, tensor in (("block_table", block_table), ("seq_lens", seq_lens)):
        if tensor.dtype != torch.int32:
            raise TypeError(f"{name} is {tensor.dtype}; expected torch.int32")
        if tensor.shape[0] != q.shape[0]:
            raise ValueError(f"{name} has {tensor.shape[0]} sequences; expected {q.shape[0]}, as q")

    batch, s_q, num_heads, width = q.shape
    if not s_q or not num_heads:
        raise ValueError(f"q has shape {[batch, s_q, num_heads, width]}; expected at least one token and one head")
    if isinstance(kv_lora_rank, bool) or not isinstance(kv_lora_rank, int):
        raise TypeError(f"kv_lora_rank is {kv_lora_rank!r}; expected an integer")
    if not 1 <= kv_lora_rank <= width:
        raise ValueError(f"kv_lora_rank is {kv_lora_rank}; expected 1 to {width}, the width of q")
    if kv_cache.dtype == torch.uint8:
        if q.dtype != torch.bfloat16:
            raise TypeError(f"q is {q.dtype}; expected torch.bfloat16 with an fp8 cache")
        if (width - kv_lora_rank) % 2:
            raise ValueError(f"the rotary part is {width - kv_lora_rank} wide; expected an even number in an fp8 cache")
        expected = fp8_row_bytes(kv_lora_rank, width - kv_lora_rank)
        if kv_cache.stride(2) != 1 or kv_cache.stride(1) % 4 or kv_cache.stride(0) % 4 or kv_cache.data_ptr() % 16:
            raise ValueError(f"kv_cache has strides {list(kv_cache.stride())}; expected aligned rows of bytes in order")
    else:
        if kv_cache.dtype != q.dtype:
            raise TypeError(f"kv_cache is {kv_cache.dtype}; expected {q.dtype}, as q, or torch.uint8")
        expected = width
    if kv_cache.shape[2] != expected:
        raise ValueError(f"kv_cache has rows of {kv_cache.shape[2]}; expected {expected}")
    if not kv_cache.shape[1]:
        raise ValueError(f"kv_cache has shape {list(kv_cache.shape)}; expected pages of at least one token")


def _check_numbers(sm_scale: float, num_splits: int | None) -> None:
    if isinstance(sm_scale, bool) or not isinstance(sm_scale, int | float):
        raise TypeError(f"sm_scale is {sm_scale!r}; expected a number")
    if not math.isfinite(sm_scale):
        raise ValueError(f"sm_scale is {sm_scale}; expected a finite number")
    if num_splits is not None:
        if isinstance(num_splits, bool) or not isinstance(num_splits, int):
            raise TypeError(f"num_splits is {num_splits!r}; expected an integer or None")
        if not 1 <= num_splits <= 65_535:
            raise ValueError(f"num_splits is {num_splits}; expected 1 to 65535")


def _check_values(block_table: Tensor, seq_lens: Tensor, kv_cache: Tensor) -> None:
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


@functools.cache
def _triton(device_type: str) -> ModuleType:
    """The Triton backend, for one kind of device. Whether Triton interprets is settled when it is first imported."""
    if device_type not in ("cuda", "cpu"):
        raise ValueError(f"q is on {device_type}; expected a CUDA device or the CPU for backend 'triton'")
    if importlib.util.find_spec("triton") is None:
        raise ImportError("backend 'triton' needs Triton: pip install 'mla-edu[kernels]'")
    if device_type == "cpu" and "triton" not in sys.modules and not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    from mla_edu.kernels import launch

    if launch.INTERPRETED:
        warnings.warn("Triton interprets the kernels on the CPU: right, and slow.", stacklevel=4)
    elif device_type == "cpu":
        raise ValueError(
            "q is on cpu, and Triton was imported without its interpreter; "
            "expected TRITON_INTERPRET=1 in the environment before, or backend='reference'"
        )
    return launch
