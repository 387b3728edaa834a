"""Executing as another machine would finds outputs that depend on the machine, and says which."""

import os
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import check_cpus
from check_cpus import PLAIN
from run_notebook import run

pytestmark = pytest.mark.long
SAME = "print(2 + 2)"
BY_PROCESSOR = "import zlib\n\nimport numpy as np\n\nprint(zlib.crc32(np.exp(np.linspace(0, 9, 1000, dtype='f'))))"
BY_THREADS = "import os\n\nprint(os.environ['OMP_NUM_THREADS'])"
# One line for each of the libraries that compute.
LIBRARIES = """
import math, zlib
import numpy as np, torch
t = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
x = t.abs().numpy()
print("NumPy", zlib.crc32(np.exp(x)))
print("OpenBLAS", zlib.crc32(x @ x))
print("ATen", zlib.crc32(torch.exp(t).numpy()))
print("MKL", zlib.crc32((t.double() @ t.double()).numpy()))
print("Python", zlib.crc32(repr([f(v) for f in (math.exp, math.log, math.sin) for v in x.ravel().tolist()]).encode()))
"""
has_more = pytest.mark.skipif("X86_V3" not in PLAIN["NPY_DISABLE_CPU_FEATURES"], reason="no AVX2 to do without")


@pytest.fixture(scope="module")
def commit(tmp_path_factory):
    def commit(*sources):
        """A notebook whose outputs are those of this machine as it is."""
        path = tmp_path_factory.mktemp("chapter") / "01-test.ipynb"
        nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
        nbformat.write(run(path), path)
        return path

    return commit


def check(path):
    return subprocess.run([sys.executable, check_cpus.__file__, path], capture_output=True, text=True)


@pytest.fixture(scope="module")
def found(commit):
    return check(commit("print(2 + 2)", BY_THREADS, BY_PROCESSOR))


def test_an_output_that_depends_on_the_number_of_threads_is_found(found):
    assert found.returncode
    assert "native instructions, two threads" in found.stderr
    assert "01-test.ipynb: cell 1: stdout: expected (-) and got (+)\n    -1\\n\n    +2\\n\n" in found.stdout
    assert "cell 0" not in found.stdout


@has_more
def test_an_output_that_depends_on_the_processor_is_found(found):
    assert found.stderr.startswith("Not the same on every machine: plain instructions, one thread; ")
    plain, native = found.stdout.split("native instructions")
    assert "cell 2" in plain and "cell 1" not in plain
    assert "cell 2" not in native


def test_what_is_no_notebook_is_refused_before_anything_runs():
    done = check("many-gpus")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.endswith("many-gpus; expected a notebook\n")


def test_equal_outputs_are_passed(commit, monkeypatch, capfd):
    monkeypatch.setattr(check_cpus, "MACHINES", {"this machine": {"OMP_NUM_THREADS": "1"}})
    monkeypatch.setattr(sys, "argv", ["check_cpus.py", str(commit("print('%.1f' % 0.25)"))])
    check_cpus.main()
    assert capfd.readouterr() == ("Executing 1 notebooks: this machine ...\nThe same outputs each time.\n", "")


def test_a_cell_that_fails_elsewhere_is_said(commit, monkeypatch):
    path = commit("import os\n\nassert os.environ['OMP_NUM_THREADS'] == '1'")
    assert check_cpus.differences(path, warm=False) == []
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (words,) = check_cpus.differences(path, warm=False)
    assert words.startswith("a cell failed") and "AssertionError" in words


@has_more
def test_each_library_computes_in_another_way_than_here():
    native = {name: value for name, value in os.environ.items() if name not in PLAIN}
    here, there = (
        subprocess.run([sys.executable, "-c", LIBRARIES], env=env, capture_output=True, text=True, check=True).stdout
        for env in (native, native | PLAIN)
    )
    same = [line for line, other in zip(here.splitlines(), there.splitlines(), strict=True) if line == other]
    assert not same
