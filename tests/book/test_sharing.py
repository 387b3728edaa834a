"""What search engines, previews of links and readers of plain text get to see."""

import base64
import json
import re
import struct
import sys
import xml.etree.ElementTree as ET
import zlib
from html import unescape
from pathlib import Path
from urllib.parse import urljoin

import pytest
import yaml
from docutils.core import publish_doctree

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
sys.path.append(str(BOOK / "_ext"))

import sharing  # noqa: E402

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
SITE = CONFIG["html"]["baseurl"]
CHAPTERS = sorted(BOOK.glob("*.ipynb"))
DOCUMENTS = re.findall(r"(?:file|root): (\S+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))


def head(html, doc):
    """The title of a page, its meta tags, and its links by their relation."""
    text = (html / f"{doc}.html").read_text(encoding="utf-8").partition("</head>")[0]
    meta = dict(re.findall(r'<meta (?:name|property)="([^"]+)" content="([^"]*)" />', text))
    links = re.findall(r'<link rel="(canonical|alternate|apple-touch-icon)"[^>]* href="([^"]+)"', text)
    return unescape(re.search("<title>(.*?)</title>", text)[1]), meta, dict(links)


def test_description_is_whole_sentences_or_whole_words():
    assert sharing.shorten("Why?\n  Because.") == "Why? Because."
    sentence = "A sentence of some length that says what it says."
    assert sharing.shorten(" ".join([sentence] * 9)) == " ".join([sentence] * 4)
    cut = sharing.shorten("word " * 100)
    assert cut == "word " * 39 + "word …"


def test_page_is_described_by_its_first_words():
    doctree = publish_doctree("Title\n=====\n\n**Why so?** It is known.\n\nMore\n----\n\nOther words.")
    assert sharing.question(doctree) == "Why so?"
    assert sharing.question(publish_doctree("Some *plain* words.")) == ""


def test_notebook_in_words_has_code_outputs_and_figures():
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {
            "cell_type": "code",
            "source": ["f(x)"],
            "outputs": [
                {"output_type": "stream", "text": ["12\n", "13\n"]},
                {"output_type": "display_data", "data": {"image/svg+xml": "<svg/>", "text/plain": ["Figure: a line"]}},
            ],
        },
    ]
    assert sharing.in_words({"cells": cells}, chapter=1) == (
        "# Title\ntext\n\n```python\nf(x)\n```\n\n```text\n12\n13\n```\n\n```text\nFigure: a line\n```\n"
    )


EXERCISES = """:::{exercise-start} Why?
:label: ex-why
:::

Say it.

:::{exercise-end}
:::

:::{solution-start} ex-why
:class: dropdown
:::

So.

:::{solution-end}
:::

:::{exercise-start} And $x$?
:label: ex-x
:::"""


def test_exercises_in_words_have_the_numbers_of_the_page():
    cells = [{"cell_type": "markdown", "source": EXERCISES}]
    assert sharing.in_words({"cells": cells}, chapter=3) == (
        "**Exercise 3.1 (Why?)**\n\nSay it.\n\n**Solution to Exercise 3.1 (Why?)**\n\nSo.\n\n"
        "**Exercise 3.2 (And $x$?)**\n"
    )


def test_root_page_leads_where_the_landing_page_leads():
    links = ["../_static/a.css", "what.html#x", "index.html", "#top", "https://x.org/y", "api/index.html", "?a=1"]
    page = sharing.root_page("".join(f'<a href="{link}">' for link in links) + '<html data-content_root="../">')
    assert re.findall('href="([^"]*)"', page) == [
        "_static/a.css", "book/what.html#x", "index.html", "#top", "https://x.org/y", "book/api/index.html", "?a=1",
    ]  # fmt: skip
    assert 'data-content_root="./"' in page


def test_each_page_has_a_title_and_a_description_of_its_own(html):
    heads = {doc: head(html, doc) for doc in DOCUMENTS}
    titles = [title for title, _, _ in heads.values()]
    assert len(set(titles)) == len(titles)
    for doc, (title, meta, links) in heads.items():
        assert 20 <= len(unescape(meta["description"])) <= 202, doc
        assert meta["description"] == meta["og:description"]
        assert title.startswith(unescape(meta["og:title"]))
        assert CONFIG["title"] == meta["og:site_name"]
        assert CONFIG["title"] in title
        address = SITE if doc == "book/index" else f"{SITE}{doc}.html"
        assert links["canonical"] == meta["og:url"] == address
        assert (html / doc).parent.joinpath(links["apple-touch-icon"]).resolve().is_file()


