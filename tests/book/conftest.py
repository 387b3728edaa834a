"""The built book, a server for it on this machine, and a browser that reaches nothing else."""

import fcntl
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
QUIET = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def is_fresh(index):
    """Whether the book was built after the last change of what it is built from."""
    sources = [ROOT / "_config.yml", ROOT / "_toc.yml", *(ROOT / "book").rglob("*"), *(ROOT / "mla_edu").rglob("*")]
    changed = [path.stat().st_mtime for path in sources if path.is_file() and "__pycache__" not in path.parts]
    return index.exists() and index.stat().st_mtime >= max(changed)


@pytest.fixture(scope="session")
def html():
    """The folder of the built book; built here, as ``make book`` does, where it is missing or stale."""
    index = HTML / "index.html"
    with (ROOT / "_config.yml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other test processes wait for the one that builds
        if not is_fresh(index):
            shutil.rmtree(ROOT / "_build", ignore_errors=True)
            command = [Path(sys.executable).with_name("jupyter-book"), "build", ".", "-n", "-W", "--keep-going", "-q"]
            built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if built.returncode:
                shutil.rmtree(ROOT / "_build", ignore_errors=True)
                pytest.fail(f"the book does not build:\n{built.stdout[-2000:]}\n{built.stderr[-4000:]}")
            index.touch()
    return HTML


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def serve():
    """``serve(folder)`` serves a folder on 127.0.0.1 and returns its address, which ends in a slash."""
    servers = []

    def start(folder):
        handler = functools.partial(QuietHandler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium. Without one these tests are skipped, but in CI that is a failure."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        found = None
    if found is None:
        reason = f"no browser: install Chromium and playwright (looked for {', '.join(BROWSERS)} on PATH)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu", "--font-render-hinting=none", *QUIET]
        )
        yield browser
        browser.close()
