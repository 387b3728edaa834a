"""Every page of the built book, loaded in a browser that can reach nothing but the book."""

import gzip
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INSPECT = Path(__file__).with_name("inspect_page.js").read_text(encoding="utf-8")
AXE = Path(sys.prefix, "js", "node_modules", "axe-core", "axe.min.js")
# Contrast, and what tells a link from the text around it, are left out: what is above inspects them, faster.
RUN_AXE = """() => axe.run({
  resultTypes: ["violations"],
  rules: {
    "color-contrast": { enabled: false },
    "link-in-text-block": { enabled: false },
    "label-content-name-mismatch": { enabled: true },
  },
}).then(({ violations }) => violations.map(({ id, nodes }) => `${id}: ${nodes[0].html.slice(0, 160)}`))"""
# Before axe comes, what it would spend most of its time on and can find nothing in: colours of code, and formulas drawn
# for the eye beside their MathML.
SPARE_AXE = """() => {
  for (const drawn of document.querySelectorAll(".katex-html"))
    if (!drawn.querySelector("a, button, input, [tabindex], [role]")) drawn.replaceChildren();
  for (const code of document.querySelectorAll(".highlight pre"))
    if (!code.querySelector("a, button, input, [tabindex], [role]")) code.textContent = code.textContent;
}"""
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def table_of_contents():
    """The documents of _toc.yml in reading order."""

    def walk(node):
        yield node.get("file") or node.get("root")
        for child in node.get("parts", []):
            yield from (doc for chapter in child["chapters"] for doc in walk(chapter))
        for child in node.get("sections", []):
            yield from walk(child)

    return list(walk(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))


# The page looks again for what scrolls a while after it learns its new size. What it never marks, axe names.
SETTLE = """async () => {
  const frame = () => new Promise(requestAnimationFrame);
  const boxes = "pre, .cell_output > .output, .pst-scrollable-table-container, div.math";
  const overlooked = (box) =>
    !box.closest("details:not([open])") && box.tabIndex !== 0 && box.scrollWidth > box.clientWidth;
  await frame();
  await frame();
  for (const end = performance.now() + 5000; performance.now() < end; await frame())
    if (![...document.querySelectorAll(boxes)].some(overlooked)) break;
}"""
GUISES = {"wide": (1280, 900, "light"), "narrow": (390, 844, "dark")}
READING_ORDER = table_of_contents()
CHAPTERS = [doc for doc in READING_ORDER if (ROOT / f"{doc}.ipynb").exists()]


def put_on(page, guise):
    width, height, theme = GUISES[guise]
    page.set_viewport_size({"width": width, "height": height})
    page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
    page.evaluate(SETTLE)


