"""The last step: what a page loads, and what is wrong with the theme's markup.

It reads and writes the built pages, once all of them are there. Each page loads one
style sheet with the rules that some page can use, and one script; icons are drawn in
the page. Files that no page asks for leave the built book.
"""

import hashlib
import posixpath
import re
import shutil
from pathlib import Path

from access import mend
from api_words import breakable
from formulas import STYLES
from icons import draw_icons
from sphinx.errors import ExtensionError
from style_sheets import reduce
from units import keep_whole

LICENCES = {"_static/fonts/OFL.txt"}
STYLE_SHEET = "_static/book-pages.css"
SCRIPT = "_static/book-pages.js"
# Scripts that nothing in the book calls: live code, tabs, and Bootstrap's.
UNUSED = ("sphinx-thebe.js", "design-tabs.js", "bootstrap.js", "fontawesome.js")
# Scripts of their own: those of the search page and of pages with widgets.
APART = ("searchtools.js", "language_data.js", "searchindex.js", "widget-host.js")
LINK = re.compile(r'<link\b[^>]*\bhref="([^"?]*\.css)[^>]*>\n?')
SOURCE = re.compile(r'<script\b[^>]*\bsrc="([^"?]*\.js)[^>]*></script>\n?')
INLINE = re.compile(r"<script[^>]*>.*?</script>\n?", re.S)
# Settings of live code and of a search while typing, neither of which is there.
LIVE_CODE = re.compile(
    r'<script(?: type="text/x-thebe-config">'
    r"|>(?:kernelName|DOCUMENTATION_OPTIONS)\b).*?</script>\n?",
    re.S,
)
# The theme marks what scrolls by measuring and writing in turn, box for box, which lays
# out the page each time; page.js does it in one go.
MARKS = re.compile(
    r'"complete"===document\.readyState\?(\w+)\(\)'
    r':window\.addEventListener\("load",\1\)'
)
# What the theme marks in the contents stays where it was: contents.js does it instead.
CONTENTS = re.compile(r'document\.querySelector\("#pst-page-toc-nav"\)')
# The search shows a few words of a page: of its article, each formula once.
LEFT_OUT = '[".headerlink", "script", "style"]'
NO_WORDS = '[".headerlink", "script", "style", ".katex-mathml", "summary"]'
WHOLE = """const docContent = htmlElement.querySelector('[role="main"]');"""
ARTICLE = """\
htmlElement.querySelectorAll("dt, dd, li, p, td, th, h1, h2, h3, pre, figcaption")
      .forEach((el) => { el.append(" ") });
    const docContent = htmlElement.querySelector('.bd-article');"""
# Names, brackets and spaces have the ink of the code: half of the page's elements.
PLAIN = re.compile(r'<span class="(?:n|p|w)">([^<]*)</span>')
VIEWPORT = re.compile(r'<meta (?:content="[^"]*" )?name="viewport"[^>]*>')
STATE = re.compile(
    r'<script type="application/vnd\.jupyter\.widget-state\+json">.*?</script>', re.S
)


def local(page, target):
    """The path in the book of what a page names by a relative address."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def assets(pages, pattern):
    """What pages load, in an order that each of them follows."""
    order = []
    for page, text in pages.items():
        place = 0
        for target in pattern.findall(text):
            path = local(page, target)
            if path in order:
                place = order.index(path) + 1
            else:
                order.insert(place, path)
                place += 1
    return order


def imported(folder, path):
    """A style sheet with what it imports."""
    css = (folder / path).read_text(encoding="utf-8")
    sheets = [(path, css)]
    for target in re.findall(r'@import\s+"([^"]+)"', css):
        sheets = [*imported(folder, local(path, target)), *sheets]
    return [(name, re.sub(r'@import\s+"[^"]+";?', "", text)) for name, text in sheets]


def words_of(pages, scripts):
    """Classes and ids of the pages, and every word of a script."""
    words = set()
    for text in pages.values():
        for names in re.findall(r'\b(?:class|id)="([^"]*)"', text):
            words.update(names.split())
        for script in INLINE.findall(text):
            words.update(re.findall(r"[\w-]+", script))
    words.update(re.findall(r"[\w-]+", scripts))
    return words


def write(folder, path, text):
    """Write an asset; returns its path with a digest, so that no old copy is used."""
    (folder / path).write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{path}?v={digest}"


def load_less(page, text, styles, script):
    """A page that loads one style sheet and one script, and its widgets' state last."""
    root = "../" * page.count("/")
    sheets = f'    <link rel="stylesheet" href="{root}{styles}" />\n'
    if 'class="katex' in text:
        sheets += f'    <link rel="stylesheet" href="{root}_static/{STYLES}" />\n'
    first = True

    def link(found):
        nonlocal first
        kept, first = (sheets if first else ""), False
        return kept

    def source(found):
        name = found[1].rpartition("/")[2]
        if name not in APART:
            return ""
        return f'    <script defer src="{found[1]}"></script>\n'

    text = SOURCE.sub(source, LINK.sub(link, text))
    seen = set()

    def once(found):
        same = found[0].strip() in seen
        seen.add(found[0].strip())
        return "" if same and "application/" not in found[0] else found[0]

    text = INLINE.sub(once, text)
    text = LIVE_CODE.sub("", text)
    script = f'    <script defer src="{root}{script}"></script>\n'
    head, end, body = text.partition("</head>")
    at = head.find("<script defer")
    head = head[:at].rstrip(" ") + script + head[at:] if at >= 0 else head + script
    states = "".join(STATE.findall(head))
    head = STATE.sub("", head)
    return head + end + body.replace("</body>", f"{states.lstrip()}\n</body>")


