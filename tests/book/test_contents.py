"""The contents beside an article mark the section that is being read, whichever way a reader came to it."""

import pytest

MARKED = """() => [...document.querySelectorAll("#pst-page-toc-nav a.active")].map((link) => link.hash)"""
PLACES = """() => [...document.querySelectorAll('#pst-page-toc-nav a[href^="#"]')].map((link) =>
  [link.hash, scrollY + document.getElementById(link.hash.slice(1)).getBoundingClientRect().top])"""


@pytest.fixture
def page(browser, serve, html):
    page = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    page.goto(f"{serve(html)}book/compression.html")
    yield page
    page.close()


def marked(page, top):
    page.evaluate("(top) => scrollTo({ top, behavior: 'instant' })", top)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.evaluate(MARKED)


def test_the_mark_follows_a_reader_down_and_up_and_over_a_leap(page):
    places = page.evaluate(PLACES)
    assert len(places) > 8
    assert marked(page, 0) == []
    for name, top in [*places, *reversed(places), places[-4], places[1], places[-3]]:
        assert marked(page, top - 100)[-1:] == [name]
    assert marked(page, 0) == []


def test_each_section_has_the_mark_for_a_while(page):
    places = page.evaluate(PLACES)
    end = page.evaluate("document.documentElement.scrollHeight")
    seen = [name for top in range(0, end, 320) for name in marked(page, top)]
    assert list(dict.fromkeys(seen)) == [name for name, _ in places]


def test_a_link_that_was_followed_has_the_mark(page):
    for name, _ in reversed(page.evaluate(PLACES)):
        page.click(f'#pst-page-toc-nav a[href="{name}"]')
        page.wait_for_timeout(100)
        assert page.evaluate(MARKED) == [name]