def visit(context, address, name):
    """Load one page; return what it asked for, what it complained of, and what is wrong with it in two guises."""
    page, outside, complaints, loaded = context.new_page(), [], [], []

    def gate(route):
        if route.request.url.startswith(address):
            loaded.append(urlparse(route.request.url).path.lstrip("/"))
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    def listen(message):
        if message.type in {"error", "warning"}:
            complaints.append(message.text)

    page.route(lambda url: not url.startswith(("blob:", "data:")), gate)
    page.on("websocket", lambda socket: outside.append(socket.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", listen)
    page.goto(address + name, wait_until="load")
    page.evaluate("document.fonts.ready")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = {}
    for guise in GUISES:
        put_on(page, guise)
        found[guise] = page.evaluate(INSPECT)
    page.evaluate(SPARE_AXE)
    # Of the reference's pages, which one template makes, the longest alone is looked at in both.
    alike = name.startswith(("book/api/", "_modules/")) and name != "book/api/kernels.html"
    for guise in ("narrow",) if alike else ("narrow", "wide"):
        put_on(page, guise)
        found[guise]["violations"] = page.evaluate(RUN_AXE)
    page.close()
    return {"outside": outside, "complaints": complaints, "loaded": loaded} | found


def some_listings(html):
    """Of the listings of the source, which one template makes: the index, the longest, and that of the longest line."""
    listings = sorted((html / "_modules" / "mla_edu").rglob("*.html"))
    assert len(listings) > 50
    longest = max(listings, key=lambda path: path.stat().st_size)
    widest = max(listings, key=lambda path: max(map(len, path.read_text(encoding="utf-8").splitlines())))
    chosen = {html / "_modules" / "index.html", longest, widest}
    return sorted(path.relative_to(html).as_posix() for path in chosen)


@pytest.fixture(scope="session")
def reports(browser, serve, html):
    """Per page, what ``visit`` found."""
    names = sorted(path.relative_to(html).as_posix() for path in html.rglob("*.html"))
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    address = serve(html)
    pages = [name for name in names if not name.startswith(("_static/", "_modules/"))]
    pages += some_listings(html)
    found = {name: visit(context, address, name) for name in pages}
    context.close()
    return found


def faults(reports, key):
    """Pages with a fault of this kind, in either width; empty when all is well."""
    found = {}
    for name, report in reports.items():
        wrong = report.get(key) or report["wide"].get(key) or report["narrow"].get(key)
        if wrong:
            found[name] = wrong
    return found


def test_every_document_has_a_page(reports):
    assert {f"{doc}.html" for doc in READING_ORDER} <= set(reports)


def test_chapters_and_their_exercises_are_numbered_without_gaps(html):
    for number, doc in enumerate(CHAPTERS, start=1):
        page = (html / f"{doc}.html").read_text(encoding="utf-8")
        assert re.findall(r'<h1><span class="section-number">([^<]*)</span>', page) == [f"{number}. "]
        exercises = re.findall(
            r'<p class="admonition-title"><span class="caption-number">Exercise ([\d.]+) ?</span>', page
        )
        assert exercises == [f"{number}.{k}" for k in range(1, len(exercises) + 1)] != [], doc
        boxes = re.findall(r'admonition" id="([\w-]+)">\s*<p class="admonition-title"><span class="caption-n', page)
        solved = re.findall(r'Solution to<a class="reference internal" href="#([\w-]+)"> Exercise ([\d.]+) \(', page)
        assert solved == list(zip(boxes, exercises, strict=True)), doc


def test_no_page_asks_another_host(reports):
    assert not faults(reports, "outside")


def test_no_page_complains(reports):
    assert not faults(reports, "complaints")


def test_no_page_loads_requirejs(reports):
    assert not faults(reports, "requirejs")


def test_formulas_are_rendered(reports):
    assert not faults(reports, "unrendered")
    assert reports["book/notation.html"]["wide"]["formulas"] > 20


def test_letters_of_formulas_have_their_fonts(reports):
    assert not faults(reports, "fontless")


def test_no_formula_is_a_tab_stop(reports):
    assert not faults(reports, "formulaStops")


def test_icons_are_drawn(reports):
    assert not faults(reports, "icons")


def test_no_rule_of_axe_is_violated(reports):
    assert not faults(reports, "violations")


def weight(html, paths):
    """Bytes of files as a server sends them: compressed, but for what is compressed already."""
    whole = [(html / unquote(path)).read_bytes() for path in set(paths)]
    return sum(min(len(body), len(gzip.compress(body, 6))) for body in whole)


def test_pages_are_light(reports, html):
    """In kB and in requests: the landing page, a chapter, a page of the reference, and the search, with its index."""
    bounds = {"index.html": (250, 12), "book/index.html": (250, 12), "search.html": (250, 12)}
    bounds |= {f"{doc}.html": (350, 24) for doc in CHAPTERS}
    heavy = {}
    for name, report in reports.items():
        kilobytes, requests = bounds.get(name, (260, 20))
        found = weight(html, report["loaded"]) / 1000, len(set(report["loaded"]))
        if found[0] > kilobytes or found[1] > requests:
            heavy[name] = found
    assert not heavy


def test_search_index_is_loaded_by_the_search_page_alone(reports):
    assert [name for name, report in reports.items() if "searchindex.js" in report["loaded"]] == ["search.html"]


def test_no_script_style_or_font_is_built_that_no_page_loads(reports, html):
    loaded = {path for report in reports.values() for path in report["loaded"]}
    built = {path.relative_to(html).as_posix() for path in (html / "_static").rglob("*")}
    assert {path for path in built if path.endswith((".js", ".css", ".woff2", ".woff", ".ttf", ".map"))} <= loaded


def test_every_picture_says_what_it_shows(reports):
    assert not faults(reports, "unnamed")


def test_text_stands_out_from_its_background(reports):
    assert not faults(reports, "faint")


def test_links_stand_out_from_the_text_around_them(reports):
    assert not faults(reports, "hidden")


def test_no_white_card_in_dark_mode(reports):
    assert not faults(reports, "cards")


LIGHTNESS = """() => {
  const light = (colour) => Math.max(...colour.match(/[\\d.]+/g).slice(0, 3).map(Number));
  const grounds = [document.body, document.documentElement].map((e) => getComputedStyle(e).backgroundColor);
  const ground = grounds.find((colour) => !colour.endsWith(" 0)")) ?? "255 255 255";
  return [getComputedStyle(document.querySelector("h1")).color, ground].map(light);
}"""


@pytest.mark.parametrize("name", ["404.html", "search.html"])
def test_pages_without_an_article_take_the_dark_palette(browser, serve, html, name):
    page = browser.new_page(color_scheme="dark")
    page.goto(serve(html) + name)
    ink, ground = page.evaluate(LIGHTNESS)
    page.close()
    assert ground < 40
    assert 210 < ink < 230  # the ink of the book, in which its other titles stand


def test_no_page_scrolls_sideways(reports):
    for width in ("narrow", "wide"):
        assert not {
            name: report[width]["overflow"] for name, report in reports.items() if report[width]["overflow"] > 0
        }


def test_no_page_scrolls_on_below_its_footer(reports):
    assert not faults(reports, "below")


def test_code_can_be_copied(reports):
    for doc in CHAPTERS:
        wide = reports[f"{doc}.html"]["wide"]
        assert wide["copyButtons"] == wide["inputCells"] > 0, doc


class Links(HTMLParser):
    """What a page points to, and the anchors that it offers."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.anchors, self.relations = [], {""}, {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        target = attrs.get("href" if tag in {"a", "link"} else "src")
        if target:
            self.targets.append(target)
            if tag == "a" and "prev-next" not in target and attrs.get("class") in {"left-prev", "right-next"}:
                self.relations[attrs["class"]] = target


def read_links(html):
    pages = (path for path in html.rglob("*.html") if "_static" not in path.relative_to(html).parts)
    return {path.relative_to(html).as_posix(): Links(path.read_text(encoding="utf-8")) for path in pages}


def broken_links(html):
    """Internal targets that do not exist, as (page, target)."""
    pages = read_links(html)
    broken = []
    for name, links in pages.items():
        for target in links.targets:
            if urlparse(target).scheme or target.startswith("//"):
                continue
            path, anchor = urldefrag(urljoin(name, target.partition("?")[0] if "#" not in target else target))
            path = unquote(path.partition("?")[0])
            known = path in pages and unquote(anchor) in pages[path].anchors | {"top"}
            if not (known or (path not in pages and (html / path).is_file())):
                broken.append((name, target))
    return broken


def test_internal_links_and_anchors_exist(html):
    assert not broken_links(html)


def test_reading_order_has_previous_and_next(html):
    pages = read_links(html)
    for before, doc, after in zip([None, *READING_ORDER], READING_ORDER, [*READING_ORDER[1:], None], strict=False):
        page = f"{doc}.html"
        relations = {kind: urljoin(page, target) for kind, target in pages[page].relations.items()}
        assert relations.get("left-prev") == (before and f"{before}.html"), doc
        assert relations.get("right-next") == (after and f"{after}.html"), doc


def test_every_chapter_opens_on_colab(html):
    repository = CONFIG["repository"]["url"].removeprefix("https://")
    pages = read_links(html)
    assert CHAPTERS
    for doc in CHAPTERS:
        on_colab = f"https://colab.research.google.com/{repository.replace('.com', '')}/blob/main/{doc}.ipynb"
        assert on_colab in pages[f"{doc}.html"].targets


@pytest.fixture
def search(browser, serve, html):
    """``search(words)`` gives the pages that are found, the best first; ``search.page`` shows them."""
    page, address = browser.new_page(viewport={"width": 390, "height": 800}), serve(html)

    def find(words):
        page.goto(f"{address}search.html?q={words}")
        page.wait_for_selector("#search-results ul.search li a")
        page.wait_for_function("document.querySelector('.search-summary')?.textContent.includes('finished')")
        return page.locator("#search-results ul.search li a").evaluate_all("links => links.map(a => a.pathname)")

    find.page = page

    yield find
    page.close()


def test_search_finds_a_term(search):
    assert "/book/glossary.html" in search("sliding+window")


def test_search_shows_chapters_before_the_reference_but_for_its_names(search):
    assert search("absorption")[0] == "/book/absorption.html"
    for words in ("cache", "decode+kernel"):
        of_the_reference = ["/api/" in path for path in search(words)]
        assert of_the_reference == sorted(of_the_reference)
    assert search("mla_decode")[0] == "/book/api/kernels.html"


def test_excerpts_of_a_search_are_words_of_the_article_that_fit_a_phone(search):
    assert "/book/guess-and-verify.html" in search("latent")
    search.page.wait_for_function("!!document.querySelector('#search-results p.context')")
    search.page.wait_for_timeout(500)
    excerpts = search.page.locator("#search-results p.context").all_text_contents()
    assert len(excerpts) > 10
    assert not [each for each in excerpts if "\\" in each or "cell source" in each or "Contents" in each]
    assert search.page.evaluate("document.documentElement.scrollWidth") == 390


def test_no_mark_behind_a_formula_begins_a_line(browser, serve, html):
    page, address = browser.new_page(viewport={"width": 390, "height": 800}), serve(html)
    for name in ("decoupled-rope", "guess-and-verify"):
        page.goto(f"{address}book/{name}.html")
        for width in (320, 345, 370, 390):
            page.set_viewport_size({"width": width, "height": 800})
            begun = page.evaluate("""() => [...document.querySelectorAll(".mla-held")].filter((held) => {
              const [range, mark] = [document.createRange(), held.lastChild];
              range.selectNode(mark);
              const last = [...held.querySelectorAll(".katex-base")].at(-1).getBoundingClientRect();
              return last.height && range.getBoundingClientRect().left < last.right - 1;
            }).map((held) => held.textContent.slice(-40))""")
            assert begun == [], (name, width)
    assert page.locator(".mla-held").count() > 10
    page.close()


def test_pages_name_one_repository():
    known = CONFIG["repository"]["url"]
    for path in (ROOT / "book").rglob("*.md"):
        for address in re.findall(r"https://github\.com/mla[\w.-]*/[\w.-]+", path.read_text(encoding="utf-8")):
            assert address == known, path.name
