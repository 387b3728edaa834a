"""A number and its unit stay on one line, and a number with a hyphen in it."""

import re

from docutils import nodes

SPACE = re.compile(
    r"(?<=\d) (?=(?:[kMGT]?B(?:/s)?|[GTP]?FLOPs?(?:/s)?|[nµm]?s|min|GHz|%)(?![\w/]))"
)
TABLE = re.compile(r'<table class="mla-table">.*?</table>', re.DOTALL)
CELL = re.compile(r"(?<=>)[^<>]+(?=<)")
# As 1e-12 and GQA-8; what is longer may break at its hyphen.
HYPHENED = re.compile(r"(?<!\S)(?=\S*\d)(?=\S*\w-\w)\S{3,9}(?!\S)")
UNBROKEN = r'<span class="mla-unbroken">\g<0></span>'
VERBATIM = (nodes.literal, nodes.literal_block, nodes.raw, nodes.math, nodes.math_block)


def join(text):
    """A text whose units cannot be cut off from their numbers."""
    return SPACE.sub("\N{NO-BREAK SPACE}", text)


def keep_whole(page):
    """A page on which no short number of a table breaks at its hyphen."""

    def cells(table):
        return CELL.sub(lambda cell: HYPHENED.sub(UNBROKEN, cell[0]), table[0])

    return TABLE.sub(cells, page)


def join_units(app, doctree):
    for text in list(doctree.findall(nodes.Text)):
        if not isinstance(text.parent, VERBATIM):
            joined = join(text.astext())
            if joined != text.astext():
                text.parent.replace(text, nodes.Text(joined))


def setup(app):
    app.connect("doctree-read", join_units)
    return {"version": "1", "parallel_read_safe": True}
