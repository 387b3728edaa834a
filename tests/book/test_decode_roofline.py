"""The roofline of chapter 12 in a browser: it computes as Python does, by keyboard, within its limits, at any width."""

import itertools
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from mla_edu.models import list_gpus
from mla_edu.widgets import DecodeRoofline
from mla_edu.widgets.decode_roofline import quantities

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTER = "12-what-a-gpu-can-do"
CONTROLS = ["gpu", "dtype", "heads", "heads-slider", "s_q", "s_q-slider"]

# What the page offers to the tests: set a control as a reader would, and read all numbers shown.
HELPERS = """
window.shown = {
  root: () => document.querySelector("[data-widget=decode-roofline]"),
  set(name, value) {
    const control = this.root().querySelector(`[name="${name}"]`);
    control.value = value;
    if (control.tagName === "INPUT") control.dispatchEvent(new Event("input", { bubbles: true }));
    control.dispatchEvent(new Event("change", { bubbles: true }));
  },
  read: () => Object.fromEntries(
    [...shown.root().querySelectorAll("[data-quantity]")].map((e) => [e.dataset.quantity, Number(e.dataset.value)])),
};
"""


@pytest.fixture(scope="module")
def saved():
    """The state that the chapter saved: its MIME type, all of it, and the id of the widget."""
    ((mime, state),) = nbformat.read(BOOK / f"{CHAPTER}.ipynb", as_version=4).metadata.widgets.items()
    (view,) = [id for id, entry in state.state.items() if "_esm" in entry.state]
    return mime, state, view


@pytest.fixture(scope="module")
def bare(serve, tmp_path_factory, saved):
    """The address of a page that holds the saved widget alone."""
    mime, state, view = saved
    scripts = {mime: state, mime.replace("state", "view"): {"model_id": view}}
    body = "".join(
        f'<script type="{kind}">{json.dumps(content).replace("</", "<" + chr(92) + "/")}</script>'
        for kind, content in scripts.items()
    )
    folder = tmp_path_factory.mktemp("roofline")
    head = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">'
    script = '<script defer src="widget-host.js"></script>'
    (folder / "index.html").write_text(f"{head}{script}<body>{body}", encoding="utf-8")
    shutil.copy(BOOK / "_static" / "widget-host.js", folder)
    return serve(folder)


@pytest.fixture
def open_page(browser):
    """``open_page(address)`` opens a page with the widget; fails if it asked another host or complained."""
    pages, faults = [], []

    def gate(route):
        if route.request.url.startswith("http://127.0.0.1:"):
            route.continue_()
        else:
            faults.append(route.request.url)
            route.abort()

    def start(address):
        page = browser.new_page()
        pages.append(page)
        page.route(lambda url: url.startswith("http"), gate)
        page.on("console", lambda m: faults.append(m.text) if m.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        page.wait_for_selector("[data-widget]", timeout=5000)
        page.evaluate(HELPERS)
        return page

    yield start
    for page in pages:
        page.close()
    assert not faults


def test_page_computes_what_python_computes(open_page, bare):
    grid = list(itertools.product(list_gpus(), (1, 16, 63, 128), (1, 2, 8), ("16-bit", "fp8")))
    shown = open_page(bare).evaluate(
        """(grid) => grid.map(([gpu, heads, s_q, dtype]) => {
          for (const [name, value] of Object.entries({ gpu, heads, s_q, dtype })) shown.set(name, value);
          return shown.read();
        })""",
        grid,
    )
    for settings, found in zip(grid, shown, strict=True):
        wanted = quantities(*settings)
        assert set(wanted) - set(found) == {"ridge"}
        assert found == pytest.approx({name: wanted[name] for name in found}, rel=1e-12), settings


def test_page_comes_from_the_committed_notebook(saved):
    _, state, view = saved
    fresh = DecodeRoofline()
    for name in ("_esm", "_css", "datasheets"):
        assert state.state[view].state[name] == getattr(fresh, name), f"{name} is stale: run `make notebooks`"


def test_mark_climbs_to_the_roof_at_the_ridge_and_stays(open_page, bare):
    page = open_page(bare)

    def place(mark, name):
        return float(page.locator(f"[data-mark={mark}]").get_attribute(name))

    places = []
    for heads in (16, 64, 128):
        page.locator("[name=heads]").fill(str(heads))
        places.append((place("present", "cx"), place("present", "cy")))
    ridge = place("ridge", "x1")
    assert places[0][0] < places[1][0] < ridge < places[2][0]
    assert places[0][1] > places[1][1] > places[2][1]
    assert (
        page.locator("[aria-live=polite]").inner_text()
        == "Arithmetic sets the pace: 128 rows, 117% of the 109 at the ridge."
    )
    page.locator("[name=s_q]").fill("8")
    assert place("present", "cy") == pytest.approx(places[2][1])
    page.locator("[name=dtype]").select_option("fp8")
    assert place("ridge", "x1") < ridge
    page.locator("[name=s_q]").fill("1")
    page.locator("[name=heads]").fill("16")
    assert page.locator("[aria-live=polite]").inner_text().startswith("Memory sets the pace: 16 rows")


def test_keyboard_alone_is_enough(open_page, bare):
    page = open_page(bare)
    page.locator("[name=gpu]").focus()
    reached, before = ["gpu"], page.evaluate("shown.read()")
    while reached[-1] != CONTROLS[-1] and len(reached) < 20:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
    assert reached == CONTROLS
    page.keyboard.press("ArrowRight")
    assert page.evaluate("shown.read()")["rows"] == 2 * before["rows"]


def test_every_control_has_a_name(open_page, bare):
    page = open_page(bare)
    unnamed = page.locator("[data-widget] :is(select, input)").evaluate_all(
        "all => all.filter(e => !e.ariaLabel && ![...e.labels].some(l => l.textContent.trim())).map(e => e.name)"
    )
    assert not unnamed
    assert page.locator("svg[role=img]").get_attribute("aria-label")


def test_number_out_of_range_is_put_right_and_said(open_page, bare):
    page = open_page(bare)
    page.locator("[name=heads]").fill("500")
    assert page.locator("[role=status]").inner_text() == "heads on this GPU: 500 became 128."
    page.locator("[name=heads]").fill("")
    assert "expected a whole number from 1 to 128" in page.locator("[role=status]").inner_text()


LOOK = """(root) => {
  const right = (element) => element.getBoundingClientRect().right;
  const seen = [...root.querySelectorAll("*")].filter((e) => e.getClientRects().length);
  return {
    outside: seen.filter((e) => right(e) > right(root) + 1).map((e) => e.outerHTML),
    small: [...root.querySelectorAll("svg text")].filter((e) => e.getBoundingClientRect().height < 10).length,
    sideways: document.documentElement.scrollWidth - innerWidth,
  };
}"""


def test_widget_fits_its_page(open_page, serve, html):
    page = open_page(f"{serve(html)}book/{CHAPTER}.html")
    for gpu, width in itertools.product(("h200", "b200", "mi300x"), (1280, 390)):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(f"shown.set('gpu', '{gpu}')")
        look = page.locator("[data-widget=decode-roofline]").evaluate(LOOK)
        assert look == {"outside": [], "small": 0, "sideways": 0}, (gpu, width)


def test_text_enters_the_page_as_text_alone():
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|import\(|fetch"
    assert not re.search(unsafe, DecodeRoofline._esm)
