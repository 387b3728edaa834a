"""The Triton backend: one plan, then both kernels; and what the Gluon backend shares with it."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mla_edu.kernels.kernel import attend, merge
from mla_edu.kernels.plan import GPU, Plan, Shape, make_plan
from mla_edu.kernels.tiles import Tiles, cdiv

INTERPRETED = not isinstance(attend, triton.runtime.JITFunction)
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.uint8: "fp8_mla"}
TRITON = tuple(int(number) for number in triton.__version__.split(".")[:2])
# Versions from which on Triton shares stages out between a tile and the number of its page, and keeps in registers
# where all that a wgmma reads lies. Then from 64 rows on there are none to spare for what is the same of all tiles, and
# from 32 on none for what is the same of those that lie in one page: HOIST is 0, 1 or 2.
SHARES_STAGES, KEEPS_ADDRESSES = (3, 5), (3, 8)
MAX_TOKENS = 2**30  # that a row of the block table can hold: tokens are counted in 32 bits


class Place:
    """Where in memory numbers lie, which Triton takes for a tensor of them; a view of one takes the host longer."""

    __slots__ = ("address", "dtype")

    def __init__(self, address: int, dtype: torch.dtype):
        self.address, self.dtype = address, dtype

    def data_ptr(self) -> int:
        """The address."""
        return self.address


class Results(NamedTuple):
    """Where a decode step writes: the last three are of sequences that are attended to in parts; None without parts."""

    out: Tensor  # [batch, s_q, heads, kv_lora_rank]
    lse: Tensor  # [batch, heads, s_q]
    partial: Tensor | Place | None  # [parts, heads * s_q, kv_lora_rank]
    partial_lse: Tensor | Place | None  # [parts, heads * s_q]
    parts: Tensor | Place | None  # [batch, 2]: the first of a sequence's parts, and how many there are


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
    walks: bool | None = None,
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
    return make_plan(shape, describe_gpu(q.device), num_splits, tiles, walks)


def attend_arguments(
    q: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    results: Results,
    *,
    kv_lora_rank: int,
    sm_scale: float,
    causal: bool,
    plan: Plan,
) -> dict[str, Any]:
    """The arguments of ``attend`` by name, in its order; ``offline`` compiles it for the same."""
    batch, s_q, num_heads, width = q.shape
    stride_qb, stride_qs, stride_qh, stride_qd = q.stride()
    stride_kp, stride_kn, stride_kd = kv_cache.stride()
    stride_tb, stride_tp = block_table.stride()
    tiles = plan.tiles
    return {
        "p_q": q,
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
        "NUM_SLOTS": plan.num_slots,
        "CONVERT": plan.converts_fp8,
        "UPCAST": INTERPRETED,
        "HOIST": 2 if TRITON < KEEPS_ADDRESSES else (tiles.block_h < 32) + (tiles.block_h < 64),
        "NUM_CHUNKS": tiles.num_chunks,
        "BLOCK_H": tiles.block_h,
        "BLOCK_N": tiles.block_n,
        "BLOCK_C": plan.block_c,
        "BLOCK_R": plan.block_r,
    }


def attend_options(plan: Plan) -> dict[str, int]:
    """What the compiler is told of ``attend``."""
    tiles = plan.tiles
    num_stages = tiles.num_stages if TRITON >= SHARES_STAGES else (tiles.num_stages + 2) // 2
    options = {"num_warps": tiles.num_warps, "num_stages": num_stages}
    return options if plan.max_registers is None else options | {"maxnreg": plan.max_registers}


def why_no_gluon(device: torch.device) -> str | None:
    """Why Gluon's kernels run on no tensor of a device; None if they can."""
    arch = describe_gpu(device).arch if device.type == "cuda" else device.type
    if arch != "sm_90":
        return f"backend 'gluon' needs a GPU of sm_90; q is on {arch}"
    if TRITON < (3, 6):
        return f"backend 'gluon' needs Triton 3.6 or later; this is {triton.__version__}"
    return None


def workspace_bytes(
    q: Tensor, kv_cache: Tensor, block_table: Tensor, kv_lora_rank: int, num_splits: int | None = None
) -> int:
    """Bytes of partial results, of their log-sum-exps, and of where each sequence's lie; 0 without parts."""
    return bytes_of_parts(plan_call(q, kv_cache, block_table, kv_lora_rank, num_splits), q, kv_lora_rank)


