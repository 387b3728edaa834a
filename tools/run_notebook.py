"""Run a notebook in a kernel of its own, and bring it into a form that is the same on every run.

A warm kernel is forked from a process that has imported the large libraries once, since every chapter imports them.
Nothing of this project is among them, nor does a name of theirs stand in the notebook before it imports it.
"""

import multiprocessing
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import nbformat
from jupyter_client.provisioning import LocalProvisioner
from nbclient import NotebookClient

import forked_kernel


class _Forked:
    """A process of multiprocessing, with what jupyter_client asks of a ``subprocess.Popen``."""

    stdin = stdout = stderr = None

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process
        self.pid = process.pid
        self.kill, self.terminate = process.kill, process.terminate

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class _WarmProvisioner(LocalProvisioner):
    """Starts a kernel by a fork, with the command line, environment and folder that a new process would have."""

    async def launch_kernel(self, cmd: list[str], **options: object) -> dict:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(forked_kernel.IMPORTED_ONCE)
        process = context.Process(target=forked_kernel.serve, args=(cmd, options["env"], options["cwd"]))
        process.start()
        self.process = _Forked(process)
        self.pid = process.pid
        return self.connection_info


def run(
    path: Path, *, warm: bool = False, on_cell_complete: Callable[..., None] | None = None, **options: object
) -> nbformat.NotebookNode:
    """Execute all cells of a notebook and return it in the normal form; the file stays as it is.

    Args:
        warm: fork the kernel from a process that holds the large libraries and this process's environment as it was
            at the first warm run. Python has such processes on Linux and macOS.
        on_cell_complete: called with ``cell`` and ``cell_index`` after each cell.
        options: traits of ``nbclient.NotebookClient``, such as ``skip_cells_with_tag``.

    Raises:
        CellExecutionError: a cell failed that is not tagged ``raises-exception``.
    """
    client = NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=600,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_complete=on_cell_complete,
        **options,
    )
    if warm:
        manager = client.create_kernel_manager()
        manager.provisioner = _WarmProvisioner(
            kernel_id=str(uuid.uuid4()), kernel_spec=manager.kernel_spec, parent=manager
        )
    return normalise(client.execute())


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs from one run or machine to the next."""
    widgets = notebook.metadata.get("widgets")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    if widgets:
        notebook.metadata["widgets"] = widgets
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    text = nbformat.writes(notebook)
    model_ids = dict.fromkeys(re.findall(r'"model_id": "([0-9a-f]{32})"', text))
    if widgets:
        (state,) = (value["state"] for value in widgets.values())
        model_ids |= dict.fromkeys(state)
    for number, model_id in enumerate(model_ids):
        text = text.replace(model_id, f"{number:032x}")
    return nbformat.reads(text, as_version=4)
