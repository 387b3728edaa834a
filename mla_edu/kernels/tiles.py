"""Which tile a GPU can hold, and into how many splits a batch is cut. Imports neither torch nor triton.

The candidates are those that compile without spilling registers; the shared memory that each takes follows from its
sizes. ``mla_edu.kernels.offline`` compiles them, and a test holds the formula and the limits to what comes out.
"""

import functools
from dataclasses import dataclass

# Per architecture: shared memory that one block may have, in bytes (CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability", less the 1 KiB that the system takes; AMD: the LDS of a compute unit).
SHARED_LIMIT = {
    "sm_75": 65_536,
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
}
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 2}  # of a number in a product; fp8 is multiplied as bf16
MAX_RANK, MAX_ROPE = 512, 64  # wider accumulators spill


@dataclass(frozen=True)
class Tiles:
    """What one program of stage 1 works on: ``block_h`` rows of queries against ``block_n`` tokens at a time."""

    block_h: int
    block_n: int
    num_warps: int
    num_stages: int
    chunked: bool = False  # the latent in four chunks: ``attend_chunked`` instead of ``attend``


# By the kind of matrix unit, in order of preference for each block_h: wgmma multiplies 64 rows at least, mma.sync 16.
WHOLE = {
    "fma": [],
    "mma": [Tiles(32, 64, 8, 2), Tiles(32, 32, 8, 2), Tiles(16, 64, 8, 2), Tiles(16, 32, 4, 2)],
    "wgmma": [Tiles(64, 64, 8, 2), Tiles(64, 32, 8, 2), Tiles(32, 64, 8, 2), Tiles(16, 64, 8, 2)],
    "tcgen05": [Tiles(64, 32, 8, 2), Tiles(32, 64, 8, 2), Tiles(16, 64, 8, 2)],
    "mfma": [Tiles(32, 16, 4, 1), Tiles(16, 32, 4, 1)],
}
CHUNKED = {
    "fma": [Tiles(16, 16, 8, 1, True)],
    "mma": [Tiles(64, 32, 8, 2, True)],
    "wgmma": [],
    "tcgen05": [],
    "mfma": [],
}
FP8 = {
    "fma": [Tiles(16, 16, 8, 1, True)],
    "mma": [Tiles(32, 32, 8, 2, True), Tiles(16, 32, 8, 2, True)],
    "wgmma": [Tiles(64, 16, 8, 2, True), Tiles(32, 32, 8, 2, True), Tiles(16, 32, 8, 2, True)],
    "tcgen05": [Tiles(64, 16, 8, 2, True), Tiles(32, 32, 8, 2, True), Tiles(16, 32, 8, 2, True)],
    "mfma": [Tiles(16, 32, 4, 1, True)],
}
FP32 = [Tiles(16, 32, 8, 2, True), Tiles(16, 16, 8, 2, True), Tiles(16, 16, 8, 1, True)]


def matrix_unit(arch: str) -> str:
    """What multiplies matrices on ``"sm_90"`` and the like: fma, mma, wgmma, tcgen05 or, on AMD's, mfma.

    Triton no longer uses the tensor cores of sm_75.

    Raises:
        ValueError: no such architecture, or one older than sm_75.
    """
    kind, _, number = arch.partition("_")
    if arch == "gfx942":
        return "mfma"
    if kind == "sm" and number.isdecimal() and int(number) >= 75:
        major = int(number) // 10
        return {7: "fma", 9: "wgmma", 10: "tcgen05", 11: "tcgen05"}.get(major, "mma")
    raise ValueError(f"arch is {arch!r}; expected {', '.join(SHARED_LIMIT)}")


def next_power_of_2(width: int) -> int:
    """The smallest power of two that holds ``width``, and at least 16, which is what a matrix unit takes."""
    return max(16, 1 << (width - 1).bit_length())


