"""The Triton backend: one plan, then both kernels."""

import functools
import math
from typing import Any

import torch
import triton
from torch import Tensor

from mla_edu.kernels.kernel import attend, merge
from mla_edu.kernels.tiles import GPU, Plan, Shape, Tiles, cdiv, make_plan

INTERPRETED = not isinstance(attend, triton.runtime.JITFunction)
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.uint8: "fp8_mla"}
MAX_TOKENS = 2**30  # that a row of the block table can hold: tokens are counted in 32 bits


@functools.cache
def describe_gpu(device: torch.device) -> GPU:
    """The GPU as the plan sees it; for a CPU, which interprets, one multiprocessor of an H100."""
    if device.type == "cpu":
        return GPU("sm_90", 232_448, 1)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return GPU(properties.gcnArchName.split(":")[0], 65_536, properties.multi_processor_count)
    arch = f"sm_{properties.major}{properties.minor}"
    shared_limit = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return GPU(arch, shared_limit, properties.multi_processor_count)


def plan_call(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    kv_lora_rank: int,
    num_splits: int | None = None,
    tiles: Tiles | None = None,
) -> Plan:
    """The plan of a call with these tensors.

    Raises:
        ValueError: no tile fits, or the table has room for more tokens than can be counted.
    """
    batch, s_q, num_heads, width = q.shape
    max_len = block_table.shape[1] * kv_cache.shape[1]
    if max_len > MAX_TOKENS:
        raise ValueError(f"block_table has room for {max_len} tokens a sequence; expected at most {MAX_TOKENS}")
    shape = Shape(batch, s_q, num_heads, kv_lora_rank, width - kv_lora_rank, DTYPES[kv_cache.dtype], max_len)
    return make_plan(shape, describe_gpu(q.device), num_splits, tiles)


def attend_arguments(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    results: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
    *,
    kv_lora_rank: int,
    sm_scale: float,
    causal: bool,
    plan: Plan,
) -> dict[str, Any]:
    """The arguments of ``attend`` by name, the compiler's options included; ``offline`` compiles it for the same."""
    batch, s_q, num_heads, width = q.shape
    out, lse, partial, partial_lse, parts = results
    stride_qb, stride_qs, stride_qh, stride_qd = q.stride()
    stride_kp, stride_kn, stride_kd = kv_cache.stride()
    stride_tb, stride_tp = block_table.stride()
    tiles = plan.tiles
    options = {} if plan.max_registers is None else {"maxnreg": plan.max_registers}
    return {
        "p_q": q,
        "p_kv": kv_cache,
        "p_table": block_table,
        "p_lens": seq_lens,
        "p_out": out,
        "p_lse": lse,
        "p_partial": partial,
        "p_partial_lse": partial_lse,
        "p_parts": parts,
        "scale": sm_scale * math.log2(math.e),
        "batch": batch,
        "num_parts": plan.num_parts,
        "min_tiles": plan.min_tiles,
        "stride_qb": stride_qb,
        "stride_qs": stride_qs,
        "stride_qh": stride_qh,
        "stride_qd": stride_qd,
        "stride_kp": stride_kp,
        "stride_kn": stride_kn,
        "stride_kd": stride_kd,
        "stride_tb": stride_tb,
        "stride_tp": stride_tp,
        "stride_len": seq_lens.stride(0),
        "NUM_HEADS": num_heads,
        "S_Q": s_q,
        "RANK": kv_lora_rank,
        "ROPE": width - kv_lora_rank,
        "PAGE_SIZE": kv_cache.shape[1],
        "CAUSAL": causal,
        "EVEN": plan.even,
        "CONVERT": plan.converts_fp8,
        "UPCAST": INTERPRETED,
        "NUM_CHUNKS": tiles.num_chunks,
        "BLOCK_H": tiles.block_h,
        "BLOCK_N": tiles.block_n,
        "BLOCK_C": plan.block_c,
        "BLOCK_R": plan.block_r,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
        **options,
    }


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
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """``mla_decode`` by Triton, on arguments that have been checked; with ``tiles`` given, those are used.

    Raises:
        ValueError: no tile fits, or the table has room for more tokens than can be counted.
    """
    plan = plan_call(q, kv_cache, block_table, kv_lora_rank, num_splits, tiles)
    batch, s_q, num_heads, _ = q.shape
    num_rows = num_heads * s_q
    # The interpreter cuts fp32 off to bf16 where a GPU rounds, so there PyTorch rounds in the end.
    out = q.new_empty(batch, s_q, num_heads, kv_lora_rank, dtype=torch.float32 if INTERPRETED else q.dtype)
    lse = q.new_empty(batch, num_heads, s_q, dtype=torch.float32)
    if batch == 0:
        return out.to(q.dtype), lse
    partial = partial_lse = parts = None
    if plan.num_parts > 1:
        partial = q.new_empty(plan.num_partials, num_rows, kv_lora_rank, dtype=torch.float32)
        partial_lse = q.new_empty(plan.num_partials, num_rows, dtype=torch.float32)
        parts = q.new_empty(batch, 2, dtype=torch.int32)

    arguments = attend_arguments(
        q, kv_cache, block_table, seq_lens, (out, lse, partial, partial_lse, parts),
        kv_lora_rank=kv_lora_rank, sm_scale=sm_scale, causal=causal, plan=plan,
    )  # fmt: skip
    attend[(plan.num_programs,)](**arguments)
    if plan.num_parts > 1:
        tile = plan.merge_tile
        merge[batch * cdiv(num_rows, tile.block_h), cdiv(kv_lora_rank, tile.block_c)](
            p_partial=partial,
            p_partial_lse=partial_lse,
            p_parts=parts,
            p_out=out,
            p_lse=lse,
            NUM_HEADS=num_heads,
            S_Q=s_q,
            RANK=kv_lora_rank,
            BLOCK_H=tile.block_h,
            BLOCK_P=tile.block_p,
            BLOCK_C=tile.block_c,
            num_warps=tile.num_warps,
        )
    return out.to(q.dtype), lse
