"""Runs a Gluon kernel's own source on a CPU: PyTorch in the place of its operations, a thread for each group of warps.

One thread runs at a time, and at every access to shared memory or to a barrier it is drawn anew which goes on: a group
of warps, a copy under way, a product under way. So all that the kernel leaves to chance happens in some order, drawn
from a seed, and a deadlock is known as soon as nothing can go on. What would be wrong on a GPU shows here:

- Shared memory begins as NaN, and so does the result of a product that was not waited for.
- A product reads its operands at any time until it is waited for, a copy writes at any time after it was ordered.
- What threads store is not seen by products and copies before a fence of the thread.
- A barrier has phases, and counts bytes; a wait names a parity, as on a GPU.
- What a kernel says in the GPU's own assembler is read, and done line by line.

That the threads of one group of warps wait for each other is the compiler's work, and not looked at here.
"""

import ast
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mla_edu.kernels.gluon_language import Integer, Pointer, language
from mla_edu.kernels.gluon_machine import EmulatedMachine, LogEntry

FILES = {"seesaw": "gluon.py", "attend_fp8": "gluon_fp8.py"}  # where each kernel is; both use ``gluon_shares``


class EmulatedKernel:
    """``kernel[grid](**arguments)`` on tensors of a CPU, as Triton has it on those of a GPU.

    Put in the place of the kernel that ``gluon_launch`` launches, it makes ``gluon_launch.decode`` run there.

    Args:
        name: "seesaw" or "attend_fp8".
        changes: texts of the source, and what replaces each: to see what a mistake does.
        seed: the order in which things come about is drawn from it, for each program anew.

    Raises:
        ValueError: unknown name, or a text to be changed that is not in the source.
    """

    def __init__(self, name: str, changes: Sequence[tuple[str, str]] = (), seed: int = 0):
        if name not in FILES:
            raise ValueError(f"name is {name!r}; expected {' or '.join(map(repr, FILES))}")
        folder = Path(__file__).parent
        source = "\n".join((folder / file).read_text(encoding="utf-8") for file in ("gluon_shares.py", FILES[name]))
        for right, wrong in changes:
            if right not in source:
                raise ValueError(f"changes has {right!r}; expected a text of {FILES[name]} or gluon_shares.py")
            source = source.replace(right, wrong)
        tree = ast.parse(source)
        tree.body = [each for each in tree.body if not isinstance(each, ast.Import | ast.ImportFrom)]
        self.name, self.seed, self._code = name, seed, compile(tree, FILES[name], "exec")
        self._has_groups = "gl.warp_specialize(" in source
        self._barriers = re.findall(r"(\w+) = gl\.allocate_shared_memory\(gl\.int64", source)
        self.logs: list[list[LogEntry]] = []  # of each program of the last launch

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """A launch of so many programs."""
        return functools.partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], num_warps: int, **arguments: Any) -> None:
        self.logs = [[] for _ in range(grid[0])]
        for program, log in enumerate(self.logs):
            machine = EmulatedMachine(f"{self.seed} {program}", log)
            names = language(machine, program, num_warps, iter(self._barriers))
            exec(self._code, names)
            parameters = inspect.signature(names[self.name]).parameters  # all else is for the compiler
            own = {name: _argument(value) for name, value in arguments.items() if name in parameters}
            run = functools.partial(names[self.name], **own)
            if self._has_groups:
                run()
            else:
                machine.run([(run, ())])


def _argument(value: Any) -> Any:
    """An argument of a launch as the kernel sees it."""
    if isinstance(value, torch.Tensor):
        span = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        return Pointer(value.as_strided([span], [1]))
    return Integer(value) if type(value) is int else value