def block_widths(tiles: Tiles, kv_lora_rank: int, qk_rope_head_dim: int) -> tuple[int, int]:
    """Columns that are computed with, for one piece of the latent and for the rotary part: zeros fill them up."""
    pieces = 4 if tiles.chunked else 1
    return next_power_of_2(-(-kv_lora_rank // pieces)), next_power_of_2(max(qk_rope_head_dim, 1))


def shared_bytes(tiles: Tiles, unit: str, kv_lora_rank: int, qk_rope_head_dim: int, dtype: str) -> int:
    """Shared memory of one block: queries, tiles in flight, weights. At least what the compiler takes."""
    piece, rope = block_widths(tiles, kv_lora_rank, qk_rope_head_dim)
    latent = 4 * piece if tiles.chunked else piece
    width = latent + (rope if qk_rope_head_dim else 0)
    size = BYTES[dtype]
    queries, tile = tiles.block_h * width * size, tiles.block_n * width * size
    weights = tiles.block_h * tiles.block_n * size
    if dtype == "fp32":
        return queries + tile + weights + 1024
    if unit == "fma":
        return queries + tile + tiles.block_h * piece * 4
    if unit == "mfma":  # queries pass through on their way to registers
        return max(queries, tile) + weights
    if unit in ("wgmma", "tcgen05") and tiles.block_h >= 64:  # both operands in shared memory, all stages at once
        again = tiles.block_n * latent * size if unit == "tcgen05" else 0  # values in an order of their own
        return queries + tiles.num_stages * (tile + again) + 1024
    return queries + max(tiles.num_stages - 1, 1) * tile + weights


def programs_per_multiprocessor(
    tiles: Tiles, unit: str, kv_lora_rank: int, qk_rope_head_dim: int, dtype: str, shared_limit: int
) -> int:
    """How many programs of stage 1 run on one multiprocessor at a time: as many as registers and shared memory hold.

    The compiler takes 100 registers a thread where the accumulator takes 32 of them, and else more than half of the
    256 that there are for each of 256 threads: then a second program waits, however little shared memory it needs.
    """
    piece, _ = block_widths(tiles, kv_lora_rank, qk_rope_head_dim)
    accumulator = tiles.block_h * piece / (32 * tiles.num_warps)
    if unit == "mfma" or tiles.chunked or accumulator > 32:
        return 1
    shared = shared_bytes(tiles, unit, kv_lora_rank, qk_rope_head_dim, dtype)
    return max(1, min(2, shared_limit // shared))


def candidates(unit: str, dtype: str) -> list[Tiles]:
    """All tiles for one kind of matrix unit and one dtype, in order of preference."""
    if dtype == "fp32":
        return FP32
    return FP8[unit] if dtype == "fp8" else CHUNKED[unit] + WHOLE[unit]


@functools.cache
def choose_tiles(
    arch: str, *, num_rows: int, kv_lora_rank: int, qk_rope_head_dim: int, dtype: str, shared_limit: int | None = None
) -> Tiles:
    """The tile for one shape on one architecture; it does not depend on the batch.

    The fewest rows that hold all queries, or the most that fit; then the first candidate whose shared memory suffices.

    Args:
        arch: "sm_75" to "sm_120", or "gfx942".
        num_rows: heads times new tokens.
        kv_lora_rank: width of the latent.
        qk_rope_head_dim: width of the rotary part.
        dtype: "bf16", "fp16", "fp32", or "fp8" for the fp8 cache.
        shared_limit: bytes per block; None for the architecture's own.

    Raises:
        ValueError: unknown architecture or dtype, or nothing fits.
    """
    unit = matrix_unit(arch)
    if dtype not in BYTES:
        raise ValueError(f"dtype is {dtype!r}; expected {', '.join(BYTES)}")
    if kv_lora_rank > MAX_RANK:
        raise ValueError(f"kv_lora_rank is {kv_lora_rank}; expected at most {MAX_RANK}, the widest that a tile holds")
    if qk_rope_head_dim > MAX_ROPE:
        raise ValueError(
            f"the rotary part is {qk_rope_head_dim} wide; expected at most {MAX_ROPE}, the widest that a tile holds"
        )
    limit = SHARED_LIMIT.get(arch, 101_376) if shared_limit is None else shared_limit
    sizes = {
        tiles: shared_bytes(tiles, unit, kv_lora_rank, qk_rope_head_dim, dtype) for tiles in candidates(unit, dtype)
    }
    fitting = [tiles for tiles, size in sizes.items() if size <= limit]
    if not fitting:
        raise ValueError(
            f"kv_lora_rank {kv_lora_rank} and a rotary part of {qk_rope_head_dim} in {dtype} need "
            f"{min(sizes.values())} bytes of shared memory; expected at most the {limit} of {arch}"
        )
    heights = sorted({tiles.block_h for tiles in fitting})
    block_h = next((height for height in heights if height >= num_rows), heights[-1])
    return next(tiles for tiles in fitting if tiles.block_h == block_h)


MIN_SPLIT = 128  # tokens that are worth a partial result of their own


@functools.cache
def choose_num_splits(num_programs: int, max_len: int, num_slots: int) -> int:
    """Splits per sequence, from what the host knows: no length is read back.

    The fewest that keep at least nine tenths of the slots as busy as any number would, of at most one split for every
    128 tokens of the longest sequence that the block table can hold.

    Args:
        num_programs: sequences times blocks of rows.
        max_len: tokens that a row of the block table can hold.
        num_slots: programs that the GPU runs at a time.
    """
    most = max(1, min(-(-max_len // MIN_SPLIT), -(-num_slots // num_programs)))
    busy = [
        splits * num_programs / (-(-splits * num_programs // num_slots) * num_slots) for splits in range(1, most + 1)
    ]
    enough = 0.9 * max(busy)
    return next(splits for splits, share in enumerate(busy, 1) if share >= enough)
