"""Launches the decode kernels up to the last step: Triton binds, specializes and compiles for a GPU that is not there.

Reads calls and prints what would have been launched, or what the host did in steps into buffers, in JSON. A process of
its own, since Triton must be imported without interpreter; ``launch_calls`` and ``watch_steps`` start it.
"""

import json
import os
import subprocess
import sys

CALL = ["backend", "dtype", "num_heads", "s_q", "page_size", "num_splits", "lengths"]


def launch_calls(calls):
    """Of each call, with the fields of CALL: a dictionary for each of its kernels, and what comes back."""
    return start("launch", calls)


def watch_steps(steps):
    """Of each step, with the fields of CALL, by ``mla_decode`` into buffers of the caller's: what the host does.

    ``touched`` counts what is asked of tensors outside of Triton, ``operations`` what PyTorch runs. ``kernels`` has for
    each launch how many arguments go by place and which by name, what compiled kernel it is, and of the arguments that
    lie in the workspace the byte that each begins at, and its dtype.
    """
    return start("watch", steps)


def start(mode, calls):
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, __file__, mode], input=json.dumps(calls), capture_output=True, text=True, env=environment
    )
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    return json.loads(run.stdout)


def launch(call, note):
    from mla_edu.kernels import gluon_launch, launch
    from mla_edu.kernels.machine_code import read_cubin

    launched, problem = [], make_problem(call)

    def kernel(name, grid, compiled, arguments, options):
        registers, spilled, _ = read_cubin(compiled.asm["cubin"])
        found = {"kernel": name, "grid": list(grid), "registers": registers, "spill_bytes": spilled}
        launched.append(found | {"shared_bytes": compiled.metadata.shared, "ptx": compiled.asm["ptx"]})

    note(kernel)
    decode = {"triton": launch.decode, "gluon": gluon_launch.decode}[call["backend"]]
    out, lse = decode(*problem.tensors, **problem.options, num_splits=call["num_splits"])
    return [launched, [str(out.dtype), list(out.shape), list(lse.shape)]]


def watch(step, note):
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    from mla_edu.kernels import api, launch, workspace_bytes

    class Touched(TorchFunctionMode):
        count = 0

        def __torch_function__(self, function, types, arguments=(), options=None):
            self.count += 1
            return function(*arguments, **(options or {}))

    class Operations(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            self.count += 1
            return function(*arguments, **(options or {}))

    # The tensors stand for some on a GPU, of which no value is read.
    api.check_values, api._triton = lambda *tensors: None, lambda device_type: launch
    problem, launched = make_problem(step), []
    options = {"num_splits": step["num_splits"], "backend": step["backend"]}
    size = workspace_bytes(*problem.tensors[:3], kv_lora_rank=512, **options)
    workspace = torch.empty(size, dtype=torch.uint8)
    out, lse = problem.q[..., :512].clone(), torch.empty(problem.q.shape[0], step["num_heads"], step["s_q"])

    def kernel(name, grid, compiled, arguments, options):
        pointers = [each for each in arguments if hasattr(each, "data_ptr")]
        places = [[each.data_ptr() - workspace.data_ptr(), str(each.dtype)] for each in pointers]
        found = {"kernel": name, "compiled": id(compiled), "arguments": len(arguments), "by_name": list(options)}
        launched.append(found | {"places": [place for place in places if 0 <= place[0] < size]})

    note(kernel)
    with Operations() as operations, Touched() as touched:
        api.mla_decode(
            *problem.tensors, **problem.options, **options, return_lse=True, out=out, lse=lse, workspace=workspace
        )
    return {"kernels": launched, "touched": touched.count, "operations": operations.count, "workspace": size}


def make_problem(call):
    from mla_edu.kernels.problems import random_problem

    return random_problem(call["lengths"], **{name: call[name] for name in ("num_heads", "s_q", "dtype", "page_size")})


def main():
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from mla_edu.kernels import launch as launcher
    from mla_edu.kernels.plan import GPU

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    run, notes = JITFunction.run, []

    def compile_only(kernel, *arguments, grid, warmup, **options):
        with torch._C.DisableTorchFunction():  # what Triton asks of tensors is not counted
            compiled = run(kernel, *arguments, grid=grid, warmup=True, **options)
            notes[-1](kernel.fn.__name__, grid, compiled, arguments, options)
        return compiled

    JITFunction.run = compile_only
    driver.set_active(Driver())
    launcher.describe_gpu = lambda device: GPU("sm_90", 232_448, 132)
    each = {"launch": launch, "watch": watch}[sys.argv[1]]
    print(json.dumps([each(dict(zip(CALL, call, strict=True)), notes.append) for call in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
