"""Compiles stage 1 of a decode step for GPUs that are not there, and reads what the compiler made of it.

Triton's wheel brings NVIDIA's assembler and disassembler, so this runs on any Linux machine. What comes out says
whether a kernel fits, and what it can have on its way from memory; ``forecast`` makes a prediction of it.

``python -m mla_edu.kernels.offline`` reads a list of requests in JSON, and writes a report for each, one a line.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pydantic

from mla_edu.cost import fp8_row_bytes
from mla_edu.kernels.machine_code import Ahead, Turn, count_loop, count_turns, read_amdgcn, read_cubin
from mla_edu.kernels.plan import GPU, Plan, Shape, make_plan
from mla_edu.kernels.tiles import BYTES, REGISTERS, SHARED_LIMIT, Tiles, cdiv
from mla_edu.validation import check_integer

ARCHITECTURES = tuple(SHARED_LIMIT)
# Of one multiprocessor: shared memory in bytes and warps (CUDA C++ Programming Guide, "Technical Specifications per
# Compute Capability"). gfx942: a compute unit's LDS and wavefronts (AMD CDNA 3 ISA).
MULTIPROCESSOR = {
    "sm_75": (65_536, 32),
    "sm_80": (167_936, 64),
    "sm_86": (102_400, 48),
    "sm_89": (102_400, 48),
    "sm_90": (233_472, 64),
    "sm_100": (233_472, 64),
    "sm_120": (102_400, 48),
    "gfx942": (65_536, 32),
}
BATCH, PAGES = 9, 99  # any: the compiler sees of them no more than that 16 divides neither


@dataclass(frozen=True)
class Request:
    """What to compile: ``attend`` as ``mla_decode`` would run it, or with another tile; or a Gluon kernel."""

    arch: str  # "sm_75" to "sm_120", or "gfx942"
    dtype: str = "bf16"  # of the cache: "bf16", "fp16", "fp32" or "fp8_mla"
    num_heads: int = 128
    s_q: int = 1
    page_size: int = 64
    kv_lora_rank: int = 512
    qk_rope_head_dim: int = 64
    tiles: Tiles | None = None  # None for those of ``choose_tiles``
    backend: str = "triton"  # or "gluon", whose tiles are given

    def plan(self) -> Plan:
        """The plan that the GPU of this architecture would follow, in parts.

        Raises:
            ValueError: unknown architecture, dtype or backend, a number that is out of range, or a shape that nothing
                fits.
        """
        if self.backend not in ("triton", "gluon"):
            raise ValueError(f"backend is {self.backend!r}; expected 'triton' or 'gluon'")
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch is {self.arch!r}; expected {', '.join(ARCHITECTURES)}")
        if self.dtype not in BYTES:
            raise ValueError(f"dtype is {self.dtype!r}; expected {', '.join(BYTES)}")
        for name in ("num_heads", "s_q", "page_size", "kv_lora_rank"):
            check_integer(name, getattr(self, name), 1, 2**10 if name == "num_heads" else 2**16)
        is_gluon = self.backend == "gluon"
        tiles, walks = (self._gluon_tiles(), True) if is_gluon else (self.tiles, None)
        return make_plan(self.shape, GPU(self.arch, SHARED_LIMIT[self.arch], 100), tiles=tiles, walks=walks)

    @property
    def shape(self) -> Shape:
        """Of a decode step that the kernel could be compiled in."""
        sizes = (self.s_q, self.num_heads, self.kv_lora_rank, self.qk_rope_head_dim)
        return Shape(BATCH, *sizes, self.dtype, PAGES * self.page_size)

    def _gluon_tiles(self) -> Tiles:
        if self.arch != "sm_90":
            raise ValueError(f"backend 'gluon' needs a GPU of sm_90; arch is {self.arch!r}")
        if self.tiles is not None:
            raise ValueError(f"tiles are {self.tiles}; expected None, since those of backend 'gluon' are given")
        from mla_edu.kernels.launch import TRITON

        if TRITON < (3, 6):
            raise ValueError(f"backend 'gluon' needs Triton 3.6 or later; this is {'.'.join(map(str, TRITON))}")
        from mla_edu.kernels.compilation import empty_tensors
        from mla_edu.kernels.gluon_launch import FEW, PAIR, why_not

        tensors = empty_tensors(self.shape, PAGES)
        if reason := why_not(*tensors[:3], self.kv_lora_rank):
            raise ValueError(reason)
        return PAIR if self.dtype == "bf16" else next(each for each in FEW if each.block_h >= self.num_heads * self.s_q)


@pydantic.dataclasses.dataclass(frozen=True, config={"ser_json_bytes": "base64", "val_json_bytes": "base64"})
class KernelReport:
    """What the compiler made of ``attend``, or of a Gluon kernel, for one architecture."""

    arch: str
    dtype: str
    num_heads: int
    s_q: int
    page_size: int
    tiles: Tiles
    registers: int  # per thread
    spill_bytes: int  # per thread, that did not fit into registers and lie in memory
    shared_bytes: int  # per block
    tensor_memory: int  # columns of 128 numbers that a block takes, of 512; sm_100 only
    tensor_core_instructions: dict[str, int]  # in the program text: {"HGMMA": 76}; a loop counts once
    programs: int  # that fit on a multiprocessor at a time
    occupancy: float  # share of a multiprocessor's warps that those are
    cubin: bytes = field(repr=False)  # the machine code
    kv_lora_rank: int = 512
    qk_rope_head_dim: int = 64
    assembler: str | None = None  # version of the ptxas that made it
    # Of the loop over the tiles; None on AMD's:
    loop_instructions: int | None = None  # of one warp; of warps that take turns, of one of each group and the loader
    executed_flops: int | None = None  # of a program's matrix units for one tile; None where the code does not say
    shared_traffic: int | None = None  # bytes to and from shared memory, of a program for one tile
    ahead: Ahead | None = None  # loads that are on their way while a program multiplies; None where a warp only loads
    turns: tuple[Turn, ...] = ()  # of each group of warps, where such take turns
    backend: str = "triton"

    @property
    def tile_bytes(self) -> int:
        """Of the cache, that a program loads at a time."""
        width = self.kv_lora_rank + self.qk_rope_head_dim
        is_fp8 = self.dtype == "fp8_mla"
        row = fp8_row_bytes(self.kv_lora_rank, self.qk_rope_head_dim) if is_fp8 else width * BYTES[self.dtype]
        return self.tiles.block_n * row

    @property
    def row_blocks(self) -> int:
        """Programs that read the same tile, each for rows of its own."""
        return cdiv(self.num_heads * self.s_q, self.tiles.block_h)

    @property
    def useful_flops(self) -> float:
        """What a program must compute of one tile: scores and weighted sum, of the rows that there are."""
        rows = self.num_heads * self.s_q / self.row_blocks
        return 2 * rows * self.tiles.block_n * (2 * self.kv_lora_rank + self.qk_rope_head_dim)

    @property
    def useful_share(self) -> float | None:
        """Of what the matrix units do; the rest is done twice, or for rows that there are not."""
        return self.useful_flops / self.executed_flops if self.executed_flops else None

    @property
    def instructions_per_token(self) -> float | None:
        """Of all warps of a program, as if each scheduler had as many to issue as the busiest."""
        return self.loop_instructions and self.loop_instructions * self.tiles.num_warps / self.tiles.block_n

    @property
    def bytes_in_flight(self) -> int | None:
        """On their way to one multiprocessor at least, while one of its programs multiplies.

        Its own that it asked for ahead, and of each other program those, or the tile that it waits for.
        """
        if self.ahead is None:
            return None
        own = min(self.ahead.num_bytes, self.ahead.num_bytes / max(self.ahead.loaded_bytes, 1) * self.tile_bytes)
        return round(own + (self.programs - 1) * max(own, self.tile_bytes))


REQUESTS, REPORT = pydantic.TypeAdapter(list[Request]), pydantic.TypeAdapter(KernelReport)


def compile_report(
    arch: str,
    dtype: str = "bf16",
    num_heads: int = 128,
    s_q: int = 1,
    page_size: int = 64,
    kv_lora_rank: int = 512,
    qk_rope_head_dim: int = 64,
    tiles: Tiles | None = None,
) -> KernelReport:
    """Compile ``attend`` as ``mla_decode`` would on ``arch``, with the tile that it would use there, or another.

    Args:
        arch: "sm_75" to "sm_120", or "gfx942".
        dtype: of the cache: "bf16", "fp16", "fp32" or "fp8_mla".
        num_heads: query heads.
        s_q: new tokens.
        page_size: tokens in a page.
        kv_lora_rank: width of the latent.
        qk_rope_head_dim: width of the rotary part.
        tiles: to be tried; None for the one that ``choose_tiles`` gives.

    Raises:
        ValueError: unknown architecture or dtype, a number that is out of range, or a shape that no tile fits.
        ImportError: Triton is not installed.
        RuntimeError: it does not compile; with the compiler's message.
    """
    request = Request(arch, dtype, num_heads, s_q, page_size, kv_lora_rank, qk_rope_head_dim, tiles)
    return compile_reports([request])[0]


def compile_reports(requests: Sequence[Request], note: Callable[[int], object] = lambda _: None) -> list[KernelReport]:
    """``compile_report`` for several requests, in one process of its own.

    In its own, because Triton compiles only where it was imported without its interpreter.

    Args:
        requests: what to compile.
        note: told after each how many are done.
    """
    if importlib.util.find_spec("triton") is None:
        raise ImportError("compiling needs Triton: pip install 'mla-edu[kernels]'")
    for request in requests:
        request.plan()
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", __name__]
    found, pipe = [], subprocess.PIPE
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, env=environment) as child,
    ):
        assert child.stdin is not None and child.stdout is not None
        with suppress(BrokenPipeError):  # a child that ended says why below
            child.stdin.write(REQUESTS.dump_json(list(requests)))
            child.stdin.close()
        for line in child.stdout:
            found.append(REPORT.validate_json(line))
            note(len(found))
        if child.wait():
            said.seek(0)
            raise RuntimeError(f"compiling failed:\n{said.read().decode()[-5000:]}")
    return found


def _compile(request: Request) -> KernelReport:
    from mla_edu.kernels.assembler import assembler
    from mla_edu.kernels.compilation import compile_attend, compile_gluon, empty_tensors

    plan, arch, is_gluon = request.plan(), request.arch, request.backend == "gluon"
    tensors = empty_tensors(request.shape, PAGES)
    compiled = compile_gluon(tensors, plan) if is_gluon else compile_attend(tensors, request.kv_lora_rank, plan, arch)

    tensor_memory = getattr(compiled.metadata, "tmem_size", None) or 0
    if arch.startswith("sm_"):
        binary = compiled.asm["cubin"]
        registers, spilled, instructions = read_cubin(binary)
        per_warp, num_registers = -(-registers * 32 // 256) * 256, REGISTERS
    else:
        binary = compiled.asm["hsaco"]
        registers, spilled, instructions = read_amdgcn(compiled.asm["amdgcn"])
        per_warp, num_registers = registers, 4 * 512  # four units with 512 registers for every lane
    loop: dict[str, Any] = {}
    if arch.startswith("sm_"):
        count = count_turns if is_gluon and request.dtype == "bf16" else count_loop
        loop = count(binary, plan.tiles.num_warps)._asdict() | {"assembler": assembler(arch).version}
    memory, warps = MULTIPROCESSOR[arch]
    num_warps = compiled.metadata.num_warps  # those that only load included
    programs = min(
        num_registers // (per_warp * num_warps),
        memory // (compiled.metadata.shared + 1024),
        warps // num_warps,
        512 // tensor_memory if tensor_memory else warps,
    )
    return KernelReport(
        arch=arch,
        dtype=request.dtype,
        num_heads=request.num_heads,
        s_q=request.s_q,
        page_size=request.page_size,
        tiles=plan.tiles,
        registers=registers,
        spill_bytes=spilled,
        shared_bytes=compiled.metadata.shared,
        tensor_memory=tensor_memory,
        tensor_core_instructions=instructions,
        programs=programs,
        occupancy=programs * num_warps / warps,
        cubin=binary,
        kv_lora_rank=request.kv_lora_rank,
        qk_rope_head_dim=request.qk_rope_head_dim,
        backend=request.backend,
        **loop,
    )


if __name__ == "__main__":
    for request in REQUESTS.validate_json(sys.stdin.buffer.read()):
        sys.stdout.buffer.write(REPORT.dump_json(_compile(request)) + b"\n")
        sys.stdout.buffer.flush()
