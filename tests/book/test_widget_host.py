"""The module that shows anywidget widgets on a page without a kernel."""

import json
import shutil
from pathlib import Path

import pytest

HOST = Path(__file__).resolve().parents[2] / "book" / "_static" / "widget-host.js"

COUNTER = """
export default {
  initialize({ model }) { model.set("step", 2); },
  render({ model, el }) {
    const button = document.createElement("button");
    const show = () => { button.textContent = model.get("count"); };
    button.onclick = () => {
      model.set("count", model.get("count") + model.get("step"));
      model.save_changes();
      if (model.get("count") >= 7) model.off("change:count", show);
    };
    model.on("change:count", show);
    show();
    el.append(button);
  },
};
"""
SHARED = """
export default {
  render({ model, el, address }) {
    const button = document.createElement("button");
    button.textContent = address.get("count") ?? model.get("count");
    button.onclick = () => address.set({ count: ++button.textContent, gone: null });
    el.append(button);
  },
};
"""
STATE = {
    "version_major": 2,
    "version_minor": 0,
    "state": {
        "layout-1": {"model_name": "LayoutModel", "state": {}},
        "counter-1": {
            "model_name": "AnyModel",
            "state": {"_esm": COUNTER, "_css": ".mla-widget button { width: 123px }", "count": 3},
        },
        "shared-1": {"model_name": "AnyModel", "state": {"_esm": SHARED, "count": 0}},
        "shared-2": {"model_name": "AnyModel", "state": {"_esm": SHARED, "count": 0}},
        "old-style": {
            "model_name": "AnyModel",
            "state": {"_esm": "export function render({ el }) { el.textContent = 'named export'; }"},
        },
        "factory": {
            "model_name": "AnyModel",
            "state": {"_esm": "export default async () => ({ render({ el }) { el.textContent = 'factory'; } });"},
        },
    },
}
PAGE = """<!doctype html><meta charset="utf-8"><title>widgets</title>
<script defer src="widget-host.js"></script>
<script type="application/vnd.jupyter.widget-state+json">{state}</script>
{views}"""


@pytest.fixture
def page(browser, serve, tmp_path):
    page = browser.new_page()
    page.errors = []
    page.on("console", lambda message: page.errors.append(message.text))

    def show(*ids):
        views = "".join(
            f'<div id="{name}-{position}"><script type="application/vnd.jupyter.widget-view+json">'
            f"{json.dumps({'model_id': name})}</script></div>"
            for position, name in enumerate(ids)
        )
        state = json.dumps(STATE).replace("</", "<\\/")
        (tmp_path / "index.html").write_text(PAGE.format(state=state, views=views), encoding="utf-8")
        shutil.copy(HOST, tmp_path)
        page.goto(serve(tmp_path))
        return page

    yield show
    page.close()


def test_views_of_one_model_move_together(page):
    page = page("counter-1", "counter-1")
    page.wait_for_function("document.querySelectorAll('button').length === 2")
    buttons = page.locator("button")
    assert buttons.all_inner_texts() == ["3", "3"]
    buttons.first.click()
    assert buttons.all_inner_texts() == ["5", "5"]  # 2 more: the step that initialize set


def test_off_stops_a_listener(page):
    page = page("counter-1", "counter-1")
    page.wait_for_function("document.querySelectorAll('button').length === 2")
    for _ in range(3):
        page.locator("button").first.click()
    assert page.locator("button").all_inner_texts() == ["7", "9"]


def test_style_of_a_widget_is_applied_once(page):
    page = page("counter-1", "counter-1")
    page.wait_for_function("document.querySelectorAll('button').length === 2")
    assert page.locator("button").first.bounding_box()["width"] == 123
    assert page.locator("style").count() == 1


def test_all_forms_of_a_widget_module_are_shown(page):
    page = page("old-style", "factory")
    page.wait_for_function("document.querySelectorAll('.mla-widget').length === 2 && document.body.innerText.trim()")
    assert page.locator(".mla-widget").all_inner_texts() == ["named export", "factory"]


def test_widgets_of_a_page_share_its_address_without_a_fight(page):
    page = page("shared-1", "counter-1", "shared-2")
    page.goto(page.url + "?count=4&gone=1&other=x%20y#part")
    page.wait_for_function("document.querySelectorAll('button').length === 3")
    first, _, last = page.locator("button").all()
    assert (first.inner_text(), last.inner_text()) == ("4", "0")
    first.click()
    last.click()
    assert page.evaluate("location.search + location.hash") == "?count=5&other=x+y&3.count=1#part"
    page.reload()
    page.wait_for_function("document.querySelectorAll('button').length === 3")
    assert (first.inner_text(), last.inner_text()) == ("5", "1")


def test_address_is_written_seldom_enough_for_any_browser(page):
    page = page("shared-1")
    page.wait_for_selector("button")
    page.evaluate(
        """() => {
          window.writes = 0;
          const write = history.replaceState.bind(history);
          history.replaceState = (...all) => { writes++; write(...all); };
          for (let i = 0; i < 500; i++) document.querySelector("button").click();
        }"""
    )
    assert page.evaluate("writes") == 20
    page.wait_for_function("location.search === '?count=500'", timeout=20_000)
    assert page.evaluate("writes") == 21


def test_missing_state_is_an_error_in_the_console(page):
    page = page("nobody")
    page.wait_for_timeout(200)
    assert any("nobody" in message for message in page.errors)
