"""Cells that show what changed: the difference is the two cells', and it works on the page without a mouse."""

import html as markup
import json
import re
import sys
import types
from pathlib import Path

import pytest
from docutils import nodes
from docutils.utils import new_document
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book" / "_ext"))

import code_changes  # noqa: E402

LINES = st.lists(st.sampled_from(["", "a = 1", "    b = a < 2", "    # c & d", "e"]), max_size=30)
KERNEL = "@jit\ndef attend_{}(n):\n" + "".join(f"    x{i} = {i}\n" for i in range(20)) + "    return {}\n"


def cells_with_changes():
    """(chapter, the earlier cell's source, this cell's source) of all cells that show a difference."""
    found = []
    for path in sorted((ROOT / "book").rglob("*.ipynb")):
        earlier = {}
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if "changes" in cell["metadata"]:
                found.append((path.stem, earlier[cell["metadata"]["changes"]], "".join(cell["source"])))
            earlier[cell["id"]] = "".join(cell["source"])
    return found


CELLS = cells_with_changes()
CHAPTERS = sorted({chapter for chapter, *_ in CELLS})


def lines_of(html, *elements):
    """The text of each line in elements of these kinds, in order."""
    found = re.findall(rf"<({'|'.join(elements)})>(.*?)</\1>(?=<(?:ins|del|span)>|</pre>)", html)
    return [markup.unescape(re.sub("<[^>]*>", "", line)) for _, line in found]


@given(LINES, LINES)
def test_a_difference_holds_both_texts(before, after):
    found = code_changes.runs("\n".join(before), "\n".join(after))
    for kind, text in (("added", after), ("removed", before)):
        assert [line for k, lines in found if k in ("same", kind) for line in lines] == "\n".join(text).splitlines()
    folded = code_changes.fold(found)
    assert [line for _, lines in folded for line in lines] == [line for _, lines in found for line in lines]
    assert all(kind == "folded" for kind, _ in folded if kind not in ("same", "added", "removed"))


def test_what_is_far_from_a_change_is_folded_and_what_is_near_is_not():
    html = code_changes.difference(KERNEL.format(1, "x1"), KERNEL.format(2, "x2 < 3"))
    assert lines_of(html, "del") == ["    return x1"]
    assert lines_of(html, "ins") == ["    return x2 < 3"]
    (inside,) = re.findall("<details>(.*?)</details>", html)
    assert "20 lines unchanged" in inside
    assert lines_of(inside, "span")[0] == "@jit"
    assert "x17" in inside
    assert "x18" not in inside


def test_a_new_name_is_no_change():
    html = code_changes.difference(KERNEL.format(1, "x1"), KERNEL.format(2, "x1"))
    assert "<ins>" not in html
    assert "<del>" not in html
    assert "attend_2" in html


def test_the_indentation_of_a_removed_line_is_not_struck_through():
    assert code_changes.struck("    a < b") == "    <s>a &lt; b</s>"


