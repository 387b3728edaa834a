"""The launches themselves, which the interpreter goes around.

Triton's own binder takes every argument, and what it makes of their values compiles without spills and fits; Gluon's
kernels as ``figures.json`` says.
"""

import contextlib
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mla_edu.kernels.problems import random_problem

pytest.importorskip("triton.experimental.gluon")
from mla_edu.kernels import launch
from mla_edu.kernels.kernel import attend
from tests.kernels.launch_without_gpu import launch_calls, watch_steps

CALLS = [
    ["triton", "bf16", 16, 1, 64, None, [1024]],
    ["triton", "bf16", 128, 2, 64, None, [70] * 140],
    ["triton", "fp8_mla", 16, 1, 64, None, [70] * 140],
    ["triton", "fp8_mla", 128, 1, 64, None, [1024]],
    ["triton", "bf16", 16, 2, 64, 1, [70]],
    ["triton", "fp8_mla", 16, 1, 64, 1, [70]],
]
# One layer's steps, as a server goes on: of the batch, the shares and the width of the table some are 1 or multiples of
# 16, which Triton would compile anew for.
SERVED = [["triton", "bf16", 16, 1, 64, None, lengths] for lengths in ([2048], [1920], [2000] * 5, [1920] * 16)]
TABLE = json.loads(Path(__file__).with_name("figures.json").read_text(encoding="utf-8"))["gluon"]
GLUON = [dict(zip(TABLE["columns"], row, strict=True)) for row in TABLE["rows"]]
STEPS = {  # what of the machine's language counts before a product
    "st.shared": "stored",
    "stmatrix": "stored",
    "fence.proxy.async": "fenced",
    "bar.sync": "met",
    "wgmma.mma_async": "product",
}


@pytest.fixture(scope="module")
def launched():
    return launch_calls(CALLS)


@pytest.fixture(scope="module")
def steps():
    return watch_steps(SERVED)


@pytest.fixture(scope="module")
def by_gluon():
    calls = [[each[name] for name in TABLE["columns"][:7]] for each in GLUON]
    return [kernels for kernels, _ in launch_calls(calls)]


def test_each_step_launches_its_kernels_over_all_rows_and_shares(launched):
    grids = [[(each["kernel"], *each["grid"]) for each in kernels] for kernels, _ in launched]
    assert grids == [
        [("attend", 9), ("merge", 16, 8)],  # 18 pages of 64 tokens in the table, 128 tokens to a share
        [("attend", (140 + 4 * 33) * 4), ("merge", 140 * 256, 1)],  # 33 parts at a time, four rounds of them
        [("attend", 132), ("merge", 140 * 16, 1)],
        [("attend", 2 * 9), ("merge", 128, 8)],
        [("attend", 1)],  # one split: no part, nothing to merge
        [("attend", 1)],
    ]


def test_nothing_spills_and_all_fit_as_launched(launched):
    for kernels, _ in launched:
        for each in kernels:
            assert each["spill_bytes"] == 0 and each["shared_bytes"] <= 232_448, each["kernel"]


def test_results_have_the_shapes_that_are_promised(launched):
    assert [results for _, results in launched] == [
        ["torch.bfloat16", [1, 1, 16, 512], [1, 16, 1]],
        ["torch.bfloat16", [140, 2, 128, 512], [140, 128, 2]],
        ["torch.bfloat16", [140, 1, 16, 512], [140, 16, 1]],
        ["torch.bfloat16", [1, 1, 128, 512], [1, 128, 1]],
        ["torch.bfloat16", [1, 2, 16, 512], [1, 16, 2]],
        ["torch.bfloat16", [1, 1, 16, 512], [1, 16, 1]],
    ]


