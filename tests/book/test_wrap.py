"""The switch above an article that wraps lines of code: off at first, kept for all pages, of use to a keyboard."""

import pytest

SWITCH = ".article-header-buttons > .mla-wrap"
WIDE = """() => [...document.querySelectorAll(".bd-article div.highlight pre, .bd-article .mla-changes")]
  .filter((box) => !box.closest(".cell_output") && box.scrollWidth > box.clientWidth + 1).length"""
OUTPUTS = """() => [...document.querySelectorAll(".bd-article .cell_output pre")]
  .every((pre) => getComputedStyle(pre).whiteSpace === "pre")"""


@pytest.fixture
def phone(browser, serve, html):
    """``phone(document, **options)`` opens a page of the book, with the settings of those opened before."""
    address, contexts = serve(html), []

    def start(doc, **options):
        if options or not contexts:
            contexts.append(browser.new_context(viewport={"width": 390, "height": 844}, **options))
        page = contexts[-1].new_page()
        page.goto(f"{address}{doc}.html")
        return page

    yield start
    for context in contexts:
        context.close()


@pytest.mark.parametrize("doc", ["book/absorption", "book/the-decode-kernel", "_modules/mla_edu/kernels/api"])
def test_lines_wrap_once_a_reader_asks_for_it(phone, doc):
    page = phone(doc)
    switch = page.locator(SWITCH)
    assert switch.get_attribute("aria-pressed") == "false"
    assert switch.get_attribute("title") == "Wrap lines of code"
    assert page.evaluate(WIDE) > 0
    switch.focus()
    page.keyboard.press("Enter")
    assert switch.get_attribute("aria-pressed") == "true"
    assert page.evaluate(WIDE) == 0
    assert page.evaluate(OUTPUTS)
    page.keyboard.press("Space")
    assert switch.get_attribute("aria-pressed") == "false"
    assert page.evaluate(WIDE) > 0


def test_choice_is_kept_for_other_pages_until_it_is_taken_back(phone):
    phone("book/absorption").click(SWITCH)
    page = phone("book/compression")
    assert page.locator(SWITCH).get_attribute("aria-pressed") == "true"
    assert page.evaluate(WIDE) == 0
    page.click(SWITCH)
    assert phone("book/absorption").evaluate(WIDE) > 0


def test_switch_is_there_for_code_on_a_screen_with_scripts_alone(phone):
    assert phone("book/glossary").locator(SWITCH).count() == 0
    page = phone("book/absorption")
    assert page.locator(SWITCH).is_visible()
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.emulate_media(media="print")
    assert not page.locator(SWITCH).is_visible()
    assert phone("book/absorption", java_script_enabled=False).locator(SWITCH).count() == 0
