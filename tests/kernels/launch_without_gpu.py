"""Launches the decode kernels up to the last step: Triton binds, specializes and compiles for a GPU that is not there.

Reads calls and prints what would have been launched, in JSON. A process of its own, since Triton must be imported
without interpreter; ``launch_calls`` starts it.
"""

import json
import os
import subprocess
import sys

CALL = ["backend", "dtype", "num_heads", "s_q", "page_size", "num_splits", "lengths"]


def launch_calls(calls):
    """Of each call, with the fields of CALL: a dictionary for each of its kernels, and what comes back."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, __file__], input=json.dumps(calls), capture_output=True, text=True, env=environment
    )
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    return json.loads(run.stdout)


def main():
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from mla_edu.kernels import gluon_launch, launch
    from mla_edu.kernels.machine_code import read_cubin
    from mla_edu.kernels.plan import GPU
    from mla_edu.kernels.problems import random_problem

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    launched, run = [], JITFunction.run

    def compile_only(kernel, *arguments, grid, warmup, **options):
        compiled = run(kernel, *arguments, grid=grid, warmup=True, **options)
        registers, spilled, _ = read_cubin(compiled.asm["cubin"])
        found = {"kernel": kernel.fn.__name__, "grid": list(grid), "registers": registers, "spill_bytes": spilled}
        launched.append(found | {"shared_bytes": compiled.metadata.shared, "ptx": compiled.asm["ptx"]})
        return compiled

    JITFunction.run = compile_only
    driver.set_active(Driver())
    launch.describe_gpu = lambda device: GPU("sm_90", 232_448, 132)
    found = []
    for backend, dtype, num_heads, s_q, page_size, num_splits, lengths in json.load(sys.stdin):
        problem = random_problem(lengths, num_heads=num_heads, s_q=s_q, dtype=dtype, page_size=page_size)
        decode = {"triton": launch.decode, "gluon": gluon_launch.decode}[backend]
        out, lse = decode(*problem.tensors, **problem.options, num_splits=num_splits)
        found.append([launched[:], [str(out.dtype), list(out.shape), list(lse.shape)]])
        launched.clear()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
