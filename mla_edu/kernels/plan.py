"""The plan of a decode step: its tile, and the shares that the tokens of a batch are cut into.

Imports neither torch nor triton, and reads no length: a plan follows from shapes and from the GPU.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mla_edu.kernels.tiles import (
    REGISTERS,
    Tiles,
    block_widths,
    cdiv,
    choose_tiles,
    converts_fp8,
    matrix_unit,
    programs_per_multiprocessor,
)

MIN_SHARE = 128  # tokens that are worth a partial result of their own
ROUNDS = 4  # of programs that the parts of a batch may take, where each program has one part


@functools.lru_cache(maxsize=1024)
def choose_num_shares(num_blocks: int, worth: int, num_slots: int) -> int:
    """Shares that the tokens of a batch are cut into, from what the host knows: no length is read back.

    Programs, one for each share and block of rows, are all alike, and run in rounds of ``num_slots``: a last round that
    is not full leaves slots idle, and every share costs a partial result. So there are as many shares as fill the
    fewest rounds that are nine tenths full.

    Args:
        num_blocks: blocks of rows, which all read the same tokens.
        worth: shares that are worth while, if all sequences are as long as the block table allows.
        num_slots: programs that the GPU runs at a time.
    """

    def busy(shares: int) -> float:
        rounds = cdiv(shares * num_blocks, num_slots)
        return shares * num_blocks / (rounds * num_slots)

    fills = [max(1, rounds * num_slots // num_blocks) for rounds in range(1, num_blocks + 1)]
    enough = next((shares for shares in fills if busy(shares) >= 0.9), num_slots)
    return max(1, min(enough, worth, num_slots))


def tiles_of_part(tiles: int, share: int) -> int:
    """Tiles of each part but the last, if a sequence of ``tiles`` is cut into as few as have at most ``share`` each."""
    return cdiv(tiles, cdiv(tiles, share))


def choose_share(tiles: Sequence[int], num_parts: int, min_tiles: int, num_slots: int) -> int:
    """The most tiles that a part may have, so that all programs, one for each part, are through as soon as may be.

    Parts are taken in turn by whichever slot is free. That ends no later than rounds of the longest part, and no later
    than the mean with the longest part on top (Graham 1969); the less of both is taken as the time, with two tiles on
    top for what a part writes. The kernel reckons the same from the lengths on the device.

    Args:
        tiles: of each sequence, at least 1.
        num_parts: at most, of all sequences.
        min_tiles: of a share.
        num_slots: parts that the GPU works on at a time.
    """
    fewest = max(cdiv(sum(tiles), num_parts), min_tiles)

    def end(share: int) -> float:
        each = [tiles_of_part(many, share) for many in tiles]
        parts = sum(map(cdiv, tiles, each))
        rounds = cdiv(parts, num_slots) * (max(each) + 2)
        return min(rounds, (sum(tiles) + 2 * parts) / num_slots + max(each)) if parts <= num_parts else math.inf

    shares = [math.ceil(fewest * 2 ** (i / 8)) for i in range(31)]
    return min([sum(tiles), *reversed(shares)], key=end)  # for whole sequences there is always room


@dataclass(frozen=True)
class GPU:
    """What of a GPU decides how the kernels are launched."""

    arch: str
    shared_limit: int  # bytes of shared memory that one block may have
    multiprocessors: int


class Shape(NamedTuple):
    """The sizes of a decode step, as far as the host knows them."""

    batch: int
    s_q: int
    num_heads: int
    kv_lora_rank: int
    qk_rope_head_dim: int
    dtype: str  # of the cache
    max_len: int  # tokens that a row of the block table can hold


@dataclass(frozen=True)
class MergeTile:
    """What one program of ``merge`` works on: ``block_c`` numbers of ``block_h`` rows, ``block_p`` parts at a time."""

    block_h: int
    block_p: int
    block_c: int
    num_warps: int = 4


FEW_PARTS, MANY_PARTS = MergeTile(1, 8, 512), MergeTile(1, 128, 64)


@dataclass(frozen=True)
class Plan:
    """How a decode step is launched."""

    tiles: Tiles
    block_c: int  # columns of a chunk of the latent, and of the rotary part, filled up with zeros
    block_r: int
    num_blocks: int  # of rows, for each sequence
    programs: int  # that are to run on a multiprocessor at a time
    even: bool  # the tokens of the whole batch are cut into even shares; else each sequence by itself
    num_slots: int  # parts at a time for which sequences are cut by their lengths; 0 where it is not by lengths
    num_parts: int  # at most: of the whole batch if even or by lengths (num_slots above 0), else of each sequence
    min_tiles: int  # tiles of tokens that a part has at least
    num_programs: int  # of stage 1, each of one part and one block of rows
    num_partials: int  # results of parts that there is room for
    merge_tile: MergeTile
    converts_fp8: bool  # the GPU has an instruction for it

    @property
    def max_registers(self) -> int | None:
        """How many the compiler may give a thread, that as many programs fit; None leaves it to the compiler."""
        return None if self.programs == 1 else REGISTERS // (self.programs * 32 * self.tiles.num_warps)


@functools.lru_cache(maxsize=1024)
def make_plan(
    shape: Shape, gpu: GPU, num_splits: int | None = None, tiles: Tiles | None = None, walks: bool | None = None
) -> Plan:
    """The plan for one shape on one GPU.

    Args:
        shape: of the decode step.
        gpu: that runs it.
        num_splits: parts that each sequence is cut into; None for as many as keep the GPU busy.
        tiles: None for those of ``choose_tiles``.
        walks: a program may go from one sequence to the next, so that shares are even. None: if it has fewer than 64
            rows; with more, the compiler runs out of registers for it, and a program has one part of one sequence.

    Raises:
        ValueError: nothing fits.
    """
    widths = {"kv_lora_rank": shape.kv_lora_rank, "qk_rope_head_dim": shape.qk_rope_head_dim}
    num_rows, batch = shape.num_heads * shape.s_q, max(1, shape.batch)
    if tiles is None:
        tiles = choose_tiles(gpu.arch, num_rows=num_rows, dtype=shape.dtype, shared_limit=gpu.shared_limit, **widths)
    num_blocks = cdiv(num_rows, tiles.block_h)
    unit = matrix_unit(gpu.arch)
    programs = programs_per_multiprocessor(tiles, unit, dtype=shape.dtype, shared_limit=gpu.shared_limit, **widths)
    even = num_splits is None and (tiles.block_h < 64 if walks is None else walks)
    slots, num_slots = programs * gpu.multiprocessors, 0
    min_tiles = 1 if num_splits is not None else cdiv(MIN_SHARE, tiles.block_n)
    worth = batch * cdiv(shape.max_len, MIN_SHARE)
    if even:
        num_parts = choose_num_shares(num_blocks, worth, slots)
        num_partials, num_programs = num_parts + batch - 1, num_parts * num_blocks
    elif num_splits is None:
        num_slots = max(1, slots // num_blocks)
        num_parts = num_partials = max(batch, min(worth, min(batch, ROUNDS) * num_slots + batch))
        num_programs = num_parts * num_blocks
    else:
        num_parts, num_partials = num_splits, batch * num_splits
        num_programs = num_partials * num_blocks
    per_sequence = num_parts / batch if num_splits is None else num_splits
    return Plan(
        tiles,
        *block_widths(tiles, **widths),
        num_blocks,
        programs,
        even,
        num_slots,
        num_parts,
        min_tiles,
        num_programs,
        num_partials,
        FEW_PARTS if per_sequence < 8 else MANY_PARTS,
        converts_fp8(gpu.arch),
    )
