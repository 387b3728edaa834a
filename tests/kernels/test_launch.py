"""The launches themselves, which the interpreter goes around.

Triton's own binder takes every argument, and what it makes of their values compiles without spills and fits.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("launch_without_gpu.py")


@pytest.fixture(scope="module")
def launched():
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def test_each_step_launches_its_kernels_over_all_rows_and_shares(launched):
    grids = [[(name, *grid) for name, grid, *_ in kernels] for kernels, _ in launched]
    assert grids == [
        [("attend", 9), ("merge", 16, 8)],  # 18 pages of 64 tokens in the table, 128 tokens to a share
        [("attend", 140 * 4 * 2), ("merge", 140 * 256, 1)],
        [("attend", 132), ("merge", 140 * 16, 1)],
        [("attend", 2 * 9), ("merge", 128, 8)],
        [("attend", 1)],  # one split: no part, nothing to merge
        [("attend", 1)],
    ]


def test_nothing_spills_and_all_fit_as_launched(launched):
    for kernels, _ in launched:
        for name, _, _, spilled, shared in kernels:
            assert spilled == 0 and shared <= 232_448, name


def test_results_have_the_shapes_that_are_promised(launched):
    assert [results for _, results in launched] == [
        ["torch.bfloat16", [1, 1, 16, 512], [1, 16, 1]],
        ["torch.bfloat16", [140, 2, 128, 512], [140, 128, 2]],
        ["torch.bfloat16", [140, 1, 16, 512], [140, 16, 1]],
        ["torch.bfloat16", [1, 1, 128, 512], [1, 128, 1]],
        ["torch.bfloat16", [1, 2, 16, 512], [1, 16, 2]],
        ["torch.bfloat16", [1, 1, 16, 512], [1, 16, 1]],
    ]
