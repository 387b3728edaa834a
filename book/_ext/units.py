"""A number and its unit stay on one line, and a name or a number with a hyphen in it.

What a cell or a picture writes has the signs of the prose around it: its apostrophes,
quotation marks and minus signs.
"""

import re

from docutils import nodes

UNIT = r"[kKMGT]?i?B(?:/s)?|[GTP]?FLOPs?(?:/s)?|[nµm]?s|min|GHz"
GAP = r"[ \n]"
NAMED = ("Table", "Figure", "[Hh]ead", "[Gg]roup", "RTX", "below")
SPACE = re.compile(
    rf"(?<=\d){GAP}(?=(?:{UNIT}|GPUs?)(?![\w/]))"
    rf"|(?<=\d){GAP}(?=× [A-Z\d])|(?<=\d ×){GAP}(?=[A-Z\d])"
    rf"|(?<=\d){GAP}(?=of \d)|(?<=\d of){GAP}(?=\d)|"
    + "|".join(rf"(?<=\b{name}){GAP}(?=\d)" for name in NAMED)
)
WRITTEN = re.compile(
    r'<table\b.*?</table>|<div class="mla-ruling".*?</div>'
    r'|<figure class="mla-figure".*?</figure>',
    re.DOTALL,
)
CELL = re.compile(
    r"<(annotation|code|script|style)\b.*?</\1>|(?<=>)[^<>]+(?=<)", re.DOTALL
)
# As 1e-12 and GQA-8, and as DeepSeek-V3; what is longer may break at its hyphen.
HYPHENED = re.compile(
    r"(?<!\S)(?=\S*\d)(?=\S*\w-\w)\S{3,9}(?!\S)"
    r"|(?<![\w.+-])(?=[\w.]*-)(?=[\w.-]*\d)[A-Z]\w*(?:[.-]\w+)+"
)
LONG_NAME = re.compile(r"\w{14,}")
SIGNS = (
    (re.compile(r"(?<=\w)(?:'|&#x27;|&#39;)|(?:'|&#x27;|&#39;)(?=\s|$)"), "’"),
    (re.compile(r'(?<![\w.,;:!?)])(?:"|&quot;)(?=\S)'), "“"),
    (re.compile(r'"|&quot;'), "”"),
    (re.compile(r"(?<![\w.)])-(?=\d)"), "\N{MINUS SIGN}"),
    (re.compile(r"(?<=[A-Z]) - (?=[A-Z])"), "\xa0\N{MINUS SIGN}\xa0"),
)
NOTHING = re.compile(r"(?!)")
UNBROKEN = r'<span class="mla-unbroken">\g<0></span>'
VERBATIM = (nodes.literal, nodes.literal_block, nodes.raw, nodes.math, nodes.math_block)


def join(text):
    """A text whose units cannot be cut off from their numbers."""
    return SPACE.sub("\N{NO-BREAK SPACE}", text)


def with_signs(text):
    """A text with the signs that prose gets: ’ “ ” and a true minus."""
    for pattern, sign in SIGNS:
        text = pattern.sub(sign, text)
    return text


def break_at_words(name):
    return name[0].replace("_", "_<wbr/>")


def keep_whole(page):
    """A page whose tables, rulings and figures have the prose's signs.

    A table keeps numbers and names whole: their units, and a short one's hyphen. What
    is code may break after an underscore.
    """

    def cells(part):
        whole = HYPHENED if "mla-table" in part[0] else NOTHING

        def cell(found):
            if found[1] == "code":
                return LONG_NAME.sub(break_at_words, found[0])
            if found[1]:
                return found[0]
            return whole.sub(UNBROKEN, with_signs(join(found[0])))

        return CELL.sub(cell, part[0])

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
