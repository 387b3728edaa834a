"""What others see of the book: search engines, whoever is sent a link, readers of text.

Each page says what it is about and where it is published; a chapter shows its card, and
stands beside the page as Markdown too, with its outputs in words. The landing page is
also the root of the site.
"""

import base64
import json
import posixpath
import re
from html import escape
from pathlib import Path
from urllib.parse import urljoin

from docutils import nodes

ABOUT = (
    "How multi-head latent attention reads a small cache without unpacking it, derived "
    "step by step, checked by code on each page, down to a Triton decode kernel."
)
SUBTITLE = "from equations to a decode kernel"
LONGEST = 200  # characters of a description
CARD = "_static/cards/{}.png"
SIZE = 1200, 630  # of a card, in pixels
ADDRESS = re.compile(r'\b(href|src|action)="(?![a-z]+:|[#/?])([^"]*)"')
# The directives of sphinx-exercise around an exercise and its solution
EXERCISE = re.compile(r"^:::\{exercise-start\} (.*)\n:label: (\S+)\n:::$", re.M)
SOLUTION = re.compile(r"^:::\{solution-start\} (\S+)\n:class: dropdown\n:::$", re.M)
EXERCISE_END = re.compile(r"^:::\{(?:exercise|solution)-end\}\n:::\n\n?", re.M)
# The page that is not there is asked for at any depth, so it carries its font.
FONT = "_static/fonts/source-serif-4-latin-wght-normal.woff2"
NOT_FOUND = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" /><meta name="viewport" content="width=device-width" />
<meta name="robots" content="noindex" /><link rel="icon" href="data:," />
<title>No such page: {title}</title>
<style>
@font-face {{ font-family: "Source Serif 4"; font-weight: 200 900;
  src: url(data:font/woff2;base64,{font}); }}
