"""Prepare .venv for a target of the Makefile: `python3 tools/prepare_venv.py book` or `... full`.

The environment counts as ready only when a stamp in it, written last, equals the digest of what went in. A changed
requirement is installed over the old ones; an environment that was interrupted, moved, or made by another Python is
made anew.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
INPUTS = {
    "book": ["requirements-book.txt"],
    "full": ["requirements-book.txt", "requirements.txt", "pyproject.toml"],
}


def stamp(level: str) -> Path:
    return VENV / f"ready-{level}"


def digest(level: str) -> str:
    """The Python, the place and the files that define the environment."""
    parts = [sys.version.encode(), str(ROOT).encode(), *((ROOT / name).read_bytes() for name in INPUTS[level])]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_ready(level: str) -> bool:
    return stamp(level).is_file() and stamp(level).read_text() == digest(level)


def is_usable() -> bool:
    """Whether .venv was finished once, here, by this version of Python."""
    finished = any(stamp(level).is_file() for level in INPUTS)
    return finished and PYTHON.exists() and (VENV / "home").read_text() == f"{sys.version}\n{ROOT}"


def create() -> None:
    print(f"Creating .venv with Python {platform.python_version()} ...", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    # Asked for from inside .venv itself, the interpreter that made it is wanted.
    subprocess.run([sys._base_executable, "-m", "venv", VENV], check=True)
    (VENV / "home").write_text(f"{sys.version}\n{ROOT}")


def pip_install(*arguments: str) -> None:
    """Run pip, showing only the downloads that are worth waiting for."""
    command = [PYTHON, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pip:
        for line in pip.stdout:
            if re.search(r"\((\d{2,}|\d+\.\d) MB\)|\(.* GB\)", line):
                print(line.rstrip(), flush=True)
    if pip.returncode:
        sys.exit(f"Installing into {VENV} failed (see pip's message above). The next run starts anew.")


def main(level: str) -> None:
    if is_ready(level) and PYTHON.exists():
        return
    if not is_usable():
        create()
    for name in INPUTS:
        stamp(name).unlink(missing_ok=True)
    if level == "book":
        print("Installing what renders the book into .venv ...", flush=True)
        pip_install("-r", str(ROOT / "requirements-book.txt"))
    else:
        print("Installing torch, the test tools and the package into .venv (minutes the first time) ...", flush=True)
        pip_install("-r", str(ROOT / "requirements.txt"))
        pip_install("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        stamp("full").write_text(digest("full"))
    stamp("book").write_text(digest("book"))
    print(".venv is ready.", flush=True)


if __name__ == "__main__":
    try:
        fcntl.flock(os.open(ROOT, os.O_RDONLY), fcntl.LOCK_EX)  # one at a time, until this process ends
        main(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit("Interrupted. The next run starts anew.")
