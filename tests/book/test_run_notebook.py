"""A notebook run in a kernel that was forked gives what it gives in a new process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat.v4 import new_code_cell, new_notebook

from run_notebook import run

CELLS = {
    "streams": "import sys\nprint('one')\nprint('two', file=sys.stderr)\nprint('three', flush=True)",
    "names": "print(sorted(name for name in globals() if name[0] != '_'))",
    "command": "import os\nprint(os.path.basename(os.getcwd()), sys.argv[0], __name__, os.environ.get('FOR_KERNELS'))",
    "child": "import subprocess\nprint(subprocess.run('echo $0 said', shell=True, capture_output=True).stdout)",
    "widget": (
        "import anywidget\nimport traitlets\n\n\nclass Dial(anywidget.AnyWidget):\n    _esm = 'export default {}'\n"
        "    angle = traitlets.Int(3).tag(sync=True)\n\n    def __repr__(self):\n        return 'Dial()'\n\n\nDial()"
    ),
    "figure": "from mla_edu.book import figure, show\n\nfig, ax = figure()\nax.plot([1, 2])\nshow(fig, 'a rise')",
    "fails": "1 / 0",
}


@pytest.fixture
def write(tmp_path):
    def write(sources, **metadata):
        path = tmp_path / "01-test.ipynb"
        nbformat.write(new_notebook(cells=[new_code_cell(source, metadata=metadata) for source in sources]), path)
        return path

    return write


def is_running(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def without_traceback(notebook):
    for cell in notebook.cells:
        for output in cell.outputs:
            output.pop("traceback", None)
    return notebook


def test_a_forked_kernel_gives_what_a_new_process_gives(write, monkeypatch):
    run(write(["1"]), warm=True)  # the process that forks is there, and holds an environment
    monkeypatch.setenv("FOR_KERNELS", "set later")
    path = write(CELLS.values(), tags=["raises-exception"])
    cold, warm = (without_traceback(run(path, warm=warm)) for warm in (False, True))
    assert warm == cold
    outputs = dict(zip(CELLS, (cell.outputs for cell in warm.cells), strict=True))
    assert [(each.name, each.text) for each in outputs["streams"]] == [("stdout", "one\nthree\n"), ("stderr", "two\n")]
    assert outputs["command"][0].text.endswith("__main__ set later\n")
    assert "image/svg+xml" in outputs["figure"][0].data
    assert outputs["fails"][0].ename == "ZeroDivisionError"
    (state,) = warm.metadata.widgets.values()
    assert any(entry.state.get("angle") == 3 for entry in state.state.values())


def test_what_one_notebook_does_to_its_kernel_no_other_sees(write):
    run(write(["import torch\ntorch.manual_seed(1)\ntorch.left = 1", "import os\nos.environ['LEFT'] = '1'"]), warm=True)
    executed = run(write(["import os\nimport torch\nprint(hasattr(torch, 'left'), os.environ.get('LEFT'))"]), warm=True)
    assert executed.cells[0].outputs[0].text == "False None\n"
    assert "LEFT" not in os.environ


def test_random_numbers_without_a_seed_differ_from_kernel_to_kernel(write):
    source = "import random\nimport numpy as np\nimport torch\nprint(random.random(), np.random.rand(), torch.rand(()))"
    drawn = [run(write([source]), warm=True).cells[0].outputs[0].text.split() for _ in range(2)]
    assert all(one != other for one, other in zip(*drawn, strict=True))


@pytest.mark.parametrize(
    ("source", "error"), [("1 / 0", CellExecutionError), ("import os\nos._exit(3)", DeadKernelError)]
)
def test_a_cell_that_fails_or_ends_its_kernel_is_an_error(write, source, error):
    path = write([source])
    before = path.read_bytes()
    with pytest.raises(error):
        run(path, warm=True)
    assert path.read_bytes() == before


def test_a_tagged_cell_is_left_out_and_keeps_its_output(write):
    path = write(["1 / 0"], tags=["nbval-skip"])
    assert run(path, warm=True, skip_cells_with_tag="nbval-skip").cells == nbformat.read(path, as_version=4).cells


def test_a_kernel_is_silent_and_ends_with_the_process_that_asked_for_it(write, tmp_path):
    (tmp_path / "client.py").write_text(
        "import sys\nfrom pathlib import Path\nimport forked_kernel\nfrom run_notebook import run\n\n"
        "if __name__ == '__main__':\n    forked_kernel.IMPORTED_ONCE.clear()  # sooner there\n"
        "    run(Path(sys.argv[1]), warm=True)\n"
    )
    path = write(["import os\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))", "while True: pass"])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, tmp_path / "client.py", path]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
        while not (tmp_path / "pid").exists() or not (pid := (tmp_path / "pid").read_text()):
            assert client.poll() is None
            time.sleep(0.1)
        client.kill()
        client.wait()
        for _ in range(600):  # a minute at most: one that stayed would stay for ever
            if not is_running(pid):
                break
            time.sleep(0.1)
        else:
            os.kill(int(pid), signal.SIGKILL)
            pytest.fail("the kernel was still there")
        assert client.stdout.read() == b""


def test_no_kernel_is_left_behind(write):
    pid = run(write(["import os\nprint(os.getpid())"]), warm=True).cells[0].outputs[0].text.strip()
    assert not is_running(pid)
