"""A number and its unit stay on one line, and a number with a hyphen in it."""

import re

from docutils import nodes

UNIT = r"[kKMGT]?i?B(?:/s)?|[GTP]?FLOPs?(?:/s)?|[nµm]?s|min|GHz|%"
SPACE = re.compile(
    rf"(?<=\d) (?=(?:{UNIT})(?![\w/]))|(?<=\d) (?=× [A-Z\d])|(?<=\d ×) (?=[A-Z\d])"
)
WRITTEN = re.compile(r'<table\b.*?</table>|<div class="mla-ruling".*?</div>', re.DOTALL)
CELL = re.compile(r"(?<=>)[^<>]+(?=<)")
# As 1e-12 and GQA-8; what is longer may break at its hyphen.
HYPHENED = re.compile(r"(?<!\S)(?=\S*\d)(?=\S*\w-\w)\S{3,9}(?!\S)")
NOTHING = re.compile(r"(?!)")
UNBROKEN = r'<span class="mla-unbroken">\g<0></span>'
VERBATIM = (nodes.literal, nodes.literal_block, nodes.raw, nodes.math, nodes.math_block)


def join(text):
    """A text whose units cannot be cut off from their numbers."""
    return SPACE.sub("\N{NO-BREAK SPACE}", text)


def keep_whole(page):
    """A page whose tables keep numbers whole: their units, and a short one's hyphen."""

    def cells(table):
        whole = HYPHENED if "mla-table" in table[0] else NOTHING
        return CELL.sub(lambda cell: whole.sub(UNBROKEN, join(cell[0])), table[0])

    return WRITTEN.sub(cells, page)


def join_units(app, doctree):
    for text in list(doctree.findall(nodes.Text)):
        if not isinstance(text.parent, VERBATIM):
            joined = join(text.astext())
            if joined != text.astext():
                text.parent.replace(text, nodes.Text(joined))


def setup(app):
    app.connect("doctree-read", join_units)
    return {"version": "1", "parallel_read_safe": True}
