"""How long a chapter takes to read, on its card of the landing page."""

import json
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

WORDS, LINES = 200, 20  # a minute
STEP = 5  # minutes that an estimate is rounded to
SOLUTION = re.compile(r":::\{solution-start\}.*?:::\{solution-end\}\n:::", re.S)
FOLDED = "hide-input"


def minutes(notebook):
    """The minutes that a notebook's words and the code in its sight take.

    What is folded, a solution or a cell, is not counted.
    """
    parts, fence = [], "\0"
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif FOLDED not in cell["metadata"].get("tags", ()):
            parts.append(f"{fence}{source}{fence}")
    text = SOLUTION.sub("", "\n".join(parts))
    prose, code = text.split(fence)[::2], text.split(fence)[1::2]
    words = sum(len(part.split()) for part in prose)
    lines = sum(bool(line.strip()) for part in code for line in part.splitlines())
    return max(1, round((words / WORDS + lines / LINES) / STEP)) * STEP


def time_cards(app, doctree):
    """Say on each card how long its chapter takes."""
    env = app.env
    if env.docname != app.config.root_doc:
        return
    for paragraph in doctree.findall(nodes.paragraph):
        # A card is a link to a chapter, then its question in bold.
        first, *rest = paragraph.children
        bold = [child for child in rest[:2] if isinstance(child, nodes.strong)]
        if not bold or not isinstance(first, addnodes.pending_xref):
            continue
        path = Path(app.srcdir, f"{first['reftarget']}.ipynb")
        env.note_dependency(str(path))
        notebook = json.loads(path.read_text(encoding="utf-8"))
        span = f'<span class="mla-minutes">{minutes(notebook)}&nbsp;min</span>'
        paragraph += nodes.raw("", span, format="html")


def setup(app):
    app.connect("doctree-read", time_cards)
    return {"version": "1", "parallel_read_safe": True}
