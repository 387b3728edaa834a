"""The tools behind the Makefile: preparing .venv, executing notebooks, serving the book."""

import fcntl
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook
from rich.progress import Progress

import browsers
import execute_notebooks
import prepare_venv

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project in a temporary folder, an environment that is quick to create, and what pip and npm are asked for."""
    (tmp_path / "tools").mkdir()
    for names in prepare_venv.INPUTS.values():
        for name in names:
            (tmp_path / name).write_text("first\n")
    calls = []
    monkeypatch.setattr(prepare_venv, "ROOT", tmp_path)
    monkeypatch.setattr(prepare_venv, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(prepare_venv, "install", lambda *arguments: calls.append(arguments))
    real_run = prepare_venv.subprocess.run
    monkeypatch.setattr(
        prepare_venv.subprocess, "run", lambda command, **options: real_run([*command, "--without-pip"], **options)
    )
    return tmp_path, calls


def test_environment_is_prepared_once(project, capsys):
    _, calls = project
    prepare_venv.main("book")
    assert len(calls) == 2
    capsys.readouterr()
    prepare_venv.main("book")
    assert len(calls) == 2
    assert capsys.readouterr().out == ""
    prepare_venv.main("full")
    assert len(calls) == 5
    prepare_venv.main("book")
    prepare_venv.main("full")
    assert len(calls) == 5


def test_a_target_that_has_to_wait_for_another_says_so(project, capsys):
    folder, _ = project
    other = os.open(folder, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    threading.Timer(0.2, os.close, [other]).start()
    prepare_venv.wait_for_turn()
    assert "waiting for it" in capsys.readouterr().out
    with pytest.raises(BlockingIOError):
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_who_only_waited_leaves_nothing_to_start_anew(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "prepare_venv.py", tmp_path / "tools")
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    command = [prepare_venv.sys.executable, "tools/prepare_venv.py", "book"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert "waiting for it" in waiting.stdout.readline()
        waiting.send_signal(signal.SIGINT)
        assert waiting.communicate()[1] == "Interrupted.\n"
    os.close(other)


@pytest.mark.parametrize(("name", "renders"), [("requirements.txt", False), ("tools/package-lock.json", True)])
def test_changed_requirements_are_installed_over_the_old(project, name, renders):
    folder, calls = project
    prepare_venv.main("full")
    (folder / ".venv" / "kept").touch()
    calls.clear()
    (folder / name).write_text("second\n")
    prepare_venv.main("book")
    assert bool(calls) == renders
    calls.clear()
    prepare_venv.main("full")
    assert len(calls) == 3
    assert (folder / ".venv" / "kept").exists()


def test_interrupted_environment_is_made_anew(project, monkeypatch):
    folder, calls = project

    def interrupted(*arguments):
        (folder / ".venv" / "half-written").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare_venv, "install", interrupted)
        prepare_venv.main("book")
    prepare_venv.main("book")
    assert len(calls) == 2
    assert not (folder / ".venv" / "half-written").exists()


@pytest.mark.parametrize("damage", ["moved", "broken interpreter"])
def test_unusable_environment_is_made_anew(project, damage):
    folder, calls = project
    prepare_venv.main("book")
    (folder / ".venv" / "old").mkdir()
    home = folder / ".venv" / "home"
    if damage == "moved":
        home.write_text(home.read_text().replace(str(folder), "/elsewhere"))
        (folder / ".venv" / "ready-book").write_text("digest of another place")
    else:
        (folder / ".venv" / "bin" / "python").unlink()
    prepare_venv.main("book")
    assert not (folder / ".venv" / "old").exists()
    assert len(calls) == 4
    prepare_venv.main("book")
    assert len(calls) == 4


def contents(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_environment_of_another_python_is_left_as_it_is(project, monkeypatch):
    folder, calls = project
    prepare_venv.main("full")
    before = contents(folder / ".venv")
    calls.clear()
    monkeypatch.setattr(prepare_venv, "VERSION", "3.99")
    for level in ("book", "full"):
        with pytest.raises(SystemExit, match=rf"\.venv is of Python {platform.python_version()}.* rm -r ") as refusal:
            prepare_venv.main(level)
        assert "\n" not in str(refusal.value)
    assert calls == []
    assert contents(folder / ".venv") == before


def test_environment_that_the_makefile_did_not_make_is_left_as_it_is(project):
    folder, calls = project
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").write_text("somebody's")
    with pytest.raises(SystemExit, match=r"\.venv was not made by this Makefile.* rm -r "):
        prepare_venv.main("full")
    assert calls == []
    assert (folder / ".venv" / "bin" / "python").read_text() == "somebody's"


def test_removal_that_was_interrupted_is_taken_up_again(project, monkeypatch):
    folder, calls = project
    prepare_venv.main("book")
    (folder / "requirements-book.txt").write_text("second\n")
    (folder / ".venv" / "bin" / "python").unlink()

    def interrupted(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "iterdir", interrupted)
        prepare_venv.main("book")
    (folder / ".venv" / "bin" / "python").symlink_to(shutil.which("python3"))
    (folder / ".venv" / "half-removed").touch()
    prepare_venv.main("book")
    assert len(calls) == 4
    assert not (folder / ".venv" / "half-removed").exists()


@pytest.fixture
def outside_make(monkeypatch):
    """What make hands to the processes that it starts is not there."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("outside_make")