:root {{ color-scheme: light dark; color: #23211d; background: #fffefb; }}
body {{ max-width: 34rem; margin: 15vh auto; padding: 0 1.5rem;
  font: 17px/1.62 "Source Serif 4", Charter, Georgia, serif; }}
h1 {{ font-size: 2.15rem; font-weight: 600; line-height: 1.15;
  letter-spacing: -0.01em; }}
a {{ color: #1f5fae; }}
@media (prefers-color-scheme: dark) {{
  :root {{ color: #dddad3; background: #16181b; }}
  a {{ color: #8bb8f0; }}
}}
</style>
</head>
<body>
<main>
<h1>No such page</h1>
<p>The book has moved on. <a href="{root}">Its first page</a> lists every chapter,
and <a href="{root}search.html">the search</a> knows every word.</p>
</main>
</body>
</html>
"""


def shorten(text):
    """A description: whole sentences where one fits, else whole words."""
    text = " ".join(text.split())
    if len(text) <= LONGEST:
        return text
    sentences = re.match(rf".{{40,{LONGEST - 1}}}[.?!](?= )", text)
    if sentences:
        return sentences[0]
    return text[:LONGEST].rpartition(" ")[0].rstrip(",;:") + " …"


def describe(doctree):
    """What a page is about, in its first words; a chapter opens with its question."""
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            return shorten(paragraph.astext())
    return ABOUT


def question(doctree):
    """The bold words with which a page opens, or nothing."""
    for paragraph in doctree.findall(nodes.paragraph):
        first = paragraph.children[0] if paragraph.children else None
        return first.astext() if isinstance(first, nodes.strong) else ""
    return ""


def published(app, docname):
    """The address of a page; that of the landing page is the root."""
    root = app.config.html_baseurl
    return root if docname == app.config.root_doc else f"{root}{docname}.html"


def page_title(app, docname, title):
    """The title of a page in a list of search results, where each has its own."""
    book = app.config.html_title
    if docname == app.config.root_doc:
        return f"{book}: {SUBTITLE}"
    return f"{title} (mla_edu) | {book}" if "/api/" in docname else f"{title} | {book}"


def describe_page(app, pagename, templatename, context, doctree):
    """Add the descriptions, for search engines and for previews, to a page's head."""
    title = re.sub(r"<[^>]+>", "", context.get("title", ""))
    context["page_title"] = page_title(app, pagename, title)
    if doctree is None or pagename not in app.env.found_docs:
        return
    about = ABOUT if pagename == app.config.root_doc else describe(doctree)
    context["pageurl"] = published(app, pagename)
    tags = {
        "description": about,
        "og:type": "website" if pagename == app.config.root_doc else "article",
        "og:site_name": app.config.html_title,
        "og:title": context["page_title"].partition(" | ")[0],
        "og:description": about,
        "og:url": context["pageurl"],
    }
    slug = pagename.rpartition("/")[2]
    card = CARD.format(slug)
    if Path(app.srcdir, "book", card).is_file():
        tags |= {
            "og:image": urljoin(app.config.html_baseurl, card),
            "og:image:width": str(SIZE[0]),
            "og:image:height": str(SIZE[1]),
            "og:image:alt": f"{title}. {question(doctree)}".strip(),
            "twitter:card": "summary_large_image",
        }
    lines = []
    for name, content in tags.items():
        kind = "property" if name.startswith("og:") else "name"
        lines.append(f'<meta {kind}="{name}" content="{escape(content)}" />')
    if is_notebook(app, pagename):
        lines.append(f'<link rel="alternate" type="text/markdown" href="{slug}.md" />')
        app.mla_descriptions[pagename] = about
    context["metatags"] = context.get("metatags", "") + "\n    ".join(["", *lines])


def is_notebook(app, docname):
    return Path(app.env.doc2path(docname)).suffix == ".ipynb"


def number_exercises(text, chapter):
    """A chapter with its exercises, and their solutions, under the page's numbers."""
    names = {}

    def exercise(found):
        title, label = found.groups()
        names[label] = f"Exercise {chapter}.{len(names) + 1} ({title})"
        return f"**{names[label]}**"

    text = EXERCISE.sub(exercise, text)
    text = SOLUTION.sub(lambda found: f"**Solution to {names[found[1]]}**", text)
    return EXERCISE_END.sub("", text)


def in_words(notebook, chapter):
    """A notebook as Markdown: each output is its text, each figure its description."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            parts.append(f"```text\n{''.join(text).rstrip()}\n```")
    text = "\n\n".join(part.strip("\n") for part in parts) + "\n"
    return number_exercises(text, chapter)


def root_page(text):
    """The landing page as it stands one folder higher."""

    def move(found):
        path = posixpath.normpath(posixpath.join("book", found[2]))
        return f'{found[1]}="{"index.html" if path == "book/index.html" else path}"'

    text = text.replace('data-content_root="../"', 'data-content_root="./"', 1)
    return ADDRESS.sub(move, text)


def not_found(folder, title, root):
    """The page that a server shows in place of one that is not there."""
    font = base64.b64encode((folder / FONT).read_bytes()).decode()
    return NOT_FOUND.format(title=title, root=root, font=font)


def contents(app):
    """The chapters in reading order, as (document, title)."""
    titles = app.env.titles
    order = sorted(app.env.toc_secnumbers, key=lambda doc: number_of(app, doc))
    return [(doc, titles[doc].astext()) for doc in order if is_notebook(app, doc)]


def number_of(app, docname):
    return app.env.toc_secnumbers[docname].get("", (0,))


def publish(app, exception):
    """Write what belongs to the site and to no page."""
    if exception or app.builder.format != "html":
        return
    folder, site = Path(app.outdir), app.config.html_baseurl
    landing = (folder / f"{app.config.root_doc}.html").read_text(encoding="utf-8")
    overview = [f"# {app.config.html_title}", f"> {ABOUT}", "## Chapters"]
    for doc, title in contents(app):
        notebook = json.loads(Path(app.env.doc2path(doc)).read_text(encoding="utf-8"))
        words = in_words(notebook, number_of(app, doc)[0])
        (folder / f"{doc}.md").write_text(words, encoding="utf-8")
        about = app.mla_descriptions.get(doc, "")
        overview.append(f"- [{title}]({site}{doc}.md): {about}")
    docs = sorted(app.env.found_docs)
    urls = "\n".join(f"<url><loc>{published(app, doc)}</loc></url>" for doc in docs)
    files = {
        "index.html": root_page(landing),
        "404.html": not_found(folder, app.config.html_title, site),
        "llms.txt": "\n\n".join(overview[:3]) + "\n\n" + "\n".join(overview[3:]) + "\n",
        "robots.txt": f"User-agent: *\nAllow: /\nSitemap: {site}sitemap.xml\n",
        "sitemap.xml": '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{urls}\n'
        "</urlset>\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def setup(app):
    app.mla_descriptions = {}
    app.connect("html-page-context", describe_page, priority=900)
    app.connect("build-finished", publish, priority=950)  # once pages are finished
    return {"version": "1", "parallel_read_safe": True}
