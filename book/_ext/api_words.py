"""Formulas and names in the prose of the API pages, plain text in the source.

``2 d_c + d_h^R`` is set as a formula, ``hidden_size / 2`` as code, ``tensor * data``
with a sign for times. A name that is too long for its line in a heading breaks after a
dot.
"""

import re

from docutils import nodes
from sphinx import addnodes

PAGES = "book/api/"
VERBATIM = (
    nodes.title,
    nodes.reference,
    nodes.FixedTextElement,
    nodes.literal,
    nodes.raw,
    nodes.math,
    nodes.math_block,
    addnodes.desc_signature,
    addnodes.pending_xref,
    addnodes.literal_strong,
    addnodes.literal_emphasis,
)

# The letters of the book's formulas, as ``d_h^R``, ``W_UK``, ``W^UK`` and ``q^T``
LETTER = (
    r"[dn]_[a-z]\b(?:\^[A-Z]\b|['’])?|W[_^][A-Z]+\b(?:\^T\b)?|[A-Zq]\^T\b|R_\{s-t\}"
)
PLAIN = r"\b[B-HJ-Zcdqs](?![\w’'.-])|\b\d+(?![\w.-])"
OPERATOR = r"\s+[-*/@]\s+|\s+\+=?\s+|\s+<?=\s+|/|\s+"
CLOSE = r"(?:\)(?:\^T\b)?)*"


def run(atom):
    """A pattern of terms with operators between them, in brackets or not."""
    return rf"\(*(?:{atom}){CLOSE}(?:(?:{OPERATOR})\(*(?:{atom}){CLOSE})*"


NAME = r"\b[A-Za-z]\w*(?:_\w+)+\b|\b\d+(?![\w.])"
FORMULA = re.compile(rf"(?<![\w.,]){run(LETTER + '|' + PLAIN)}")
POWER = r"\b\d+\*\*-?\d+"
CODE = re.compile(
    r"“(?:[\w.=-]*|[a-z][\w ]*)[“”]"  # a value
    r"|\[[^][]*_[^][]*\]"  # a shape
    r"|\bsqrt\([^()]*\)"
    r"|\b[a-z]\w*=[\w,-]*\w"  # an argument
    r"|\b(?:\w+/)*\w*_\w+\.(?:py|RULES)\b"
    rf"|{run(NAME)}"
)
SIGNS = (
    (r"(?<=[\w)]) [*x] (?=[\w(])", " × "),
    (r"(?<=[\w)]) - (?=[\w(])", " − "),
    (r" <= ", " ≤ "),
    (r"(?<!\w)-inf\b", "−inf"),
)
TEX = (
    (r"’", "'"),
    (r"\s+", " "),
    (r"W[_^]([A-Z]+)\^T", r"W^{\1\\,\\top}"),
    (r"W[_^]([A-Z]+)", r"W^{\1}"),
    (r"\^T\b", r"^\\top"),
    (r"(\d+)\*\*(-?\d+)", r"\1^{\2}"),
    (r"(?<=[\w}')]) (?=\d)", r" \\cdot "),
    (r"(?<=[a-zA-Z}')]) (?=[a-zA-Z(])", r"\\,"),
    (r" \* ", r" \\cdot "),
    (r" <= ", r" \\le "),
    (r" \+= ", r" \\mathrel{+}= "),
)

QUOTED = re.compile(
    "['\"]([A-Z][A-Za-z]+)['\"]"
)  # a class that is defined further down
NAMED = re.compile(
    r'<h[1-6]\b.*?</h[1-6]>|<nav id="pst-page-toc-nav".*?</nav>', re.DOTALL
)
LITERAL = re.compile(r'(?<=<span class="pre">)[^<]+')
LONGEST = 19  # letters of a name that always fit on a line
BETWEEN_WORDS = re.compile(r"(?<=\w_)(?=\w)|(?<=[a-z])(?=[A-Z])")


