"""A number and its unit stay on one line."""

import re

from docutils import nodes

SPACE = re.compile(
    r"(?<=\d) (?=(?:[kMGT]?B(?:/s)?|[GTP]?FLOPs?(?:/s)?|[nµm]?s|min|GHz|%)(?![\w/]))"
)
VERBATIM = (nodes.literal, nodes.literal_block, nodes.raw, nodes.math, nodes.math_block)


def join(text):
    """A text whose units cannot be cut off from their numbers."""
    return SPACE.sub("\N{NO-BREAK SPACE}", text)


def join_units(app, doctree):
    for text in list(doctree.findall(nodes.Text)):
        if not isinstance(text.parent, VERBATIM):
            joined = join(text.astext())
            if joined != text.astext():
                text.parent.replace(text, nodes.Text(joined))


def setup(app):
    app.connect("doctree-read", join_units)
    return {"version": "1", "parallel_read_safe": True}
