"""What all tests share: no network, one thread per process, the same Hypothesis examples in every CI run."""

import inspect
import os

# Before torch, transformers or triton is imported, here or in a notebook's kernel.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

SLOW = (  # kernels that are interpreted or compiled case by case, and whole runs of commands
    "bench/test_command.py",
    "bench/test_run.py",
    "book/test_measured_chapter.py",
    "kernels/test_decode.py",
    "kernels/test_launch.py",
    "kernels/test_mutations.py",
    "kernels/test_offline.py",
    "test_wheel.py",
)


def pytest_collection_modifyitems(config, items):
    """Mark what `make check` leaves out, from where a test stands and what it uses."""
    if config.getoption("jaxtyping_packages", None):  # the annotations answer bad input before the package does
        items[:] = [item for item in items if "pytest.raises" not in inspect.getsource(item.function)]
    for item in items:
        fixtures = getattr(item, "fixturenames", None)  # None: a cell of a notebook
        if fixtures is None or "html" in fixtures or str(item.path).endswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if "browser" in (fixtures or ()):
            item.add_marker(pytest.mark.browser)
        if any(mark.kwargs.get("reason") == "needs a GPU" for mark in item.iter_markers("skipif")):
            item.add_marker(pytest.mark.gpu)
