"""The Triton backend: allocates, chooses tiles and splits, launches both stages."""

import math

import torch
import triton
from torch import Tensor

from mla_edu.kernels.chunked import attend_chunked
from mla_edu.kernels.decode import attend
from mla_edu.kernels.merge import merge
from mla_edu.kernels.tiles import (
    MIN_SPLIT,
    Tiles,
    block_widths,
    choose_num_splits,
    choose_tiles,
    matrix_unit,
    next_power_of_2,
    programs_per_multiprocessor,
)

INTERPRETED = not isinstance(attend, triton.runtime.JITFunction)
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.uint8: "fp8"}
INTERPRETED_AS = "sm_90"  # whose tiles a CPU uses


def stage1(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    results: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    kv_lora_rank: int,
    sm_scale: float,
    causal: bool,
    num_splits: int,
    min_split: int,
    tiles: Tiles,
):
    """The kernel of stage 1 and all its arguments, by name; ``offline`` compiles it for what stands here."""
    s_q, num_heads, rope = q.shape[1], q.shape[2], q.shape[3] - kv_lora_rank
    block_c, block_r = block_widths(tiles, kv_lora_rank, rope)
    pools, strides, options = [kv_cache], [*kv_cache.stride()], {}
    if tiles.chunked:
        is_fp8 = kv_cache.dtype == torch.uint8
        scales, rotary = kv_cache, kv_cache[..., kv_lora_rank:]
        if is_fp8:
            scales = kv_cache.view(torch.float32)[..., kv_lora_rank // 4 :]
            rotary = kv_cache.view(torch.bfloat16)[..., kv_cache.shape[2] // 2 - rope :]
        pools += [scales, rotary]
        strides += [scales.stride(0), rotary.stride(0), rotary.stride(2)]
        options = {"FP8": is_fp8, "STRIDE_SN": scales.stride(1), "STRIDE_RN": rotary.stride(1)}
    kernel = attend_chunked if tiles.chunked else attend
    values = (
        q, *pools, block_table, seq_lens, *results, sm_scale * math.log2(math.e), num_splits, min_split,
        *q.stride(), *strides, *block_table.stride(), *seq_lens.stride(),
    )  # fmt: skip
    constants = {
        "NUM_HEADS": num_heads, "S_Q": s_q, "RANK": kv_lora_rank, "ROPE": rope, "PAGE_SIZE": kv_cache.shape[1],
        "CAUSAL": causal, "SPLIT": num_splits > 1, "UPCAST": INTERPRETED, **options,
        "BLOCK_H": tiles.block_h, "BLOCK_N": tiles.block_n, "BLOCK_C": block_c, "BLOCK_R": block_r,
    }  # fmt: skip
    return kernel, dict(zip(kernel.arg_names, values, strict=False)) | constants


def device_limits(device: torch.device) -> tuple[str, int, int]:
    """Architecture, shared memory per block in bytes, and number of multiprocessors."""
    if device.type == "cpu":
        return INTERPRETED_AS, 232_448, 1
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0], 65_536, properties.multi_processor_count
    arch = f"sm_{properties.major}{properties.minor}"
    return arch, properties.shared_memory_per_block_optin, properties.multi_processor_count


def tiles_for(q: Tensor, kv_cache: Tensor, kv_lora_rank: int) -> Tiles:
    """The tile that a call with these tensors uses.

    Raises:
        ValueError: nothing fits.
    """
    arch, shared_limit, _ = device_limits(q.device)
    return choose_tiles(
        arch,
        num_rows=q.shape[1] * q.shape[2],
        kv_lora_rank=kv_lora_rank,
        qk_rope_head_dim=q.shape[3] - kv_lora_rank,
        dtype=DTYPES[kv_cache.dtype],
        shared_limit=shared_limit,
    )


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
    """``mla_decode`` by Triton, on arguments that have been checked; with ``tiles`` given, those are used."""
    batch, s_q, num_heads, width = q.shape
    page_size, rope = kv_cache.shape[1], width - kv_lora_rank
    tiles = tiles_for(q, kv_cache, kv_lora_rank) if tiles is None else tiles
    num_rows = num_heads * s_q
    num_programs = batch * triton.cdiv(num_rows, tiles.block_h)
    # The interpreter cuts fp32 off to bf16 where a GPU rounds, so there PyTorch rounds in the end.
    out = q.new_empty(batch, s_q, num_heads, kv_lora_rank, dtype=torch.float32 if INTERPRETED else q.dtype)
    lse = q.new_empty(batch, num_heads, s_q, dtype=torch.float32)
    if batch == 0:
        return out.to(q.dtype), lse

    min_split = tiles.block_n
    if num_splits is None:
        arch, shared_limit, num_sms = device_limits(q.device)
        shape = (matrix_unit(arch), kv_lora_rank, rope, DTYPES[kv_cache.dtype])
        per_sm = programs_per_multiprocessor(tiles, *shape, shared_limit)
        num_splits = choose_num_splits(num_programs, block_table.shape[1] * page_size, num_sms * per_sm)
        min_split = MIN_SPLIT

    partial, partial_lse = out, lse  # not touched with one split
    if num_splits > 1:
        partial = q.new_empty(batch, num_splits, num_rows, kv_lora_rank, dtype=torch.float32)
        partial_lse = q.new_empty(batch, num_splits, num_rows, dtype=torch.float32)

    kernel, arguments = stage1(
        q, kv_cache, block_table, seq_lens, (out, lse, partial, partial_lse), kv_lora_rank=kv_lora_rank,
        sm_scale=sm_scale, causal=causal, num_splits=num_splits, min_split=min_split, tiles=tiles,
    )  # fmt: skip
    kernel[(num_programs, num_splits)](**arguments, num_warps=tiles.num_warps, num_stages=tiles.num_stages)
    if num_splits > 1:
        merge[(batch * num_rows,)](
            partial, partial_lse, seq_lens, out, lse, num_splits, min_split, *seq_lens.stride(),
            NUM_HEADS=num_heads, S_Q=s_q, RANK=kv_lora_rank,
            BLOCK_N=tiles.block_n, BLOCK_C=next_power_of_2(kv_lora_rank), num_warps=4,
        )  # fmt: skip
    return out.to(q.dtype), lse
