"""The tools behind the Makefile: preparing .venv, executing notebooks, serving the book."""

import os
import socket
import sys
import threading
import urllib.request

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook
from rich.progress import Progress

import execute_notebooks
import prepare_venv
import serve


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project in a temporary folder, an environment that is quick to create, and what pip is asked for."""
    for name in prepare_venv.INPUTS["full"]:
        (tmp_path / name).write_text("first\n")
    calls = []
    monkeypatch.setattr(prepare_venv, "ROOT", tmp_path)
    monkeypatch.setattr(prepare_venv, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(prepare_venv, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(prepare_venv, "pip_install", lambda *arguments: calls.append(arguments))
    real_run = prepare_venv.subprocess.run
    monkeypatch.setattr(
        prepare_venv.subprocess, "run", lambda command, **options: real_run([*command, "--without-pip"], **options)
    )
    return tmp_path, calls


def test_environment_is_prepared_once(project, capsys):
    _, calls = project
    prepare_venv.main("book")
    assert len(calls) == 1
    capsys.readouterr()
    prepare_venv.main("book")
    assert len(calls) == 1
    assert capsys.readouterr().out == ""
    prepare_venv.main("full")
    assert len(calls) == 3
    prepare_venv.main("book")
    prepare_venv.main("full")
    assert len(calls) == 3


def test_changed_requirements_are_installed_over_the_old(project):
    folder, calls = project
    prepare_venv.main("full")
    (folder / ".venv" / "kept").touch()
    calls.clear()
    (folder / "requirements.txt").write_text("second\n")
    prepare_venv.main("book")
    assert calls == []
    prepare_venv.main("full")
    assert len(calls) == 2
    assert (folder / ".venv" / "kept").exists()


def test_interrupted_environment_is_made_anew(project, monkeypatch):
    folder, calls = project

    def interrupted(*arguments):
        (folder / ".venv" / "half-written").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare_venv, "pip_install", interrupted)
        prepare_venv.main("book")
    prepare_venv.main("book")
    assert len(calls) == 1
    assert not (folder / ".venv" / "half-written").exists()


@pytest.mark.parametrize("damage", ["another Python", "moved", "broken interpreter"])
def test_unusable_environment_is_made_anew(project, damage):
    folder, calls = project
    prepare_venv.main("book")
    (folder / ".venv" / "old").touch()
    home = folder / ".venv" / "home"
    if damage == "another Python":
        home.write_text(home.read_text().replace(sys.version, "3.12.0"))
        (folder / ".venv" / "ready-book").write_text("digest of another Python")
    elif damage == "moved":
        home.write_text(home.read_text().replace(str(folder), "/elsewhere"))
        (folder / ".venv" / "ready-book").write_text("digest of another place")
    else:
        (folder / ".venv" / "bin" / "python").unlink()
    prepare_venv.main("book")
    assert not (folder / ".venv" / "old").exists()
    assert len(calls) == 2


@pytest.fixture
def notebook(tmp_path):
    def write(*sources):
        path = tmp_path / "01-test.ipynb"
        nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
        return path

    return write


def test_executed_notebook_is_the_same_on_every_run(notebook):
    widget = (
        "import anywidget\n\n\nclass Widget(anywidget.AnyWidget):\n"
        "    _esm = 'export default {}'\n\n    def __repr__(self):\n        return 'Widget()'\n\n\nWidget()"
    )
    path = notebook("for i in range(3):\n    print(i, flush=True)", widget)
    with Progress(disable=True) as progress:
        execute_notebooks.execute(path, progress)
        first = path.read_bytes()
        execute_notebooks.execute(path, progress)
    assert path.read_bytes() == first
    printing, showing = nbformat.read(path, as_version=4).cells
    assert [output.text for output in printing.outputs] == ["0\n1\n2\n"]
    assert [printing.execution_count, showing.execution_count] == [1, 2]
    (state,) = nbformat.read(path, as_version=4).metadata.widgets.values()
    assert showing.outputs[0].data["application/vnd.jupyter.widget-view+json"]["model_id"] in state["state"]


def test_failing_notebook_is_left_as_it_was(notebook):
    path = notebook("print(1)", "1 / 0")
    before = path.read_bytes()
    with Progress(disable=True) as progress, pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute_notebooks.execute(path, progress)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_hash_changes_with_the_code_and_not_with_the_outputs():
    notebook = new_notebook(cells=[new_code_cell("a"), new_code_cell("b")])
    first = execute_notebooks.code_hash(notebook)
    notebook.cells[0].execution_count = 7
    assert execute_notebooks.code_hash(notebook) == first
    notebook.cells[0].source = "a "
    assert execute_notebooks.code_hash(notebook) != first


def test_served_on_a_free_port_where_the_usual_one_is_taken(tmp_path):
    (tmp_path / "index.html").write_text("the book")
    with socket.create_server(("127.0.0.1", 0)) as taken, serve.make_server(tmp_path, taken.getsockname()[1]) as server:
        host, port = server.server_address
        assert (host, port) != taken.getsockname()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert urllib.request.urlopen(f"http://{host}:{port}/").read() == b"the book"
        finally:
            server.shutdown()
            thread.join()
