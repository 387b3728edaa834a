"""What all tests share: no network, one thread per process, the same Hypothesis examples in every CI run.

Each chapter is a test too: executed, it gives the outputs that were committed. The longest are left to the long tests.
"""

import gc
import os

# Before torch, transformers or triton is imported, here or in a notebook's kernel.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import nbformat
import pytest
import torch
from hypothesis import settings
from nbclient.exceptions import CellExecutionError

from compare_outputs import notebook_differences
from execute_notebooks import longest_first
from run_notebook import run

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


LONGEST = {
    "a-state-beside-the-latent",
    "a-whole-model",
    "compression",
    "how-wide-a-latent",
    "measured",
    "serving",
    "the-decode-kernel",
}


class Outputs(pytest.Item):
    def runtest(self):
        committed = nbformat.read(self.path, as_version=4)
        try:
            executed = run(self.path, warm=True, skip_cells_with_tag="nbval-skip")
        except CellExecutionError as error:
            pytest.fail(str(error), pytrace=False)
        if found := notebook_differences(committed, executed):
            pytest.fail("\n".join(found), pytrace=False)

    def reportinfo(self):
        return self.path, None, f"{self.path.name}: outputs as committed"


class Notebook(pytest.File):
    def collect(self):
        outputs = Outputs.from_parent(self, name="outputs")
        if self.path.stem in LONGEST:
            outputs.add_marker(pytest.mark.long)
        yield outputs


def pytest_collect_file(file_path, parent):
    return Notebook.from_parent(parent, path=file_path) if file_path.suffix == ".ipynb" else None


def pytest_collection_finish():
    """Thousands of collected tests live to the end: Python's garbage collector need not look at them again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """The chapters before all else, the longest first: none is left over when the other processes are done."""
    places = longest_first([item.path for item in items if isinstance(item, Outputs)])
    items.sort(key=lambda item: places.index(item.path) if item.path in places else len(places))
