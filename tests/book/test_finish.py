"""The last step of the build: fewer elements in code, and a search for what scrolls that lays out a page once."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
from sphinx.errors import ExtensionError

sys.path.append(str(Path(__file__).resolve().parents[2] / "book" / "_ext"))

from finish import plain, without_marks

MARKED = """() => [...document.querySelectorAll("pre, .pst-scrollable-table-container, div.math")]
  .filter((box) => box.checkVisibility({ visibilityProperty: true }) && !box.closest(".mla-changes"))
  .filter((box) => (box.scrollWidth > box.clientWidth) !== (box.tabIndex === 0))
  .map((box) => box.outerHTML.slice(0, 80))"""
# Which of both comes when a page measures a box and marks it.
WATCH = """
  window.order = [];
  const width = Object.getOwnPropertyDescriptor(Element.prototype, "scrollWidth");
  Object.defineProperty(Element.prototype, "scrollWidth", {
    get() { if (this.matches("pre")) order.push("measure"); return width.get.call(this); },
  });
  const mark = Object.getOwnPropertyDescriptor(HTMLElement.prototype, "tabIndex");
  Object.defineProperty(HTMLElement.prototype, "tabIndex", {
    get() { return mark.get.call(this); },
    set(value) { if (this.matches("pre")) order.push("mark"); mark.set.call(this, value); },
  });"""


def test_code_marks_only_what_has_an_ink_of_its_own():
    code = '<span class="n">x</span> <span class="o">=</span><span class="w"> </span><span class="p">[</span>'
    assert plain(code) == 'x <span class="o">=</span> ['
    assert plain('<span class="nf">f</span><span class="pre">p</span>').count("span") == 4


def test_theme_that_marks_in_another_way_fails_the_build():
    scrolls = 'e(),"complete"===document.readyState?I():window.addEventListener("load",I)})();'
    read = 'const e=document.querySelector("#pst-page-toc-nav");if(!e)return;'
    assert without_marks(scrolls + read) == "e(),0})();const e=null;if(!e)return;"
    for part in (scrolls, read):
        with pytest.raises(ExtensionError, match="0 times"):
            without_marks(part)


def all_is_marked(page):
    """Soon, however slow the machine."""
    page.wait_for_function(f"({MARKED})().length === 0", timeout=10_000)


def test_what_scrolls_is_within_reach_of_a_keyboard(browser, serve, html):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.add_init_script(WATCH)
    page.goto(f"{serve(html)}book/the-decode-kernel.html", wait_until="load")
    all_is_marked(page)
    order = page.evaluate("order")
    assert order.count("mark") > 5
    # Looks at the whole page. Were each box marked once it is measured, the page would be laid out 90 times.
    assert sum(pair == ("mark", "measure") for pair in pairwise(order)) < 5
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    all_is_marked(page)
    page.set_viewport_size({"width": 1280, "height": 844})
    all_is_marked(page)
    page.close()
