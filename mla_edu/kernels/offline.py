"""Compiles stage 1 of the decode step for GPUs that are not there, and reads what the compiler made of it.

Triton's wheel brings NVIDIA's assembler and disassembler, so this runs on any Linux machine. What comes out says
whether a kernel fits, not how fast it is.
"""

import importlib.util
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mla_edu.kernels.tiles import SHARED_LIMIT, Tiles, choose_tiles

ARCHITECTURES = tuple(SHARED_LIMIT)
# Of one multiprocessor: shared memory in bytes and warps (CUDA C++ Programming Guide, "Technical Specifications per
# Compute Capability"; each has 65 536 registers). gfx942: a compute unit's LDS and wavefronts (AMD CDNA 3 ISA).
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


@dataclass(frozen=True)
class KernelReport:
    """What the compiler made of stage 1 for one architecture."""

    arch: str
    dtype: str
    num_heads: int
    s_q: int
    tiles: Tiles
    registers: int  # per thread
    spill_bytes: int  # per thread, that did not fit into registers and lie in memory
    shared_bytes: int  # per block
    tensor_memory: int  # columns of 128 numbers that a block takes, of 512; sm_100 only
    tensor_core_instructions: dict[str, int]  # in the program text: {"HGMMA": 76}; a loop counts once
    occupancy: float  # share of a multiprocessor's warps that fit at a time, estimated
    cubin: bytes = field(repr=False)  # the machine code


def compile_report(
    arch: str,
    dtype: str = "bf16",
    num_heads: int = 128,
    s_q: int = 1,
    kv_lora_rank: int = 512,
    qk_rope_head_dim: int = 64,
    tiles: Tiles | None = None,
) -> KernelReport:
    """Compile stage 1 as ``mla_decode`` would on ``arch``, with the tile that it would use there, or another.

    Args:
        arch: "sm_75" to "sm_120", or "gfx942".
        dtype: "bf16", "fp16", "fp32", or "fp8" for the fp8 cache.
        num_heads: query heads.
        s_q: new tokens.
        kv_lora_rank: width of the latent.
        qk_rope_head_dim: width of the rotary part.
        tiles: to be tried; None for the one that ``choose_tiles`` gives.

    Raises:
        ValueError: unknown architecture or dtype, a number that is not positive, or a shape that no tile fits.
        ImportError: Triton is not installed.
        RuntimeError: it does not compile; with the compiler's message.
    """
    return compile_reports([(arch, dtype, num_heads, s_q, kv_lora_rank, qk_rope_head_dim, tiles)])[0]


def compile_reports(requests: list[tuple]) -> list[KernelReport]:
    """``compile_report`` for several lists of arguments, in one process of its own.

    In its own, because Triton compiles only where it was imported without its interpreter.
    """
    plans = [_plan(*request) for request in requests]
    if importlib.util.find_spec("triton") is None:
        raise ImportError("compiling needs Triton: pip install 'mla-edu[kernels]'")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "reports"
        environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", f"from {__name__} import _compile_all; _compile_all()", str(answer)]
        child = subprocess.run(command, input=pickle.dumps(plans), env=environment, capture_output=True)
        if child.returncode:
            raise RuntimeError(f"compiling failed:\n{child.stderr.decode()[-2000:]}")
        return pickle.loads(answer.read_bytes())


def _plan(
    arch: str,
    dtype: str = "bf16",
    num_heads: int = 128,
    s_q: int = 1,
    kv_lora_rank: int = 512,
    rope: int = 64,
    tiles: Tiles | None = None,
) -> tuple:
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch is {arch!r}; expected {', '.join(ARCHITECTURES)}")
    for name, value in {"num_heads": num_heads, "s_q": s_q, "kv_lora_rank": kv_lora_rank}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    shape = {"kv_lora_rank": kv_lora_rank, "qk_rope_head_dim": rope, "dtype": dtype}
    tiles = tiles or choose_tiles(arch, num_rows=num_heads * s_q, **shape)
    return arch, dtype, num_heads, s_q, kv_lora_rank, rope, tiles