def tidy(text):
    """One viewport, and a palette for a page whose script has not run."""
    text = text.replace('data-theme="auto"', 'data-theme="light"', 1)
    first = VIEWPORT.search(text)
    if first is None:
        return text
    return text[: first.end()] + VIEWPORT.sub("", text[first.end() :])


def remove_unused(folder, pages):
    """Remove the files in _static that no page and no style sheet asks for."""
    named = set()
    for text in pages.values():
        named.update(re.findall(r"\b_static/[\w./-]+", text))
    for path in (STYLE_SHEET, f"_static/{STYLES}"):
        css = (folder / path).read_text(encoding="utf-8")
        for target in re.findall(r"""url\(["']?([^"')]+)""", css):
            named.add(local(path, target))
    for path in sorted((folder / "_static").rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in named | LICENCES:
            path.unlink()


def read_pages(folder):
    """The pages of a built book, by their paths in it."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    return {
        name: (folder / name).read_text(encoding="utf-8")
        for name in sorted(names)
        if not name.startswith("_static/")
    }


def read_scripts(folder, paths):
    """Several scripts as one text."""
    texts = ((folder / path).read_text(encoding="utf-8") for path in paths)
    return re.sub(r"^//# sourceMappingURL=.*$", "", "\n;\n".join(texts), flags=re.M)


def without_marks(script):
    """The shared script without the theme's marks of what scrolls and what is read."""
    parts = ("what scrolls", MARKS, "0"), ("what is read", CONTENTS, "null")
    for what, pattern, instead in parts:
        script, dropped = pattern.subn(instead, script)
        if dropped != 1:
            raise ExtensionError(f"the theme marks {what} {dropped} times, not once")
    return script


def show_words(script):
    """The script of the search, with excerpts that can be read."""
    for theirs, ours in ((LEFT_OUT, NO_WORDS), (WHOLE, ARTICLE)):
        if script.count(theirs) != 1:
            raise ExtensionError(f"the search says {theirs} not once")
        script = script.replace(theirs, ours)
    return script


def plain(text):
    """A page whose code marks only what has an ink of its own."""
    return PLAIN.sub(r"\1", text)


def finish(folder):
    """Finish the pages of a built book."""
    pages = read_pages(folder)
    names = {path: path.rpartition("/")[2] for path in assets(pages, SOURCE)}
    shared = [path for path, name in names.items() if name not in (*APART, *UNUSED)]
    script = without_marks(read_scripts(folder, shared))
    apart = read_scripts(folder, [p for p, name in names.items() if name in APART])
    sheets = [sheet for path in assets(pages, LINK) for sheet in imported(folder, path)]
    steps = plain, draw_icons, mend, breakable, keep_whole
    for step in steps:
        pages = {name: step(text) for name, text in pages.items()}
    said = "\n".join([script, apart, *pages.values()])
    css = reduce(sheets, words_of(pages, script + apart), said)
    styles, script = write(folder, STYLE_SHEET, css), write(folder, SCRIPT, script)
    for name, text in pages.items():
        pages[name] = tidy(load_less(name, text, styles, script))
        (folder / name).write_text(pages[name], encoding="utf-8")
    search = folder / "_static" / "searchtools.js"
    search.write_text(show_words(search.read_text(encoding="utf-8")), encoding="utf-8")
    remove_unused(folder, pages)


def start_anew(app):
    """Leave no finished page for a build that writes only what has changed."""
    if Path(app.outdir, STYLE_SHEET).exists():
        shutil.rmtree(app.outdir)
        Path(app.outdir).mkdir()


def on_finished(app, exception):
    if exception is None and app.builder.format == "html":
        finish(Path(app.outdir))


def setup(app):
    app.connect("builder-inited", start_anew)
    app.connect("build-finished", on_finished, priority=900)
    return {"version": "1", "parallel_read_safe": True}