def test_a_step_into_given_buffers_asks_little_of_the_host(steps):
    """No operation of PyTorch runs, not even a view; and what Triton is told by name costs its binder twice."""
    for step in steps:
        assert step["operations"] == 0 and step["touched"] <= 72
        found = [(each["kernel"], each["arguments"], each["by_name"]) for each in step["kernels"]]
        assert found == [("attend", 39, ["num_warps", "num_stages"]), ("merge", 11, ["num_warps"])]


def test_no_step_compiles_what_an_earlier_one_has_compiled(steps):
    assert len({kernel["compiled"] for step in steps for kernel in step["kernels"]}) == 2


def test_partial_results_fill_the_workspace(steps):
    """Rows of 512 numbers, then one number for each row, then two integers for each sequence, up to the end."""
    for step, (*_, lengths) in zip(steps, SERVED, strict=True):
        for kernel in step["kernels"]:
            (partial, *dtypes), (partial_lse, *more), (parts, *most) = kernel["places"]
            assert dtypes + more + most == ["torch.float32", "torch.float32", "torch.int32"]
            assert partial == 0 and partial_lse == 512 * (parts - partial_lse)
            assert parts + 8 * len(lengths) == step["workspace"]


def test_the_arguments_of_attend_are_in_its_order():
    problem = random_problem([70, 3], num_heads=4, s_q=2)
    results, plan = launch.Results(*problem.tensors, None), launch.plan_call(*problem.tensors[:3], 512)
    arguments = launch.attend_arguments(*problem.tensors, results, **problem.options, plan=plan)
    assert list(arguments) == attend.arg_names


@pytest.mark.parametrize("current", [0, 1])
def test_kernels_are_launched_on_the_device_of_the_tensors(current, monkeypatch):
    devices, launched = [current], []

    @contextlib.contextmanager
    def on(device):
        devices.append(device.index)
        yield
        devices.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: devices[-1])
    monkeypatch.setattr(torch.cuda, "device", on)
    device = torch.device("cuda", 1)
    q = SimpleNamespace(is_cuda=True, get_device=lambda: device.index, device=device, shape=(1, 1, 2, 576))
    out, lse = torch.empty(1, 1, 2, 512), torch.empty(1, 2, 1)
    plan = launch.plan_call(*random_problem([70], num_heads=2).tensors[:3], 512, num_splits=1)
    launch.run(lambda results: launched.append(devices[-1]), q, 512, plan, out, lse, None)
    assert launched == [1] and devices == [current]


def test_no_gluon_kernel_compiles_worse_than_it_did(by_gluon):
    for kernels, before in zip(by_gluon, GLUON, strict=True):
        assert kernels[0]["kernel"] == ("attend_fp8" if before["dtype"] == "fp8_mla" else "seesaw")
        assert kernels[0]["registers"] <= 255 and kernels[0]["shared_bytes"] <= 232_448
        for name in ("registers", "spill_bytes", "shared_bytes"):
            assert kernels[0][name] <= before[name], (name, before)


def test_the_fp8_kernel_converts_each_number_once_and_multiplies_what_is_fenced(by_gluon):
    """64 numbers of a tile are for each of 256 threads, two at a time; the threads of all warps have met."""
    for kernels, call in zip(by_gluon, GLUON, strict=True):
        if call["dtype"] != "fp8_mla":
            continue
        ptx, rows = kernels[0]["ptx"], 16 if call["num_heads"] * call["s_q"] <= 16 else 32
        assert ptx.count("cvt.rn.f16x2.e4m3x2") == 128 * 512 // 256 // 2
        products = Counter(re.findall(r"wgmma\.mma_async\S*\.(m64n\d+k16)", ptx))
        assert products == {f"m64n{rows}k16": 36 + 32}  # 576 numbers of a token; four times 64 columns of 128 tokens
        state = "met"
        for step in re.findall("|".join(map(re.escape, STEPS)), ptx):
            assert STEPS[step] != "product" or state == "met", call
            if STEPS[step] == "stored" or (STEPS[step], state) in (("fenced", "stored"), ("met", "fenced")):
                state = STEPS[step]