def bytes_of_parts(plan: Plan, q: Tensor, kv_lora_rank: int) -> int:
    """``workspace_bytes`` of a plan."""
    batch, s_q, num_heads, _ = q.shape
    return 0 if plan.num_parts == 1 else 4 * plan.num_partials * s_q * num_heads * (kv_lora_rank + 1) + 8 * batch


def cut(workspace: Tensor, num_rows: int, kv_lora_rank: int, batch: int) -> tuple[Tensor | Place, ...]:
    """A workspace as the last three of ``Results``, for as many rows of partial results."""
    partials = num_rows * kv_lora_rank
    if INTERPRETED:  # which takes tensors alone
        words = workspace[: 4 * (partials + num_rows + 2 * batch)].view(torch.float32)
        partial, partial_lse, parts = words.split([partials, num_rows, 2 * batch])
        return partial, partial_lse, parts.view(torch.int32)
    start = workspace.data_ptr()
    end = start + 4 * partials
    return Place(start, torch.float32), Place(end, torch.float32), Place(end + 4 * num_rows, torch.int32)


def run(
    stage_1: Callable[[Results], object],
    q: Tensor,
    kv_lora_rank: int,
    plan: Plan,
    out: Tensor | None,
    lse: Tensor | None,
    workspace: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Make the buffers that are not given, launch stage 1 on them, and stage 2 if there can be parts.

    Raises:
        ValueError: the workspace is too small.
    """
    if q.is_cuda and q.get_device() != torch.cuda.current_device():
        with torch.cuda.device(q.device):  # which Triton launches on
            return run(stage_1, q, kv_lora_rank, plan, out, lse, workspace)
    batch, s_q, num_heads, _ = q.shape
    needed = bytes_of_parts(plan, q, kv_lora_rank)
    if workspace is not None and workspace.numel() < needed:
        raise ValueError(f"workspace has {workspace.numel()} bytes; expected at least {needed}")
    if out is None:
        out = q.new_empty(batch, s_q, num_heads, kv_lora_rank)
    if lse is None:
        lse = q.new_empty(batch, num_heads, s_q, dtype=torch.float32)
    if batch == 0:
        return out, lse
    num_rows = num_heads * s_q
    partial = partial_lse = parts = None
    if needed:
        if workspace is None:
            workspace = q.new_empty(needed, dtype=torch.uint8)
        partial, partial_lse, parts = cut(workspace, plan.num_partials * num_rows, kv_lora_rank, batch)
    # The interpreter cuts fp32 off to bf16 where a GPU rounds, so there PyTorch rounds in the end.
    results = Results(out.float() if INTERPRETED else out, lse, partial, partial_lse, parts)
    stage_1(results)
    if needed:
        tile = plan.merge_tile
        merge[batch * cdiv(num_rows, tile.block_h), cdiv(kv_lora_rank, tile.block_c)](
            partial, partial_lse, parts, results.out, lse,
            num_heads, s_q, kv_lora_rank, tile.block_h, tile.block_p, tile.block_c, num_warps=tile.num_warps,
        )  # fmt: skip
    if results.out is not out:
        out.copy_(results.out)
    return out, lse


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
    out: Tensor | None = None,
    lse: Tensor | None = None,
    workspace: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``mla_decode`` by Triton, on arguments that have been checked; with ``tiles`` given, those are used.

    Raises:
        ValueError: no tile fits, the table has room for more tokens than can be counted, or the workspace is too small.
    """
    plan = plan_call(q, kv_cache, block_table, kv_lora_rank, num_splits, tiles)

    def stage_1(results: Results) -> None:
        arguments = attend_arguments(
            q, kv_cache, block_table, seq_lens, results,
            kv_lora_rank=kv_lora_rank, sm_scale=sm_scale, causal=causal, plan=plan,
        )  # fmt: skip
        attend[(plan.num_programs,)](*arguments.values(), **attend_options(plan))  # by name it takes the host longer

    return run(stage_1, q, kv_lora_rank, plan, out, lse, workspace)
