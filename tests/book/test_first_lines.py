"""What a page shows first does not move: the fonts of its first lines are asked for before its style sheets."""

import pytest

ROMAN = "fonts/source-serif-4-latin-wght-normal.woff2"
UPRIGHT, ITALIC = "katex/KaTeX_Main-Regular.woff2", "katex/KaTeX_Math-Italic.woff2"
PRELOADED = """() => [...document.querySelectorAll("link[rel=preload]")].map((link) => ({
  address: link.href,
  early: !document.querySelector("link[rel=stylesheet]").contains(link) &&
    (link.compareDocumentPosition(document.querySelector("link[rel=stylesheet]")) & 4) !== 0,
}))"""


@pytest.mark.parametrize(
    ("name", "fonts"),
    [
        ("index.html", [ROMAN]),
        ("book/status.html", [ROMAN]),
        ("book/absorption.html", [ROMAN, UPRIGHT, ITALIC]),
        ("book/one-token-at-a-time.html", [ROMAN, UPRIGHT, ITALIC]),
    ],
)
def test_fonts_of_the_first_lines_come_early_and_once(browser, serve, html, name, fonts):
    """Served from a folder, as the published book is."""
    page, folder, loaded = browser.new_page(), serve(html.parent) + f"{html.name}/", []
    page.on("response", lambda response: loaded.append((response.url, response.status)))
    page.goto(folder + name, wait_until="load")
    page.evaluate("document.fonts.ready")
    links = page.evaluate(PRELOADED)
    page.close()
    addresses = [f"{folder}_static/{font}" for font in fonts]
    assert links == [{"address": address, "early": True} for address in addresses]
    assert [loaded.count((address, 200)) for address in addresses] == [1] * len(fonts)


def test_page_opened_as_a_file_asks_for_none_early(browser, html):
    page, complaints = browser.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto((html / "book" / "absorption.html").as_uri())
    assert page.evaluate(PRELOADED) == complaints == []
    page.close()
