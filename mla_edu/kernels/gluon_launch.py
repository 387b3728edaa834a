"""The Gluon backend: what it needs, and the launch of its stage 1; stage 2 is that of the Triton backend.

There is one kernel for bf16, and one for the fp8 cache with few rows.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from mla_edu.kernels.gluon import seesaw
from mla_edu.kernels.gluon_fp8 import attend_fp8
from mla_edu.kernels.launch import MAX_TOKENS, Results, bytes_of_parts, plan_call, run
from mla_edu.kernels.plan import Plan
from mla_edu.kernels.tiles import Tiles

RANK, ROPE = 512, 64  # of the latent and of the rotary part, which the kernels are written for
PAIR = Tiles(block_h=64, block_n=128, num_warps=4, num_stages=1)  # shares are of pairs of tiles
FEW = [Tiles(block_h, block_n=128, num_warps=8, num_stages=1) for block_h in (16, 32)]  # for the fp8 cache
MANY_ROWS = 32  # more were measured
FASTER_ON = ("NVIDIA H100 80GB HBM3",)  # see the results in ``mla_edu/bench/measured``
OPTIONS = {"num_warps": PAIR.num_warps, "maxnreg": 168}  # for 384 threads; the groups then share them out anew


def why_not(q: Tensor, kv_cache: Tensor, block_table: Tensor, kv_lora_rank: int) -> str | None:
    """Why no Gluon kernel can run on these tensors, which fit each other; None if one can, on a GPU that has it."""
    is_fp8 = kv_cache.dtype == torch.uint8
    if q.dtype != torch.bfloat16 or not (is_fp8 or kv_cache.dtype == torch.bfloat16):
        return f"backend 'gluon' needs bf16, or the fp8 cache; q is {q.dtype}, kv_cache {kv_cache.dtype}"
    if (kv_lora_rank, q.shape[3]) != (RANK, RANK + ROPE):
        return (
            f"backend 'gluon' needs a latent of {RANK} and a rotary part of {ROPE}; "
            f"got {kv_lora_rank} and {q.shape[3] - kv_lora_rank}"
        )
    batch, s_q, num_heads, _ = q.shape
    if is_fp8 and s_q * num_heads > FEW[-1].block_h:
        return (
            f"backend 'gluon' needs {FEW[-1].block_h} rows of queries or fewer with the fp8 cache; "
            f"got {s_q} tokens of {num_heads} heads"
        )
    num_pages, page_size, row_size = kv_cache.shape
    if page_size % 64:
        return f"backend 'gluon' needs pages of a multiple of 64 tokens; got {page_size}"
    if block_table.shape[1] * page_size > MAX_TOKENS:
        return f"backend 'gluon' counts to {MAX_TOKENS} tokens; block_table has room for more"
    page, row, number = kv_cache.stride()
    wrong = row != row_size if is_fp8 else row % 8
    if number != 1 or wrong or page % row or kv_cache.data_ptr() % 16 or num_pages * (page // row) >= 2**31:
        return (
            "backend 'gluon' needs rows of kv_cache in one piece that begin at multiples of 16 bytes, rows of fp8 "
            f"side by side, and pages a whole number of rows apart; got strides {list(kv_cache.stride())}"
        )
    _, token, head, number = q.stride()
    even = (batch == 1 or q.stride(0) == s_q * num_heads * head) and (s_q == 1 or token == num_heads * head)
    if number != 1 or head % 8 or not even or q.data_ptr() % 16:
        return (
            "backend 'gluon' needs rows of q in one piece, evenly spaced, that begin at multiples of 16 bytes; "
            f"got strides {list(q.stride())}"
        )
    return None


def common_arguments(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    results: Results,
    *,
    sm_scale: float,
    causal: bool,
    plan: Plan,
) -> dict[str, Any]:
    """The arguments by name that both kernels take."""
    batch, s_q, num_heads, _ = q.shape
    stride_tb, stride_tp = block_table.stride()
    return {
        "p_kv": kv_cache,
        "p_table": block_table,
        "p_lens": seq_lens,
        "p_out": results.out,
        "p_lse": results.lse,
        "p_partial": results.partial,
        "p_partial_lse": results.partial_lse,
        "p_parts": results.parts,
        "scale": sm_scale * math.log2(math.e),
        "batch": batch,
        "num_parts": plan.num_parts,
        "min_pairs": plan.min_tiles,
        "stride_kp": kv_cache.stride(0),
        "stride_tb": stride_tb,
        "stride_tp": stride_tp,
        "stride_len": seq_lens.stride(0),
        "NUM_HEADS": num_heads,
        "S_Q": s_q,
        "PAGE_SIZE": kv_cache.shape[1],
        "CAUSAL": causal,
        "EVEN": plan.even,
    }


def seesaw_arguments(q: Tensor, kv_cache: Tensor) -> dict[str, Any]:
    """What ``seesaw`` takes besides, the compiler's options included."""
    batch, s_q, num_heads, _ = q.shape
    num_pages, page_size, _ = kv_cache.shape
    stride_kp, stride_kn, _ = kv_cache.stride()
    page_rows = stride_kp // stride_kn
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    num_rows, cache_rows = batch * s_q * num_heads, (num_pages - 1) * page_rows + page_size
    return {
        "queries": TensorDescriptor(q, [num_rows, RANK + ROPE], [q.stride(2), 1], [64, 64], layout),
        "cache": TensorDescriptor(kv_cache, [cache_rows, RANK + ROPE], [stride_kn, 1], [64, 64], layout),
        "page_rows": page_rows,
        "stride_kn": stride_kn,
        **OPTIONS,
    }