def test_landing_page_stands_at_the_root(html):
    assert head(html, "index")[:2] == head(html, "book/index")[:2]
    assert head(html, "index")[2]["canonical"] == SITE
    assert "http-equiv" not in (html / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_opens_with_its_question(chapter, html):
    text = "".join(json.loads(chapter.read_text(encoding="utf-8"))["cells"][0]["source"])
    opening = " ".join(re.search(r"\*\*(.+?)\*\*", text, re.DOTALL)[1].split())
    description = unescape(head(html, f"book/{chapter.stem}")[1]["description"])
    assert description.replace("’", "'").startswith(opening.replace("’", "'"))


def said(path):
    """What a card says, and its size in pixels."""
    data, place, texts = path.read_bytes(), 8, {}
    while place < len(data):
        (length,), kind = struct.unpack(">I", data[place : place + 4]), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + length]
        if kind == b"IHDR":
            size = struct.unpack(">II", body[:8])
        if kind == b"iTXt":
            key, compressed, rest = body.partition(b"\0")[0], body[body.index(b"\0") + 1], body.split(b"\0", 5)[-1]
            texts[key.decode()] = (zlib.decompress(rest) if compressed else rest).decode()
        place += 12 + length
    return texts, size


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_has_a_card_with_its_title_and_question(chapter, html):
    """Where this fails: ``python tools/make_cards.py``."""
    text = "".join(json.loads(chapter.read_text(encoding="utf-8"))["cells"][0]["source"])
    card = BOOK / "_static" / "cards" / f"{chapter.stem}.png"
    texts, size = said(card)
    assert texts["Title"] == re.search("^# (.+)$", text, re.MULTILINE)[1]
    assert texts["Question"] == " ".join(re.search(r"\*\*(.+?)\*\*", text, re.DOTALL)[1].split())
    assert size == sharing.SIZE
    assert card.stat().st_size < 40_000
    meta = head(html, f"book/{chapter.stem}")[1]
    assert meta["og:image"] == urljoin(SITE, f"_static/cards/{chapter.stem}.png")
    assert (html / "_static" / "cards" / card.name).is_file()
    assert meta["twitter:card"] == "summary_large_image"


def test_no_card_is_of_a_chapter_that_is_gone():
    cards = {path.stem for path in (BOOK / "_static" / "cards").iterdir()}
    assert cards == {"index", *(path.stem for path in CHAPTERS)}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_there_in_words(chapter, html):
    text = (html / "book" / f"{chapter.stem}.md").read_text(encoding="utf-8")
    assert head(html, f"book/{chapter.stem}")[2]["alternate"] == f"{chapter.stem}.md"
    assert text.startswith("# ")
    assert "<svg" not in text
    page = (html / "book" / f"{chapter.stem}.html").read_text(encoding="utf-8")
    numbers = re.findall(r"^\*\*Exercise ([\d.]+) \(", text, re.MULTILINE)
    assert numbers == re.findall(r'class="caption-number">Exercise ([\d.]+) ?<', page) != []
    assert numbers == re.findall(r"^\*\*Solution to Exercise ([\d.]+) \(", text, re.MULTILINE)
    assert not re.search(r"^:::\{(?:exercise|solution)", text, re.MULTILINE)
    assert f"{SITE}book/{chapter.stem}.md" in (html / "llms.txt").read_text(encoding="utf-8")


def test_site_map_names_every_document(html):
    names = [element.text for element in ET.parse(html / "sitemap.xml").iter() if element.tag.endswith("loc")]
    assert sorted(names) == sorted(SITE if doc == "book/index" else f"{SITE}{doc}.html" for doc in DOCUMENTS)
    assert f"Sitemap: {SITE}sitemap.xml" in (html / "robots.txt").read_text(encoding="utf-8")


def test_missing_page_leads_back_from_any_depth(html):
    page = (html / "404.html").read_text(encoding="utf-8")
    assert set(re.findall('(?:href|src)="([^"]*)"', page)) == {SITE, f"{SITE}search.html", "data:,"}
    font = (html / sharing.FONT).read_bytes()
    assert f"url(data:font/woff2;base64,{base64.b64encode(font).decode()})" in page
