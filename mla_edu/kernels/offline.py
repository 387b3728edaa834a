"""Compiles ``attend`` for GPUs that are not there, and reads what the compiler made of it.

Triton's wheel brings NVIDIA's assembler and disassembler, so this runs on any Linux machine. What comes out says
whether a kernel fits, and what it can have on its way from memory; ``forecast`` makes a prediction of it.

``python -m mla_edu.kernels.offline`` reads a list of requests in JSON, and writes a report for each, one a line.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pydantic

from mla_edu.cost import fp8_row_bytes
from mla_edu.kernels.machine_code import Ahead, matrix_flops, read_ahead, read_cubin, read_loop
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
    """What to compile: ``attend`` as ``mla_decode`` would run it, or with another tile."""

    arch: str  # "sm_75" to "sm_120", or "gfx942"
    dtype: str = "bf16"  # of the cache: "bf16", "fp16", "fp32" or "fp8_mla"
    num_heads: int = 128
    s_q: int = 1
    page_size: int = 64
    kv_lora_rank: int = 512
    qk_rope_head_dim: int = 64
    tiles: Tiles | None = None  # None for those of ``choose_tiles``

    def plan(self) -> Plan:
        """The plan that the GPU of this architecture would follow, in parts.

        Raises:
            ValueError: unknown architecture or dtype, a number that is out of range, or a shape that no tile fits.
        """
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch is {self.arch!r}; expected {', '.join(ARCHITECTURES)}")
        if self.dtype not in BYTES:
            raise ValueError(f"dtype is {self.dtype!r}; expected {', '.join(BYTES)}")
        for name in ("num_heads", "s_q", "page_size", "kv_lora_rank"):
            check_integer(name, getattr(self, name), 1, 2**10 if name == "num_heads" else 2**16)
        sizes = (self.s_q, self.num_heads, self.kv_lora_rank, self.qk_rope_head_dim)
        shape = Shape(BATCH, *sizes, self.dtype, PAGES * self.page_size)
        return make_plan(shape, GPU(self.arch, SHARED_LIMIT[self.arch], 100), tiles=self.tiles)


@pydantic.dataclasses.dataclass(frozen=True, config={"ser_json_bytes": "base64", "val_json_bytes": "base64"})
class KernelReport:
    """What the compiler made of ``attend`` for one architecture."""

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
    loop_instructions: int | None = None  # of one warp
    executed_flops: int | None = None  # of a program's matrix units for one tile; None where the code does not say
    ahead: Ahead | None = None  # loads that are on their way while a program multiplies

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
        """Of all warps of a program."""
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
    for request in requests:
        request.plan()
    if importlib.util.find_spec("triton") is None:
        raise ImportError("compiling needs Triton: pip install 'mla-edu[kernels]'")
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
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mla_edu.kernels.assembler import assembler
    from mla_edu.kernels.kernel import attend
    from mla_edu.kernels.launch import DTYPES, Results, attend_arguments

    plan, rank, rope = request.plan(), request.kv_lora_rank, request.qk_rope_head_dim
    stored = {name: each for each, name in DTYPES.items()}[request.dtype]
    is_fp8 = stored == torch.uint8

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")  # shape and strides, and no memory

    row = fp8_row_bytes(rank, rope) if is_fp8 else rank + rope
    q = empty(BATCH, request.s_q, request.num_heads, rank + rope, dtype=torch.bfloat16 if is_fp8 else stored)
    kv_cache = empty(PAGES, request.page_size, row, dtype=stored)
    table, lens = empty(BATCH, PAGES, dtype=torch.int32), empty(BATCH, dtype=torch.int32)
    floats = empty(BATCH, dtype=torch.float32)
    arguments = attend_arguments(
        q, kv_cache, table, lens, Results(q, floats, floats, floats, lens),
        kv_lora_rank=rank, sm_scale=0.1, causal=True, plan=plan,
    )  # fmt: skip
    options = {name: value for name, value in arguments.items() if name not in attend.arg_names}

    source = ASTSource(attend, *_specialize(attend, arguments))
    arch = request.arch
    target = GPUTarget("cuda", int(arch[3:]), 32) if arch.startswith("sm_") else GPUTarget("hip", arch, 64)
    compiled = triton.compile(source, target=target, options=options)

    tensor_memory = getattr(compiled.metadata, "tmem_size", None) or 0
    if arch.startswith("sm_"):
        binary = compiled.asm["cubin"]
        registers, spilled, instructions = read_cubin(binary)
        per_warp, num_registers = -(-registers * 32 // 256) * 256, REGISTERS
    else:
        binary = compiled.asm["hsaco"]
        registers, spilled, instructions = _read_amdgcn(compiled.asm["amdgcn"])
        per_warp, num_registers = registers, 4 * 512  # four units with 512 registers for every lane
    loop: dict[str, Any] = {}
    if arch.startswith("sm_"):
        lines = read_loop(binary)
        loop = {
            "assembler": assembler(arch).version,
            "loop_instructions": len(lines),
            "executed_flops": matrix_flops(lines, plan.tiles.num_warps),
            "ahead": read_ahead(lines, 32 * plan.tiles.num_warps),
        }
    memory, warps = MULTIPROCESSOR[arch]
    programs = min(
        num_registers // (per_warp * plan.tiles.num_warps),
        memory // (compiled.metadata.shared + 1024),
        warps // plan.tiles.num_warps,
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
        occupancy=programs * plan.tiles.num_warps / warps,
        cubin=binary,
        kv_lora_rank=rank,
        qk_rope_head_dim=rope,
        **loop,
    )


def _specialize(kernel: Any, arguments: dict[str, Any]) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """What Triton derives from the arguments of a launch: types, constants, and what is divisible by 16."""
    import torch

    pointers = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.uint8: "*u8"}
    pointers[torch.int32] = "*i32"
    signature: dict[str, str] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    for index, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        value = arguments[name]
        divisible = False
        if name.isupper() or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[name], constants[(index,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = pointers[value.dtype]
            divisible = value.storage_offset() * value.element_size() % 16 == 0
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            divisible = isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _read_amdgcn(text: str) -> tuple[int, int, dict[str, int]]:
    numbers = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", text))
    instructions = dict(Counter("MFMA" for _ in re.findall(r"\bv_mfma_", text)))
    return int(numbers["vgpr_count"]), int(numbers["private_segment_fixed_size"]), instructions


if __name__ == "__main__":
    for request in REQUESTS.validate_json(sys.stdin.buffer.read()):
        sys.stdout.buffer.write(REPORT.dump_json(_compile(request)) + b"\n")
        sys.stdout.buffer.flush()
