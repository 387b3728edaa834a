"""Code cells that show what changed since an earlier cell.

A cell with the metadata ``"changes": "<id of an earlier cell>"`` holds a whole program,
as a reader runs it. Its page shows the difference: added lines are marked, removed ones
struck through, runs of unchanged lines folded. A control shows the whole cell, with its
copy button, in place of the difference. All of it works without JavaScript.
"""

import difflib
import json
import re
from html import escape
from pathlib import Path

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.errors import ExtensionError

CONTEXT = 2  # unchanged lines that stay in sight on either side of a change
FOLDED = 3  # fewer than these are not worth a fold


def name(source):
    """The function that a cell defines first."""
    found = re.search(r"^def (\w+)", source, re.MULTILINE)
    return found and found[1]


def runs(before, after):
    """The lines of two texts as a list of ("same", "removed" or "added", lines)."""
    old, new, found = before.splitlines(), after.splitlines(), []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            found.append(("same", new[c:d]))
        else:
            both = ("removed", old[a:b]), ("added", new[c:d])
            found += [run for run in both if run[1]]
    return found


def fold(found):
    """The same runs, with the inner lines of long unchanged ones "folded"."""
    parts = []
    for i, (kind, lines) in enumerate(found):
        first = CONTEXT if i else 0
        last = len(lines) - (CONTEXT if i + 1 < len(found) else 0)
        if kind != "same" or last - first < FOLDED:
            parts.append((kind, lines))
            continue
        pieces = ("same", lines[:first]), ("folded", lines[first:last])
        parts += [piece for piece in (*pieces, ("same", lines[last:])) if piece[1]]
    return parts


def struck(line):
    """A removed line: its indentation is not struck through."""
    code = line.lstrip()
    return f"{line[: len(line) - len(code)]}<s>{escape(code)}</s>"


def difference(before, after):
    """What changed, in HTML. That the function has another name alone is no change."""
    if name(before) and name(after):
        before = re.sub(rf"\b{name(before)}\b", name(after), before)
    lexer, formatter = PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)
    coloured = iter(highlight(after, lexer, formatter).splitlines())
    html = []
    for kind, lines in fold(runs(before, after)):
        element = {"removed": "del", "added": "ins"}.get(kind, "span")
        if kind == "removed":
            shown = [struck(line) for line in lines]
        else:
            shown = [next(coloured) for _ in lines]
        block = "".join(f"<{element}>{line}</{element}>" for line in shown)
        block = f"<pre>{block}</pre>"
        if kind == "folded":
            words = f"<summary>{len(lines)} lines unchanged</summary>"
            block = f"<details>{words}{block}</details>"
        html.append(block)
    return "".join(html)


def controls(earlier, html):
    """What stands before and after the whole cell: its fold, then the difference."""
    since = f"hat changed since {earlier}" if earlier else "hat changed"
    opening = (
        '<details class="mla-whole"><summary>'
        f'<span class="mla-shut">W{since}. <u>Show the whole cell</u></span>'
        f'<span class="mla-open">The whole cell. <u>Show w{since}</u></span></summary>'
    )
    closing = (
        '</details><section class="mla-changes highlight" tabindex="0"'
        f' aria-label="W{since}"><div>{html}</div></section>'
    )
    return opening, closing


def show_changes(app, doctree):
    """Put the difference beside each cell that names an earlier one."""
    cells = None
    for container in doctree.findall(nodes.container):
        earlier = container.get("cell_metadata", {}).get("changes")
        if earlier is None:
            continue
        if cells is None:
            path = Path(app.env.doc2path(app.env.docname))
            notebook = json.loads(path.read_text(encoding="utf-8"))
            cells = [
                (cell["id"], "".join(cell["source"])) for cell in notebook["cells"]
            ]
        before = dict(cells[: container["cell_index"]]).get(earlier)
        if before is None:
            place = f"{app.env.docname}, cell {container['cell_index']}"
            raise ExtensionError(f"{place}: no cell {earlier!r} comes before it")
        (code,) = [
            child
            for child in container
            if child.get("nb_element") == "cell_code_source"
        ]
        opening, closing = controls(name(before), difference(before, code.astext()))
        code.insert(0, nodes.raw("", opening, format="html"))
        code.append(nodes.raw("", closing, format="html"))


def setup(app):
    app.connect("doctree-read", show_changes)
    return {"version": "1", "parallel_read_safe": True}
