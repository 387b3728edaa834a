"""The built book, a server for it on this machine, and a browser that reaches nothing else."""

import fcntl
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"


def is_made_by_a_tool(path):
    return any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(ROOT).parts)


def is_fresh(index):
    """Whether the book was built after the last change of what it is built from."""
    sources = [ROOT / "_config.yml", ROOT / "_toc.yml", *(ROOT / "book").rglob("*"), *(ROOT / "mla_edu").rglob("*")]
    changed = [path.stat().st_mtime for path in sources if path.is_file() and not is_made_by_a_tool(path)]
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
    ends = [threading.Thread(target=server.shutdown) for server in servers]  # each waits for half a second
    for end in ends:
        end.start()
    for end in ends:
        end.join()


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium. Without one these tests are skipped, but in CI that is a failure."""
    try:
        from playwright.sync_api import sync_playwright

        import browsers

        browsers.find_browser()
    except (ImportError, FileNotFoundError) as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    with sync_playwright() as playwright:
        browser = browsers.launch(playwright, "--font-render-hinting=none")
        yield browser
        browser.close()


# What a page with a widget offers to the tests: set a control as a reader would, and read all numbers shown.
SHOWN = """
window.shown = {
  root: () => document.querySelector("[data-widget]"),
  set(name, value) {
    const control = this.root().querySelector(`[name="${name}"]`);
    if (control.value === String(value)) return;
    control.value = value;
    if (control.tagName === "INPUT") control.dispatchEvent(new Event("input", { bubbles: true }));
    control.dispatchEvent(new Event("change", { bubbles: true }));
  },
  read: () => Object.fromEntries(
    [...shown.root().querySelectorAll("[data-quantity]")].map((e) => [e.dataset.quantity, e.dataset.value])),
};
"""


@pytest.fixture(scope="session")
def saved_widget():
    """``saved_widget(chapter)``: the state of the widget that a chapter saved."""

    def read(chapter):
        (saved,) = nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4).metadata.widgets.values()
        (state,) = [entry.state for entry in saved.state.values() if "_esm" in entry.state]
        return state

    return read


@pytest.fixture(scope="session")
def bare_page(serve, tmp_path_factory):
    """``bare_page(widget)``: the address of a page that holds the widget alone, in the state that a notebook saves."""
    from ipywidgets.embed import embed_data

    def page(widget):
        data = embed_data(views=[widget], drop_defaults=False)
        (view,) = data["view_specs"]
        body = ""
        for kind, content in {"state": data["manager_state"], "view": view}.items():
            text = json.dumps(content).replace("</", "<\\/")
            body += f'<script type="application/vnd.jupyter.widget-{kind}+json">{text}</script>'
        head = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        script = '<link rel="icon" href="data:,"><script defer src="widget-host.js"></script>'
        folder = tmp_path_factory.mktemp("bare")
        (folder / "index.html").write_text(f"{head}{script}<body>{body}", encoding="utf-8")
        shutil.copy(ROOT / "book" / "_static" / "widget-host.js", folder)
        return serve(folder)

    return page


@pytest.fixture
def open_page(browser):
    """``open_page(address)`` opens a page with a widget; fails if it asked another host or complained."""
    pages, faults = [], []

    def gate(route):
        if route.request.url.startswith("http://127.0.0.1:"):
            route.continue_()
        else:
            faults.append(route.request.url)
            route.abort()

    def start(address, **options):
        page = browser.new_page(**options)
        pages.append(page)
        page.route(lambda url: url.startswith("http"), gate)
        page.on("console", lambda m: faults.append(m.text) if m.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.goto(address)
        page.wait_for_selector("[data-widget]", timeout=5000)
        page.evaluate(SHOWN)
        return page

    yield start
    for page in pages:
        page.close()
    assert not faults
