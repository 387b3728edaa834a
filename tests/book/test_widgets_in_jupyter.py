"""The cache explorer in JupyterLab with a running kernel: its attributes move the view, and the view sets them."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest

CELLS = [
    "from mla_edu.book.widgets import KVCacheExplorer\nw = KVCacheExplorer(models=['deepseek-v3'])\nw",
    "w.tokens, w.models = 4096, ['llama-2-7b']\nprint('set from Python')",
    "print('seen in Python:', w.models, w.tokens, w.dtype, w.quantities[0]['bytes_per_token'])",
]
ROOT_OF = '[data-widget="kv-cache-explorer"]'


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that serves one notebook, and knows no settings of the user."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(notebook, folder / "explorer.ipynb")
    port = free_port()
    own = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    settings = ["--no-browser", f"--port={port}", "--ip=127.0.0.1", "--IdentityProvider.token=", "--allow-root"]
    settings += [f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None", "--LabApp.extension_manager=readonly"]
    settings += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *settings],
            env={**os.environ, **own, "PYTHONPATH": path, "JUPYTER_PREFER_ENV_PATH": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(address + "api").close()
                break
            except urllib.error.URLError:
                assert server.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.long
def test_attributes_drive_the_view_and_the_view_drives_them(browser, lab):
    from playwright.sync_api import TimeoutError

    page = browser.new_page(viewport={"width": 1280, "height": 1600})
    page.set_default_timeout(90_000)
    outside = []

    def gate(route):
        if route.request.url.startswith(lab):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    page.route(lambda url: url.startswith("http"), gate)
    page.goto(lab + "doc/tree/explorer.ipynb")
    root = page.locator(ROOT_OF)

    def run(number):
        page.locator(".jp-Notebook .jp-CodeCell").nth(number).locator(".jp-InputPrompt").click()
        page.locator('[data-command="notebook:run-cell-and-select-next"]').first.click()

    def shown(quantity):
        return int(root.locator(f"[data-quantity={quantity}]").first.get_attribute("data-value"))

    def run_until(number, seen):
        for _ in range(8):
            run(number)
            with contextlib.suppress(TimeoutError):
                return seen.wait_for(timeout=10_000)
        run(number)
        seen.wait_for()

    run_until(0, root)  # JupyterLab drops what is run before it has reached the kernel, without a sign
    assert shown("bytes_per_token") == 70_272
    below = "all => all.every(pair => pair.children[0].offsetTop < pair.children[1].offsetTop)"
    assert root.locator("dl > div").evaluate_all(below)

    run(1)
    page.get_by_text("set from Python", exact=True).wait_for()
    page.wait_for_function(f"document.querySelector('{ROOT_OF} select[name=model]').value === 'llama-2-7b'")
    assert root.locator("[name=tokens]").input_value() == "4096"
    assert shown("bytes_per_sequence") == 4096 * 524_288

    root.locator("select[name=dtype]").select_option("fp8")
    root.locator("[name=tokens]").fill("2048")
    root.locator("select[name=model]").select_option("deepseek-v3")
    # What the view sets is held back while the kernel is busy, so a cell run at once may still see the old values.
    run_until(2, page.get_by_text("seen in Python: ['deepseek-v3'] 2048 fp8 35136", exact=True))
    assert "tokens=" not in page.url
    page.close()
    assert not outside
