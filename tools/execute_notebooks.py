"""Execute the book's chapters in place: `python tools/execute_notebooks.py [NAME ...]`.

A notebook is written only when all of its cells ran, in a normal form that keeps differences small. What ran, when,
with which versions and on which hardware goes to book/status.json and, as a table for the status page, to
book/_status_table.md.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

import run_notebook

ROOT = Path(__file__).resolve().parents[1]
STATUS = ROOT / "book" / "status.json"
STATUS_TABLE = ROOT / "book" / "_status_table.md"
PACKAGES = ("torch", "triton", "transformers", "numpy")


def chapters(root: Path = ROOT) -> list[Path]:
    """The notebooks that _toc.yml lists, in its order."""
    names = re.findall(r"\bfile: *(\S+)", (root / "_toc.yml").read_text())
    return [path for name in names if (path := root / f"{name.removesuffix('.ipynb')}.ipynb").is_file()]


def longest_first(paths: list[Path]) -> list[Path]:
    """In falling order of the seconds that status.json has for each; what it does not have comes first."""
    seconds = {name: run["seconds"] for name, run in json.loads(STATUS.read_text()).items()}
    return sorted(paths, key=lambda path: -seconds.get(path.stem, float("inf")))


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """SHA-256 of the code cells: what has to be the same for the recorded run to speak for the notebook."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def execute(path: Path, progress: Progress) -> float:
    """Run one notebook in a fresh kernel and replace the file; returns the seconds that it took.

    Raises:
        CellExecutionError: a cell failed; the file is as it was.
    """
    num_cells = sum(cell.cell_type == "code" for cell in nbformat.read(path, as_version=4).cells)
    task = progress.add_task(path.stem, total=num_cells)

    def advance(cell: nbformat.NotebookNode, **_: object) -> None:
        if cell.cell_type == "code":
            progress.advance(task)

    start = time.monotonic()
    notebook = run_notebook.run(path, on_cell_complete=advance)
    seconds = time.monotonic() - start
    temporary = path.with_suffix(".tmp")
    nbformat.write(notebook, temporary)
    os.replace(temporary, path)
    return seconds


def cpu_model() -> str:
    if Path("/proc/cpuinfo").is_file():
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
        if names:
            return names[0]
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.machine()


def package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def environment() -> dict:
    """Versions and hardware of this run, for status.json."""
    import torch

    import mla_edu

    versions = {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}}
    versions["mla_edu"] = mla_edu.__version__
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"versions": versions, "hardware": {"cpu": cpu_model(), "cores": os.cpu_count(), "gpu": gpu}}


def status_table(status: dict) -> str:
    """For the status page, in MyST Markdown: one table for each set of versions and hardware."""
    tables: dict[str, list[str]] = {}
    for name, run in status.items():
        versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items() if version)
        hardware = run["hardware"]
        machine = f"{hardware['cores']} cores of {hardware['cpu']}, {hardware['gpu'] or 'no GPU'}"
        rows = tables.setdefault(f"With {versions}, on {machine}:", [])
        rows.append(f"| {{doc}}`{name}` | {run['date']} | {run['seconds']} |\n")
    header = "| Chapter | Run (UTC) | Seconds |\n|---|---|--:|\n"
    return "\n".join(f"{caption}\n\n{header}{''.join(rows)}" for caption, rows in tables.items())


def record(path: Path, seconds: float) -> None:
    """Enter one run into status.json and make the table from it."""
    status = json.loads(STATUS.read_text()) if STATUS.is_file() else {}
    status[path.stem] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seconds": round(seconds),
        "code_sha256": code_hash(nbformat.read(path, as_version=4)),
        **environment(),
    }
    status = {chapter.stem: status[chapter.stem] for chapter in chapters() if chapter.stem in status}
    STATUS.write_text(json.dumps(status, indent=2) + "\n")
    STATUS_TABLE.write_text(status_table(status))


def main() -> None:
    parser = argparse.ArgumentParser(description="Execute the book's chapters in place.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="chapters to execute; all of them if none is named")
    names = parser.parse_args().names
    by_name = {path.stem: path for path in chapters()}
    if unknown := sorted({Path(name).stem for name in names} - set(by_name)):
        parser.error(f"no chapter {', '.join(unknown)} in _toc.yml; there are: {', '.join(by_name)}")
    selected = [by_name[Path(name).stem] for name in names] or list(by_name.values())

    console = Console()
    failed = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for path in selected:
            try:
                record(path, execute(path, progress))
            except CellExecutionError as error:
                console.print(f"{path.name} failed and is left as it was:", Text.from_ansi(str(error)), soft_wrap=True)
                failed.append(path.stem)
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
