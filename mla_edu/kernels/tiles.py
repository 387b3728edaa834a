"""Which tile of a decode step a GPU can hold.

Imports neither torch nor triton. The candidates are those that compile without spilling registers; the shared memory
that each takes follows from its sizes. ``mla_edu.kernels.offline`` compiles them, and a test holds the formula and the
limits to what comes out.
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
REGISTERS = 65_536  # of one multiprocessor, on all of NVIDIA's
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8_mla": 2}  # of a number in a product; fp8 is multiplied as bf16
MAX_RANK, MAX_ROPE = 512, 64  # wider accumulators spill


@dataclass(frozen=True)
class Tiles:
    """What one program of ``attend`` works on: ``block_h`` rows of queries against ``block_n`` tokens at a time."""

    block_h: int
    block_n: int
    num_warps: int
    num_stages: int
    num_chunks: int = 1  # the latent whole, or in four


AHEAD = (Tiles(32, 64, 8, 5), Tiles(16, 64, 8, 5))  # with a second tile on its way while one is multiplied
# By the kind of matrix unit, in order of preference for each block_h: wgmma multiplies 64 rows at least, mma.sync 16.
WHOLE = {
    "fma": [],
    "mma": [Tiles(32, 64, 8, 2), Tiles(32, 32, 8, 2), Tiles(16, 64, 8, 2), Tiles(16, 32, 4, 2)],
    "wgmma": [Tiles(64, 64, 8, 2), Tiles(64, 32, 8, 2), *AHEAD, Tiles(32, 64, 8, 2), Tiles(16, 64, 8, 2)],
    "tcgen05": [Tiles(64, 32, 8, 2), *AHEAD, Tiles(32, 64, 8, 2), Tiles(16, 64, 8, 2)],
    "mfma": [Tiles(32, 16, 4, 1), Tiles(16, 32, 4, 1)],
}
CHUNKED = {
    "fma": [Tiles(16, 16, 8, 1, 4)],
    "mma": [Tiles(64, 32, 8, 2, 4)],
    "wgmma": [],
    "tcgen05": [],
    "mfma": [],
}
FP8 = {
    "fma": [Tiles(16, 16, 8, 1, 4)],
    "mma": [Tiles(32, 32, 8, 2, 4), Tiles(16, 32, 8, 2, 4)],
    "wgmma": [Tiles(64, 16, 8, 2, 4), Tiles(32, 32, 8, 2, 4), Tiles(16, 32, 8, 2, 4)],
    "tcgen05": [Tiles(64, 16, 8, 2, 4), Tiles(32, 32, 8, 2, 4), Tiles(16, 32, 8, 2, 4)],
    "mfma": [Tiles(16, 32, 4, 1, 4)],
}
FP32 = [Tiles(16, 32, 8, 2, 4), Tiles(16, 16, 8, 2, 4), Tiles(16, 16, 8, 1, 4)]


def cdiv(number: int, by: int) -> int:
    """``number / by``, rounded up."""
    return -(-number // by)


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


def converts_fp8(arch: str) -> bool:
    """Whether an architecture has an instruction that makes e4m3 a number of fp16: NVIDIA's from sm_89 on."""
    return arch.startswith("sm_") and int(arch[3:]) >= 89


def next_power_of_2(width: int) -> int:
    """The smallest power of two that holds ``width``, and at least 16, which is what a matrix unit takes."""
    return max(16, 1 << (width - 1).bit_length())


def block_widths(tiles: Tiles, kv_lora_rank: int, qk_rope_head_dim: int) -> tuple[int, int]:
    """Columns that are computed with, for one chunk of the latent and for the rotary part: zeros fill them up."""
    return next_power_of_2(cdiv(kv_lora_rank, tiles.num_chunks)), next_power_of_2(max(qk_rope_head_dim, 1))


def shared_bytes(tiles: Tiles, unit: str, kv_lora_rank: int, qk_rope_head_dim: int, dtype: str) -> int:
    """Shared memory of one block in bytes, at least what the compiler takes.

    A tile must be chosen before anything is compiled, and one that is too large fails only at its launch: so the size
    is foreseen here. What a product reads lies in shared memory, if not all of its operands' owners hold them in
    registers: the queries, the tiles on their way from memory, and the weights on theirs from one product to the
    next. Which of them, and how many tiles, is each matrix unit's own way, learned from what was compiled.
    """
    chunk, rope = block_widths(tiles, kv_lora_rank, qk_rope_head_dim)
    latent = tiles.num_chunks * chunk
    width = latent + (rope if qk_rope_head_dim else 0)
    size = BYTES[dtype]
    queries, tile = tiles.block_h * width * size, tiles.block_n * width * size
    weights = tiles.block_h * tiles.block_n * size
    if dtype == "fp32":
        return queries + tile + weights + 1024
    if unit == "fma":
        return queries + tile + tiles.block_h * chunk * 4
    if unit == "mfma":  # queries pass through on their way to registers
        return max(queries, tile) + weights
    if unit in ("wgmma", "tcgen05") and tiles.block_h >= 64:  # both operands in shared memory, all stages at once
        again = tiles.block_n * latent * size if unit == "tcgen05" else 0  # values in an order of their own
        return queries + tiles.num_stages * (tile + again) + 1024
    # A tile is found through its page's number, which is loaded too: Triton shares the stages out between both.
    pages = 1024 if tiles.num_stages > 2 else 0
    return queries + max((tiles.num_stages - 1) // 2, 1) * tile + weights + pages


def programs_per_multiprocessor(
    tiles: Tiles, unit: str, kv_lora_rank: int, qk_rope_head_dim: int, dtype: str, shared_limit: int
) -> int:
    """How many programs of ``attend`` are to run on one multiprocessor at a time.

    Two, where shared memory holds two and the accumulator takes at most a quarter of a thread's half of the registers;
    the compiler is then told to keep to that half: see ``Plan.max_registers``. AMD's compiler is not told.
    """
    chunk, _ = block_widths(tiles, kv_lora_rank, qk_rope_head_dim)
    if unit == "mfma" or tiles.num_chunks > 1 or tiles.block_h * chunk > REGISTERS // 2 // 4:
        return 1
    return max(1, min(2, shared_limit // shared_bytes(tiles, unit, kv_lora_rank, qk_rope_head_dim, dtype)))


def candidates(unit: str, dtype: str) -> list[Tiles]:
    """All tiles for one kind of matrix unit and one dtype, in order of preference."""
    if dtype == "fp32":
        return FP32
    return FP8[unit] if dtype == "fp8_mla" else CHUNKED[unit] + WHOLE[unit]


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
        dtype: of the cache: "bf16", "fp16", "fp32" or "fp8_mla".
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