def page_of(tmp_path, metadata):
    """A page of two cells, as MyST-NB hands it over, and the application that reads it."""
    cells = [{"id": f"cell-{i}", "source": [KERNEL.format(i, f"x{i}")]} for i in range(2)]
    (tmp_path / "page.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    document = new_document("page")
    for i, each in enumerate(cells):
        cell = nodes.container(nb_element="cell_code", cell_index=i, cell_metadata=metadata if i else {})
        code = nodes.container(nb_element="cell_code_source")
        code += nodes.literal_block(text=each["source"][0])
        cell += code
        document += cell
    env = types.SimpleNamespace(docname="page", doc2path=lambda name: tmp_path / f"{name}.ipynb")
    return types.SimpleNamespace(env=env), document


def test_the_whole_cell_stays_beside_the_difference(tmp_path):
    app, document = page_of(tmp_path, {"changes": "cell-0"})
    code_changes.show_changes(app, document)
    first, second = (cell[0] for cell in document)
    assert len(first) == 1
    opening, whole, closing = second
    assert "What changed since attend_0" in opening.astext()
    assert whole.astext() == KERNEL.format(1, "x1")
    assert lines_of(closing.astext(), "ins") == ["    return x1"]


@pytest.mark.parametrize("earlier", ["cell-1", "no-such-cell"])
def test_a_cell_that_does_not_come_before_is_refused(tmp_path, earlier):
    app, document = page_of(tmp_path, {"changes": earlier})
    with pytest.raises(code_changes.ExtensionError, match=f"page, cell 1: no cell '{earlier}' comes before it"):
        code_changes.show_changes(app, document)


SHOWN = """() => [...document.querySelectorAll("article .mla-changes")].map((section) => {
  const whole = section.previousElementSibling, seen = (e) => e.checkVisibility();
  const lines = (kind) => [...section.querySelectorAll(kind)].map((e) => e.textContent);
  return {
    difference: seen(section), whole: seen(whole.querySelector("pre")), text: whole.querySelector("pre").textContent,
    copy: whole.querySelectorAll(".copybtn").length, stray: section.querySelectorAll(".copybtn").length,
    added: lines("ins"), removed: lines("del"), folds: section.querySelectorAll("details").length,
    focusable: section.tabIndex, label: section.getAttribute("aria-label"),
  };
})"""

# Contrast of each piece of text in a difference with all the grounds below it, one over the other.
FAINT = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    if (!element) return [255, 255, 255];
    const [r, g, b, alpha = 1] = channels(getComputedStyle(element).backgroundColor);
    if (alpha === 1) return [r, g, b];
    return ground(element.parentElement).map((below, i) => alpha * [r, g, b][i] + (1 - alpha) * below);
  };
  const faint = [];
  for (const details of document.querySelectorAll(".mla-changes details")) details.open = true;
  for (const e of document.querySelectorAll(".mla-changes *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const both = [channels(getComputedStyle(e).color).slice(0, 3), ground(e)].map((c) => luminance(c) + 0.05);
    const contrast = Math.max(...both) / Math.min(...both);
    if (contrast < 4.5) faint.push(`${contrast.toFixed(2)} ${e.outerHTML.slice(0, 80)}`);
  }
  return faint;
}"""


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_page_shows_what_changed(browser, serve, html, chapter):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(serve(html) + f"book/{chapter}.html")
    page.wait_for_selector(".copybtn", state="attached")
    shown = page.evaluate(SHOWN)
    page.close()
    pairs = [(before, after) for name, before, after in CELLS if name == chapter]
    assert len(shown) == len(pairs) > 0
    for found, (before, after) in zip(shown, pairs, strict=True):
        assert found["difference"]
        assert not found["whole"]
        assert found["text"].rstrip("\n") == after
        assert (found["copy"], found["stray"]) == (1, 0)
        assert found["added"]
        assert set(found["added"]) <= set(after.splitlines())
        assert set(found["removed"]).isdisjoint(after.splitlines())
        assert found["label"] == f"What changed since {code_changes.name(before)}"
        assert found["focusable"] == 0
    assert any(found["folds"] for found in shown)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_folds_and_control_work_by_keyboard_and_without_scripts(browser, serve, html, chapter):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(serve(html) + f"book/{chapter}.html")
    for section in page.locator("article .mla-changes:not(.admonition .mla-changes)").all()[:2]:
        control = section.locator("xpath=preceding-sibling::details[1]/summary")
        whole = section.locator("xpath=preceding-sibling::details[1]//pre")
        for seen in (True, False):
            control.focus()
            page.keyboard.press("Enter")
            assert whole.is_visible() is seen
            assert section.is_visible() is not seen
    fold = page.locator("article .mla-changes details").first
    assert not fold.locator("pre").is_visible()
    fold.locator("summary").focus()
    page.keyboard.press("Enter")
    assert fold.locator("pre").is_visible()
    context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_difference_is_legible(browser, serve, html, chapter, theme):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(serve(html) + f"book/{chapter}.html")
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    faint = page.evaluate(FAINT)
    size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('.mla-changes ins')).fontSize)")
    shade = page.evaluate("getComputedStyle(document.querySelector('.mla-changes')).backgroundImage")
    sideways = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    page.close()
    assert not faint
    assert shade.count("gradient(") == 4  # as at the sides of other code
    assert size >= 9
    assert sideways <= 0
