"""Launches the decode kernels up to the last step: Triton binds, specializes and compiles for a GPU that is not there.

Prints what would have been launched, in JSON. A process of its own, since Triton must be imported without interpreter.
"""

import json

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mla_edu.bench.grid import Case
from mla_edu.bench.run import make_problems
from mla_edu.kernels import launch
from mla_edu.kernels.offline import _read_cubin

CASES = [(16, 1, 1024, 1, "bf16"), (128, 2, 128, 140, "bf16"), (16, 1, 128, 140, "fp8"), (128, 1, 1024, 1, "fp8")]


class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def main():
    launched, run = [], JITFunction.run

    def compile_only(kernel, *arguments, grid, warmup, **options):
        compiled = run(kernel, *arguments, grid=grid, warmup=True, **options)
        _, spilled, _ = _read_cubin(compiled.asm["cubin"])
        launched.append([kernel.fn.__name__, list(grid), spilled, compiled.metadata.shared])
        return compiled

    JITFunction.run = compile_only
    driver.set_active(Driver())
    launch.device_limits = lambda device: ("sm_90", 232_448, 132)
    found = []
    for heads, s_q, context, batch, dtype in CASES:
        case = Case(heads=heads, s_q=s_q, context=context, batch=batch, dtype=dtype)
        (problem,) = make_problems(case, torch.device("cpu"), 1)
        out, lse = launch.decode(*problem.tensors, **problem.options)
        found.append([launched[:], [str(out.dtype), list(out.shape), list(lse.shape)]])
        launched.clear()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
