"""Launches the decode kernels up to the last step: Triton binds, specializes and compiles for a GPU that is not there.

Prints what would have been launched, in JSON. A process of its own, since Triton must be imported without interpreter.
"""

import json

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mla_edu.kernels import launch
from mla_edu.kernels.offline import read_cubin
from mla_edu.kernels.plan import GPU
from mla_edu.kernels.problems import random_problem

# heads, new tokens, lengths, dtype, splits
CASES = [(16, 1, [1024], "bf16", None), (128, 2, [70] * 140, "bf16", None), (16, 1, [70] * 140, "fp8_mla", None)]
CASES += [(128, 1, [1024], "fp8_mla", None), (16, 2, [70], "bf16", 1), (16, 1, [70], "fp8_mla", 1)]


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
        registers, spilled, _ = read_cubin(compiled.asm["cubin"])
        launched.append([kernel.fn.__name__, list(grid), registers, spilled, compiled.metadata.shared])
        return compiled

    JITFunction.run = compile_only
    driver.set_active(Driver())
    launch.describe_gpu = lambda device: GPU("sm_90", 232_448, 132)
    found = []
    for heads, s_q, lengths, dtype, num_splits in CASES:
        problem = random_problem(lengths, num_heads=heads, s_q=s_q, dtype=dtype)
        out, lse = launch.decode(*problem.tensors, **problem.options, num_splits=num_splits)
        found.append([launched[:], [str(out.dtype), list(out.shape), list(lse.shape)]])
        launched.clear()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
