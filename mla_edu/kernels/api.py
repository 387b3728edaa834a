"""``mla_decode``: checks its arguments, then hands them to one backend."""

import functools
import importlib
import importlib.util
import math
import os
import sys
import warnings
from types import ModuleType
from typing import Literal, get_args, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mla_edu.kernels.checks import check_buffers, check_numbers, check_tensors, check_values
from mla_edu.validation import check_flag

Backend = Literal["triton", "gluon", "reference", "auto"]
BACKENDS = get_args(Backend)


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
    return_lse_base_on_e: bool = True,
    validate: bool = False,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    workspace: Tensor | None = None,
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
    return_lse_base_on_e: bool = True,
    validate: bool = False,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    workspace: Tensor | None = None,
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
    return_lse_base_on_e: bool = True,
    validate: bool = False,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    workspace: Tensor | None = None,
) -> (
    Float[Tensor, "batch s_q heads kv_lora_rank"]
    | tuple[Float[Tensor, "batch s_q heads kv_lora_rank"], Float[Tensor, "batch heads s_q"]]
):
    """Attention of absorbed queries over a paged latent cache: one decode step of one layer.

    A sequence of length 0 gives 0 and a log-sum-exp of -inf, and so does a query that sees no key. Memory outside the
    sequences (unused pages, the tail of a last page, entries of the block table past a sequence's end) is not read.
    A NaN in a token, codes of NaN in fp8 included, makes out and log-sum-exp NaN for the queries that see the token,
    and has no effect on others. No gradient flows back.

    Every tensor may be a view with strides of its own. Of parts that lie apart, ``join_rows`` makes rows without a
    copy. A cache of several key-value heads takes one call for each; of ``pages [num_pages, page_size, heads, row]``::

        for head, queries in enumerate(q.chunk(pages.shape[2], dim=2)):
            out = mla_decode(queries, pages[:, :, head], block_table, seq_lens, ...)

    Args:
        q: absorbed queries of the ``s_q`` newest tokens, latent part first, then the rotary part; bf16, fp16, fp32, or
            fp64 for the reference alone.
        kv_cache: ``[num_pages, page_size, row]`` in the dtype of ``q``; or uint8 ``[..., 656]`` (for a latent of 512
            and 64 rotary numbers), the layout of ``mla_edu.ops.fp8``, with ``q`` in bf16.
        block_table: int32 or int64, the page of each block of ``page_size`` tokens.
        seq_lens: int32 or int64, cached tokens, the ``s_q`` new ones included.
        kv_lora_rank: width of the latent, which is key and value.
        sm_scale: what the scores are multiplied by.
        causal: query i sees the keys up to ``seq_len - s_q + i``; else all.
        num_splits: parts that each sequence is cut into. None fills the GPU: with even shares of the tokens of the
            whole batch, or, in Triton from 64 rows on, with as many parts of each sequence. With a number, a sequence's
            result does not depend on the rest of the batch, to the bit.
        backend: ``"triton"``, which on CPU tensors is interpreted; ``"gluon"``, for GPUs of sm_90, with pages of a
            multiple of 64 tokens, in bf16, or over the fp8 cache with up to 32 heads times new tokens;
            ``"reference"``, plain PyTorch. What is asked for is used, or the call fails. ``"auto"``: the reference for
            a CPU; for a GPU Triton, or Gluon where it runs and was measured to be faster.
        return_lse: also return the log-sum-exp of each query's scaled scores, in fp32. That of a query without keys is
            -inf, where FlashMLA's is +inf.
        return_lse_base_on_e: the log-sum-exp is a natural logarithm; with False, to base 2, which FlashInfer's argument
            of this name has for its default.
        validate: check ``seq_lens`` and ``block_table`` on a GPU too, which waits for it; on a CPU they always are.
        out: where the result is to be written, contiguous, in the dtype of ``q``; None makes a new tensor.
        lse: the same for the log-sum-exp, in fp32 (in fp64 for queries in fp64).
        workspace: memory for partial results, uint8, of ``workspace_bytes`` or more. With all three given, a call
            allocates nothing.

    Returns:
        ``out`` in the dtype of ``q``, or ``(out, lse)``.

    Raises:
        TypeError: an argument is of the wrong type, or a tensor of the wrong dtype.
        ValueError: shapes, devices or values that do not fit, an unknown backend, or a shape that no tile holds.
        ImportError: Triton is not installed, and asked for.
    """
    check_tensors(q, kv_cache, block_table, seq_lens, kv_lora_rank)
    check_numbers(sm_scale, num_splits)
    sm_scale = float(sm_scale)  # an integer may be larger than what torch takes
    check_flag("causal", causal)
    check_flag("return_lse", return_lse)
    check_flag("return_lse_base_on_e", return_lse_base_on_e)
    check_flag("validate", validate)
    check_backend(backend)
    check_buffers(q, kv_cache, block_table, seq_lens, kv_lora_rank, out=out, lse=lse, workspace=workspace)
    if validate or q.is_cpu:
        check_values(block_table, seq_lens, kv_cache)
    chosen = _choose(backend, q, kv_cache, block_table, kv_lora_rank)
    if chosen is None:
        from mla_edu.kernels import reference

        found = reference.decode(
            q, kv_cache, block_table, seq_lens, kv_lora_rank=kv_lora_rank, sm_scale=sm_scale, causal=causal
        )
        out, lse = (new if given is None else given.copy_(new) for given, new in zip((out, lse), found, strict=True))
    else:
        out, lse = chosen.decode(
            q, kv_cache, block_table, seq_lens, kv_lora_rank=kv_lora_rank, sm_scale=sm_scale, causal=causal,
            num_splits=num_splits, out=out, lse=lse, workspace=workspace,
        )  # fmt: skip
    if not return_lse_base_on_e:
        lse.mul_(math.log2(math.e))
    return (out, lse) if return_lse else out