def balanced(text):
    """How much of a run begins and ends outside of all brackets, as (start, end)."""
    start, end = 0, len(text)
    while text[start:end].count("(") > text[start:end].count(")"):
        start = text.index("(", start) + 1
    while text[start:end].count("(") < text[start:end].count(")"):
        end = text.rindex(")", start, end)
    return start, end


def formulas(text):
    """The formulas of a text, as (start, end)."""
    for found in FORMULA.finditer(text):
        first, last = balanced(found[0])
        said = found[0][first:last]
        counts = re.search(r"[B-HJ-Zcdqs]", said) and re.search(r"[-+*/=]", said)
        if re.search(LETTER, said) or counts:
            yield found.start() + first, found.start() + last
    for found in re.finditer(POWER, text):
        yield found.span()


def codes(text):
    """The names of a text, and what is counted from them, as (start, end)."""
    for found in CODE.finditer(text):
        first, last = balanced(found[0])
        if re.search(r"[_“=]|sqrt", found[0][first:last]):
            yield found.start() + first, found.start() + last


def tex(formula):
    """A formula of the source in the letters of the book."""
    for pattern, instead in TEX:
        formula = re.sub(pattern, instead, formula)
    return formula


def signs(text):
    """Plain text with the signs of arithmetic."""
    for pattern, instead in SIGNS:
        text = re.sub(pattern, instead, text)
    return text


def parts(text):
    """A text as nodes: formulas, names, and the words between them."""
    found = [(*place, nodes.math) for place in formulas(text)]  # before a name like d_c
    found += [(*place, nodes.literal) for place in codes(text)]
    at, made = 0, []
    for start, end, kind in sorted(found, key=lambda part: part[0]):
        if start < at:
            continue
        made.append(nodes.Text(signs(text[at:start])))
        said = " ".join(text[start:end].split())
        said = tex(said) if kind is nodes.math else re.sub("[“”]", '"', said)
        made.append(kind(said, said))
        at = end
    made.append(nodes.Text(signs(text[at:])))
    return [part for part in made if part.astext()]


def breakable(page):
    """A page whose headings and contents break long names after a dot.

    A part that is long by itself may break between its words too.
    """

    def name(found):
        parts = re.split(r"(?<=[\w)]\.)(?=\w)", found[0])
        long = (len(part) > LONGEST for part in parts)
        parts = (
            BETWEEN_WORDS.sub("<wbr/>", part) if is_long else part
            for part, is_long in zip(parts, long, strict=True)
        )
        return "<wbr/>".join(parts)

    return NAMED.sub(lambda found: LITERAL.sub(name, found[0]), page)


def is_verbatim(node):
    """Whether a node stands in something that is to stay as it is."""
    while node is not None:
        if isinstance(node, VERBATIM):
            return True
        node = node.parent
    return False


def plain_types(signature):
    """Take off what only Python needs: what a class returns, quotes about a type."""
    if signature.parent["objtype"] == "class":
        for returns in list(signature.findall(addnodes.desc_returns)):
            signature.remove(returns)
    for quoted in list(signature.findall(addnodes.desc_sig_literal_string)):
        if name := QUOTED.fullmatch(quoted.astext()):
            quoted.parent.replace(quoted, nodes.Text(name[1]))


def set_words(app, doctree):
    """Set the signatures, formulas and names of an API page."""
    if not app.env.docname.startswith(PAGES):
        return
    for node in doctree.findall():
        node.document = doctree  # not the page of autoapi that it comes from
    for signature in doctree.findall(addnodes.desc_signature):
        plain_types(signature)
    for text in list(doctree.findall(nodes.Text)):
        if not is_verbatim(text.parent):
            made = parts(text.astext())
            if len(made) > 1 or (made and made[0] != text):
                text.parent.replace(text, made)


def setup(app):
    app.connect("doctree-read", set_words)
    return {"version": "1", "parallel_read_safe": True}