def fp8_arguments(q: Tensor, kv_cache: Tensor, plan: Plan) -> dict[str, Any]:
    """What ``attend_fp8`` takes besides or instead, the compiler's options included: the cache as words."""
    words = kv_cache.view(torch.int32)
    return {
        "p_q": q,
        "p_kv": words,
        "p_scales": words.view(torch.float32),
        "stride_qh": q.stride(2),
        "stride_kp": words.stride(0),
        "BLOCK_H": plan.tiles.block_h,
        "num_warps": plan.tiles.num_warps,
    }


@functools.cache
def is_measured(device: torch.device) -> bool:
    """Whether the kernel was measured on this GPU."""
    return torch.cuda.get_device_name(device) in FASTER_ON


def is_faster(q: Tensor) -> bool:
    """Whether the kernel was measured to be faster than Triton's on a GPU like that of ``q``, with as many rows."""
    return q.shape[1] * q.shape[2] > MANY_ROWS and is_measured(q.device)


def plan_pairs(
    q: Tensor, kv_cache: Tensor, block_table: Tensor, kv_lora_rank: int, num_splits: int | None = None
) -> Plan:
    """The plan of a call: that of the Triton backend, with pairs of tiles."""
    tiles = PAIR
    if kv_cache.dtype == torch.uint8:
        tiles = next(each for each in FEW if each.block_h >= q.shape[1] * q.shape[2])
    return plan_call(q, kv_cache, block_table, kv_lora_rank, num_splits, tiles, walks=True)


def workspace_bytes(
    q: Tensor, kv_cache: Tensor, block_table: Tensor, kv_lora_rank: int, num_splits: int | None = None
) -> int:
    """As ``launch.workspace_bytes``."""
    return bytes_of_parts(plan_pairs(q, kv_cache, block_table, kv_lora_rank, num_splits), q, kv_lora_rank)


def decode(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    kv_lora_rank: int,
    sm_scale: float,
    causal: bool = True,
    num_splits: int | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    workspace: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``mla_decode`` by Gluon, on arguments that have been checked and for which ``why_not`` gives None.

    Raises:
        ValueError: the workspace is too small.
    """
    plan = plan_pairs(q, kv_cache, block_table, kv_lora_rank, num_splits)

    def stage_1(results: Results) -> None:
        tensors = (q, kv_cache, block_table, seq_lens, results)
        arguments = common_arguments(*tensors, sm_scale=sm_scale, causal=causal, plan=plan)
        if kv_cache.dtype == torch.uint8:
            attend_fp8[(plan.num_programs,)](**arguments | fp8_arguments(q, kv_cache, plan))
        else:
            seesaw[(plan.num_programs,)](**arguments | seesaw_arguments(q, kv_cache))

    return run(stage_1, q, kv_lora_rank, plan, out, lse, workspace)
