"""Compiles ``attend`` for GPUs that are not there, and reads what the compiler made of it.

Triton's wheel brings NVIDIA's assembler and disassembler, so this runs on any Linux machine. What comes out says
whether a kernel fits, not how fast it is.

``python -m mla_edu.kernels.offline`` reads a list of requests in JSON, and writes a list of reports.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from mla_edu.kernels.plan import GPU, Plan, Shape, make_plan
from mla_edu.kernels.tiles import BYTES, REGISTERS, SHARED_LIMIT, Tiles

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
UNSPECIALIZED = ("batch", "num_parts", "min_tiles", "stride_tb")  # that change from step to step
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
        """The plan that the GPU of this architecture would follow, with splits.

        Raises:
            ValueError: unknown architecture or dtype, a number that is not positive, or a shape that no tile fits.
        """
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch is {self.arch!r}; expected {', '.join(ARCHITECTURES)}")
        if self.dtype not in BYTES:
            raise ValueError(f"dtype is {self.dtype!r}; expected {', '.join(BYTES)}")
        for name in ("num_heads", "s_q", "page_size", "kv_lora_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        sizes = (self.s_q, self.num_heads, self.kv_lora_rank, self.qk_rope_head_dim)
        shape = Shape(BATCH, *sizes, self.dtype, PAGES * self.page_size)
        return make_plan(shape, GPU(self.arch, SHARED_LIMIT[self.arch], 1), num_splits=3, tiles=self.tiles)


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


REQUESTS, REPORTS = pydantic.TypeAdapter(list[Request]), pydantic.TypeAdapter(list[KernelReport])


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
        ValueError: unknown architecture or dtype, a number that is not positive, or a shape that no tile fits.
        ImportError: Triton is not installed.
        RuntimeError: it does not compile; with the compiler's message.
    """
    request = Request(arch, dtype, num_heads, s_q, page_size, kv_lora_rank, qk_rope_head_dim, tiles)
    return compile_reports([request])[0]


def compile_reports(requests: Sequence[Request]) -> list[KernelReport]:
    """``compile_report`` for several requests, in one process of its own.

    In its own, because Triton compiles only where it was imported without its interpreter.
    """
    for request in requests:
        request.plan()
    if importlib.util.find_spec("triton") is None:
        raise ImportError("compiling needs Triton: pip install 'mla-edu[kernels]'")
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", __name__]
    child = subprocess.run(command, input=REQUESTS.dump_json(list(requests)), env=environment, capture_output=True)
    if child.returncode:
        raise RuntimeError(f"compiling failed:\n{child.stderr.decode()[-2000:]}")
    return REPORTS.validate_json(child.stdout)


def _compile(request: Request) -> KernelReport:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mla_edu.cost import fp8_row_bytes
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
    )


def _specialize(kernel: Any, arguments: dict[str, Any]) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """What Triton derives from the arguments of a launch: types, constants, and what is divisible by 16."""
    import torch

    pointers = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.uint8: "*u8"}
    pointers[torch.int32] = "*i32"
    signature: dict[str, str] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    for index, name in enumerate(kernel.arg_names):
        value = arguments[name]
        divisible = False
        if name.isupper() or (isinstance(value, int) and value == 1 and name not in UNSPECIALIZED):
            signature[name], constants[(index,)] = "constexpr", value
        elif name in UNSPECIALIZED:
            signature[name] = "i32"
        elif isinstance(value, torch.Tensor):
            signature[name] = pointers[value.dtype]
            divisible = value.storage_offset() * value.element_size() % 16 == 0
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            divisible = isinstance(value, int) and value % 16 == 0
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def read_cubin(cubin: bytes) -> tuple[int, int, dict[str, int]]:
    """Of NVIDIA's machine code: registers and spilled bytes per thread, and how many instructions multiply matrices."""
    usage, text = _ask_tool("cuobjdump", "-res-usage", cubin), _ask_tool("nvdisasm", "-c", cubin)
    numbers = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"], dict(Counter(re.findall(r"\b[A-Z]+MMA\b", text)))


def read_loop(cubin: bytes) -> list[str]:
    """Of NVIDIA's machine code: the instructions of the longest loop in order, which is the one over the tiles.

    A loop is what stands between a label and a jump back to it.

    Raises:
        ValueError: there is none.
    """
    labels: dict[str, int] = {}
    instructions: list[str] = []
    longest: list[str] = []
    for line in _ask_tool("nvdisasm", "-c", cubin).splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(.*?)\s*;", line):
            instructions.append(found[1])
            jump = re.match(r"BRA.*\((\.L_x_\d+)\)", found[1])
            start = labels.get(jump[1]) if jump else None
            if start is not None and len(instructions) - start > len(longest):
                longest = instructions[start:]
    if not longest:
        raise ValueError(f"cubin has {len(instructions)} instructions and no jump back; expected a loop")
    return longest


def _ask_tool(name: str, option: str, cubin: bytes) -> str:
    """What one of NVIDIA's tools, which Triton's wheel brings, says of machine code."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def _read_amdgcn(text: str) -> tuple[int, int, dict[str, int]]:
    numbers = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", text))
    instructions = dict(Counter("MFMA" for _ in re.findall(r"\bv_mfma_", text)))
    return int(numbers["vgpr_count"]), int(numbers["private_segment_fixed_size"]), instructions


if __name__ == "__main__":
    reports = [_compile(request) for request in REQUESTS.validate_json(sys.stdin.buffer.read())]
    sys.stdout.buffer.write(REPORTS.dump_json(reports))