def _compile_all() -> None:
    plans = pickle.loads(sys.stdin.buffer.read())
    Path(sys.argv[1]).write_bytes(pickle.dumps([_compile(*plan) for plan in plans]))


def _compile(
    arch: str, dtype: str, num_heads: int, s_q: int, kv_lora_rank: int, rope: int, tiles: Tiles
) -> KernelReport:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mla_edu.kernels import launch
    from mla_edu.ops.fp8 import fp8_row_bytes

    stored = {name: each for each, name in launch.DTYPES.items()}[dtype]
    queries = torch.bfloat16 if dtype == "fp8" else stored
    width = fp8_row_bytes(kv_lora_rank, rope) if dtype == "fp8" else kv_lora_rank + rope
    meta = {"device": "meta"}  # tensors with shapes and strides, and no memory
    q = torch.empty(9, s_q, num_heads, kv_lora_rank + rope, dtype=queries, **meta)
    kv_cache = torch.empty(99, 64, width, dtype=stored, **meta)
    table, lens = torch.empty(9, 99, dtype=torch.int32, **meta), torch.empty(9, dtype=torch.int32, **meta)
    floats = torch.empty(9, dtype=torch.float32, **meta)
    kernel, arguments = launch.stage1(
        q, kv_cache, table, lens, (q, floats, floats, floats), kv_lora_rank=kv_lora_rank, sm_scale=0.1, causal=True,
        num_splits=3, min_split=launch.MIN_SPLIT, tiles=tiles,
    )  # fmt: skip

    signature, constants, attributes = _specialize(kernel, arguments)
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", int(arch[3:]), 32) if arch.startswith("sm_") else GPUTarget("hip", arch, 64)
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    compiled = triton.compile(source, target=target, options=options)

    columns = getattr(compiled.metadata, "tmem_size", None) or 0
    if arch.startswith("sm_"):
        binary = compiled.asm["cubin"]
        registers, spilled, instructions = _read_cubin(binary)
        per_warp, num_registers = -(-registers * 32 // 256) * 256, 65_536
    else:
        binary = compiled.asm["hsaco"]
        registers, spilled, instructions = _read_amdgcn(compiled.asm["amdgcn"])
        per_warp, num_registers = registers, 4 * 512  # four units with 512 registers for every lane
    memory, warps = MULTIPROCESSOR[arch]
    blocks = min(
        num_registers // (per_warp * tiles.num_warps),
        memory // (compiled.metadata.shared + 1024),
        warps // tiles.num_warps,
        512 // columns if columns else warps,
    )
    return KernelReport(
        arch, dtype, num_heads, s_q, tiles, registers, spilled, compiled.metadata.shared, columns,
        instructions, blocks * tiles.num_warps / warps, binary,
    )  # fmt: skip


def _specialize(kernel, arguments: dict) -> tuple[dict, dict, dict]:
    """What Triton derives from the arguments of a launch: types, constants, and what is divisible by 16."""
    import torch

    pointers = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.uint8: "*u8"}
    pointers[torch.int32] = "*i32"
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = arguments[name]
        divisible = False
        if name.isupper() or (isinstance(value, int) and value == 1):
            signature[name], constants[(index,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = pointers[value.dtype]
            divisible = value.storage_offset() * value.element_size() % 16 == 0
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            divisible = isinstance(value, int) and value % 16 == 0
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _read_cubin(cubin: bytes) -> tuple[int, int, dict[str, int]]:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = [["cuobjdump", "-res-usage", file.name], ["nvdisasm", "-c", file.name]]
        usage, text = (
            subprocess.run([tools / command[0], *command[1:]], capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    numbers = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"], dict(Counter(re.findall(r"\b[A-Z]+MMA\b", text)))


def _read_amdgcn(text: str) -> tuple[int, int, dict[str, int]]:
    numbers = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", text))
    instructions = dict(Counter("MFMA" for _ in re.findall(r"\bv_mfma_", text)))
    return int(numbers["vgpr_count"]), int(numbers["private_segment_fixed_size"]), instructions
