"""The SVG elements of the book's drawings: boxes, lines and text with formulas.

The page supplies ink, font and tensor colours, in light and in dark mode. The values
here are for viewers that show a drawing on its own.
"""

import re
from html import escape

from mla_edu.book import KEY, NEUTRAL, QUERY, ROPE, VALUE

COLOURS = {
    "query": f"var(--mla-query,{QUERY})",
    "key": f"var(--mla-key,{KEY})",
    "value": f"var(--mla-value,{VALUE})",
    "rope": f"var(--mla-rope,{ROPE})",
    "neutral": f"var(--mla-neutral,{NEUTRAL})",
    "ink": "currentColor",
}
FONT, SCRIPT = 13, 10.2  # at 358 pixels, a phone's column, both stay above 9
SHOWN = 1.32  # pixels per unit where there is room
SCRIPT_WIDTH = {"h": 5.2, "i": 2.9, "c": 4.6, "t": 3.1}  # of a letter under another
MARKUP = re.compile(r"\{(?P<math>[^}]*)\}|\*(?P<bold>[^*]*)\*|[^{*]+")


def text(x, y, words, **attributes):
    """A text; underscores in attribute names stand for hyphens.

    ``{W_i^UK}`` is a letter with a subscript and a superscript, ``*576*`` is bold.
    """
    more = "".join(
        f' {name.replace("_", "-")}="{value:g}"'
        if isinstance(value, int | float)
        else f' {name.replace("_", "-")}="{value}"'
        for name, value in attributes.items()
    )
    pieces, shift = [], 0
    for match in MARKUP.finditer(words):
        if match["math"]:
            moved, shift = letter(match["math"], shift)
            pieces.append(moved)
        else:
            bold = ' font-weight="600"' if match["bold"] else ""
            pieces.append(span(match["bold"] or match[0], bold, shift))
            shift = 0
    return f'<text x="{x:g}" y="{y:g}"{more}>{"".join(pieces)}</text>'


def span(words, attributes, shift, back=0.0):
    """Words moved by ``shift`` up to the line again, and ``back`` to the left."""
    if shift:
        attributes += f' dy="{shift:g}"'
    if back:
        attributes += f' dx="{-back:g}"'
    words = escape(words, quote=False)
    return f"<tspan{attributes}>{words}</tspan>" if attributes else words


def letter(math, shift):
    """A letter with its scripts, and how far the next piece must move down."""
    base, below, above = re.fullmatch(r"(.)(?:_([\w,]+))?(?:\^(.+))?", math).groups()
    italic, small = ' font-style="italic"', f' font-size="{SCRIPT}"'
    pieces, moved = [span(base, italic, shift)], 0
    if below:
        pieces.append(span(below, italic + small, 3.5))
        moved = 3.5
    if above:
        back = SCRIPT_WIDTH[below] if below else 0
        pieces.append(span(above, italic + small, -5 - moved, back))
        moved = -5
    return "".join(pieces), -moved


def centred(x, y, words, **attributes):
    return text(x, y, words, text_anchor="middle", **attributes)


def solid(x, y, width, height, kind):
    """A box filled with the colour of its tensor: what is cached."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        f' style="fill:{COLOURS[kind]}"/>'
    )


def outlined(x, y, width, height, kind):
    """A box drawn in outline: what is computed for the step and dropped."""
    return (
        f'<rect x="{x + 0.7:g}" y="{y + 0.7:g}" width="{width - 1.4:g}"'
        f' height="{height - 1.4:g}" fill="none" stroke-width="1.4"'
        f' style="stroke:{COLOURS[kind]}"/>'
    )


def band(x, y, width, height):
    """The ground on which cached boxes stand."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"'
        f' fill="{NEUTRAL}" fill-opacity="0.14"/>'
    )


def line(points, kind="ink", width=1.1, opacity=0.7):
    """A line through points."""
    path = " L".join(f"{x:g} {y:g}" for x, y in points)
    return (
        f'<path d="M{path}" fill="none" stroke-width="{width:g}"'
        f' stroke-opacity="{opacity:g}" style="stroke:{COLOURS[kind]}"/>'
    )


def arrow(points, kind="ink"):
    """A line through points, with a head at the last of them."""
    (x0, y0), (x, y) = points[-2:]
    length = abs(x - x0) + abs(y - y0)  # the last piece is level or upright
    dx, dy = (x - x0) / length, (y - y0) / length
    neck = (x - 5 * dx, y - 5 * dy)
    head = [
        (x, y),
        (neck[0] + 3 * dy, neck[1] + 3 * dx),
        (neck[0] - 3 * dy, neck[1] - 3 * dx),
    ]
    path = " L".join(f"{a:g} {b:g}" for a, b in head)
    return line([*points[:-1], neck], kind) + (
        f'<path d="M{path} Z" fill-opacity="0.8" style="fill:{COLOURS[kind]}"/>'
    )


def dot(x, y):
    """Where two lines meet."""
    return f'<circle cx="{x:g}" cy="{y:g}" r="2.4"/>'


KINDS = {  # of tensors: what the legend calls them, and where they stand in it
    "query": (0, "queries"),
    "key": (82, "keys, latent"),
    "value": (190, "values"),
    "rope": (262, "rotary part"),
}


def legend(apart=0, **words):
    """What colours and outlines mean; the latter below, or ``apart`` to the right.

    Each of ``words`` replaces what a kind is called; None leaves the kind out.
    """
    elements = []
    for kind, (x, usual) in KINDS.items():
        if called := words.get(kind, usual):
            elements += [solid(x, 1, 12, 12, kind), text(x + 18, 11, called)]
    y = 1 if apart else 23
    return [
        *elements,
        outlined(apart, y, 12, 12, "neutral"),
        text(apart + 18, y + 10, "computed for the step"),
        band(apart + 185, y - 4, 22, 20),
        solid(apart + 190, y, 12, 12, "neutral"),
        text(apart + 213, y + 10, "cached for every token"),
    ]


def at(x, y, elements):
    """Elements moved to the right by x and down by y."""
    return "\n".join([f'<g transform="translate({x:g} {y:g})">', *elements, "</g>"])


def drawing(width, height, label, elements, font_size=FONT, attributes=""):
    """The whole SVG; ``label`` is its text alternative."""
    body = "\n".join(elements)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mla-figure" role="img"'
        f' aria-label="{escape(label)}"{attributes} color="#7a7a7a"'
        f' viewBox="0 0 {width:g} {height:g}"'
        f' width="{width * SHOWN:.0f}" height="{height * SHOWN:.0f}"'
        f' font-family="Georgia, serif" font-size="{font_size}" fill="currentColor">'
        f"\n{body}\n</svg>\n"
    )
