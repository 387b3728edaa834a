"""Compiles the kernels of stage 1 by Triton for GPUs that are not there.

Only where Triton was imported without its interpreter: ``offline`` starts a process of its own for it.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mla_edu.cost import fp8_row_bytes
from mla_edu.kernels.kernel import attend
from mla_edu.kernels.launch import DTYPES, Results, attend_arguments, attend_options
from mla_edu.kernels.plan import Plan, Shape

SCALE = 0.1  # any: the compiler does not see it


class Tensors(NamedTuple):
    """What the kernels take."""

    q: Tensor
    kv_cache: Tensor
    block_table: Tensor
    seq_lens: Tensor
    results: Results


def empty_tensors(shape: Shape, pages: int) -> Tensors:
    """The tensors of a step with a cache of some pages: shapes and strides, and no memory."""
    rank, rope = shape.kv_lora_rank, shape.qk_rope_head_dim
    stored = {name: each for each, name in DTYPES.items()}[shape.dtype]
    is_fp8 = stored == torch.uint8

    def empty(*sizes: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    row = fp8_row_bytes(rank, rope) if is_fp8 else rank + rope
    q = empty(shape.batch, shape.s_q, shape.num_heads, rank + rope, dtype=torch.bfloat16 if is_fp8 else stored)
    kv_cache = empty(pages, shape.max_len // pages, row, dtype=stored)
    table, lens = empty(shape.batch, pages, dtype=torch.int32), empty(shape.batch, dtype=torch.int32)
    floats = empty(shape.batch, dtype=torch.float32)
    return Tensors(q, kv_cache, table, lens, Results(q, floats, floats, floats, lens))


def compile_attend(tensors: Tensors, rank: int, plan: Plan, arch: str) -> Any:
    """``kernel.attend`` for an architecture; what comes back is Triton's."""
    arguments = attend_arguments(*tensors, kv_lora_rank=rank, sm_scale=SCALE, causal=True, plan=plan)
    source = ASTSource(attend, *_specialize(attend, arguments))
    target = GPUTarget("cuda", int(arch[3:]), 32) if arch.startswith("sm_") else GPUTarget("hip", arch, 64)
    return triton.compile(source, target=target, options=attend_options(plan))


def compile_gluon(tensors: Tensors, plan: Plan) -> Any:
    """``gluon.seesaw``, or for the fp8 cache ``gluon_fp8.attend_fp8``; what comes back is Triton's."""
    from triton.runtime import driver

    from mla_edu.kernels.gluon import seesaw
    from mla_edu.kernels.gluon_fp8 import attend_fp8
    from mla_edu.kernels.gluon_launch import common_arguments, fp8_arguments, seesaw_arguments

    driver.set_active(_Hopper())
    arguments = common_arguments(*tensors, sm_scale=SCALE, causal=True, plan=plan)
    if tensors.kv_cache.dtype == torch.uint8:
        return attend_fp8.warmup(**arguments | fp8_arguments(tensors.q, tensors.kv_cache, plan), grid=(1,))
    return seesaw.warmup(**arguments | seesaw_arguments(tensors.q, tensors.kv_cache), grid=(1,))


class _Hopper:
    """What Triton asks a driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def _specialize(kernel: Any, arguments: dict[str, Any]) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """What Triton derives from the arguments of a launch: types, constants, and what is divisible by 16."""
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
