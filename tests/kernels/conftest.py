"""What the tests of kernels share."""

import mmap
import os

import numpy as np
import pytest
import torch
from torch import Tensor

NORESERVE = 0x4000  # of Linux: addresses without memory behind them
HALF = 2**31


@pytest.fixture(scope="session", autouse=True)
def fresh_memory_is_poisoned():
    """On the CPU what a step allocates holds NaN: else it might hold the right answer of the step before."""
    new_empty = Tensor.new_empty

    def poisoned(tensor, *size, **options):
        memory = new_empty(tensor, *size, **options)
        if memory.device.type == "cpu":
            memory.untyped_storage().fill_(0xFF)
        return memory

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(Tensor, "new_empty", poisoned)
        yield


@pytest.fixture(scope="session", autouse=True)
def language_is_patched_once_per_launch():
    """Triton's interpreter patches its language anew whenever a jitted function calls another: half of all its time."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    launch, patch, patched = interpreter.GridExecutor.__call__, interpreter._patch_lang, set()
    language = (interpreter.tl, interpreter.tl.core)

    def launch_anew(*args, **options):
        patched.clear()
        return launch(*args, **options)

    def patch_the_rest(fn):
        modules = {each.__name__ for each in fn.__globals__.values() if any(each is module for module in language)}
        if not modules <= patched:
            patched.update(modules)
            return patch(fn)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter.GridExecutor, "__call__", launch_anew)
        patches.setattr(interpreter, "_patch_lang", patch_the_rest)
        yield


@pytest.fixture
def far_apart(monkeypatch):
    """A function that moves a tensor's numbers far apart: neighbours along ``dim`` lie ``stride`` numbers apart.

    Most of the addresses are never touched. As many lie before the tensor as an offset in 32 bits would go wrong by,
    and hold zeros: whoever computes in 32 bits reads those, or what lies there, and shows.
    """
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *args: None)  # it copies all onto itself

    def move(tensor: Tensor, dim: int, stride: int) -> Tensor:
        largest = (tensor.shape[dim] - 1) * stride
        assert HALF <= largest < 2 * HALF
        shape = list(tensor.shape)
        inner = tensor.numel() // shape[dim]
        assert inner < stride
        strides = torch.empty([1 if i == dim else size for i, size in enumerate(shape)]).stride()
        strides = [stride if i == dim else each for i, each in enumerate(strides)]
        size = HALF + largest + inner
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        memory = mmap.mmap(-1, size * tensor.element_size(), flags=flags)
        moved = torch.frombuffer(memory, dtype=tensor.dtype).as_strided(shape, strides, HALF)
        return moved.copy_(tensor)

    return move


@pytest.fixture
def gpu_maximum(monkeypatch):
    """Let the interpreter's maximum of two numbers pass over NaN, as a GPU's does."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    monkeypatch.setattr(
        interpreter.InterpreterBuilder, "create_maxnumf", lambda self, a, b: self.binary_op(a, b, np.fmax)
    )