def workspace_bytes(
    q: Float[Tensor, "batch s_q heads row"],
    kv_cache: Tensor,
    block_table: Int[Tensor, "batch max_pages"],
    *,
    kv_lora_rank: int,
    num_splits: int | None = None,
    backend: Backend = "auto",
) -> int:
    """Bytes of ``mla_decode``'s workspace for tensors of these shapes, whatever the lengths; 0 where it needs none.

    Raises:
        TypeError: an argument is of the wrong type, or a tensor of the wrong dtype.
        ValueError: shapes or devices that do not fit, an unknown backend, or a shape that no tile holds.
        ImportError: Triton is not installed, and asked for.
    """
    lens = block_table[:, 0] if isinstance(block_table, Tensor) and block_table.ndim == 2 else block_table
    check_tensors(q, kv_cache, block_table, lens, kv_lora_rank)
    check_numbers(1.0, num_splits)
    check_backend(backend)
    chosen = _choose(backend, q, kv_cache, block_table, kv_lora_rank)
    return 0 if chosen is None else int(chosen.workspace_bytes(q, kv_cache, block_table, kv_lora_rank, num_splits))


def check_backend(backend: str) -> None:
    """Raise ``ValueError`` unless there is such a backend."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected 'triton', 'gluon', 'reference' or 'auto'")


def _choose(backend: str, q: Tensor, kv_cache: Tensor, block_table: Tensor, kv_lora_rank: int) -> ModuleType | None:
    """The module of a backend that can run on these tensors; None for the reference."""
    if backend == "reference" or (backend == "auto" and q.is_cpu):
        return None
    if q.dtype == torch.float64:
        raise TypeError("q is torch.float64; expected backend='reference' with it: Triton's kernels have fp32")
    triton = _triton(q.device.type)
    if backend == "triton":
        return triton
    if reason := triton.why_no_gluon(q.device):
        if backend == "gluon":
            raise ValueError(reason)
        return triton
    gluon = importlib.import_module("mla_edu.kernels.gluon_launch")
    if backend == "auto" and not gluon.is_faster(q):
        return triton
    if reason := gluon.why_not(q, kv_cache, block_table, kv_lora_rank):
        if backend == "gluon":
            raise ValueError(reason)
        return triton
    return gluon


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