def test_make_keeps_the_python_of_the_environment_unless_another_is_named(tmp_path):
    def shown(*arguments):
        return subprocess.run(["make", "show", *arguments], cwd=tmp_path, capture_output=True, text=True).stdout.strip()

    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text() + "\nshow:\n\t@echo $(PYTHON)\n")
    assert shown() == "python3"
    (tmp_path / ".venv" / "bin" / "python").symlink_to("gone")
    assert shown() == "python3"
    (tmp_path / ".venv" / "bin" / "python").unlink()
    (tmp_path / ".venv" / "bin" / "python").symlink_to(shutil.which("true"))
    assert shown() == ".venv/bin/python"
    assert shown("PYTHON=python3.12") == "python3.12"


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


@pytest.fixture
def built_book(tmp_path):
    """A folder with the Makefile and a book that it takes for built."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(prepare_venv.sys._base_executable)
    index = tmp_path / "_build" / "html" / "index.html"
    index.parent.mkdir(parents=True)
    index.write_text("the book")
    return tmp_path


@contextmanager
def make_serve(folder, port):
    command = ["make", "serve", f"PORT={port}", "-o", "_build/html/index.html"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


@pytest.mark.usefixtures("outside_make")
def test_a_server_that_is_ended_leaves_no_other(built_book):
    with make_serve(built_book, 0) as process:
        assert "http://127.0.0.1:" in process.stdout.readline()
        (server,) = (
            each for each in psutil.Process(process.pid).children(recursive=True) if "http.server" in each.cmdline()[:6]
        )
        server.terminate()
        assert process.communicate(timeout=60)[0] == "" and process.returncode == 0


@pytest.mark.usefixtures("outside_make")
def test_book_is_served_at_a_free_port_where_the_wanted_one_is_taken(built_book, taken_port):
    with make_serve(built_book, taken_port) as process:
        address = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        assert int(address[1]) != taken_port
        assert urllib.request.urlopen(address[0]).read() == b"the book"


@pytest.mark.usefixtures("outside_make")
@pytest.mark.parametrize("port", ["abc", "70000", "-1", "80 80"])
def test_a_port_that_is_none_is_told_before_the_book_is_built(tmp_path, port):
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = subprocess.run(["make", "serve", f"PORT={port}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and list(tmp_path.iterdir()) == [tmp_path / "Makefile"]
    assert done.stderr.startswith(f"PORT is '{port}'; expected a number from 0 to 65535\n")


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


def test_the_browser_without_windows_is_taken_first_and_a_missing_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no browser: install Chromium or Chrome"):
        browsers.find_browser()
    for name in ("google-chrome", "chromium", "chromium-headless-shell"):
        found = tmp_path / name
        found.write_text("")
        found.chmod(0o755)
        assert browsers.find_browser() == str(found)
