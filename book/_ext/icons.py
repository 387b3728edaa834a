"""The icons of the pages, drawn in the page itself in place of an icon font."""

import re

# On a field of 24 units: strokes, but for GitHub's mark, from Octicons (MIT).
PATHS = {
    "angle-left": "M15 5l-7 7 7 7",
    "angle-right": "M9 5l7 7-7 7",
    "arrow-up": "M12 20V4M5 11l7-7 7 7",
    "bars": "M3 6h18M3 12h18M3 18h18",
    "chevron-down": "M5 9l7 7 7-7",
    "circle-half-stroke": "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18M14 6v12M17 7.5v9",
    "download": "M12 3v12M6 10l6 6 6-6M4 20h16",
    "expand": "M3 9V3h6M15 3h6v6M21 15v6h-6M9 21H3v-6",
    "file": "M6 2h8l5 5v15H6zM14 2v5h5",
    "file-pdf": "M7 8V2h10v6M7 17H3V8h18v9h-4M7 14h10v8H7z",
    "github": "M12 .3a12 12 0 0 0-3.8 23.4c.6.1.8-.3.8-.6v-2c-3.3.7-4-1.6-4-1.6"
    "-.6-1.4-1.4-1.8-1.4-1.8-1-.7.1-.7.1-.7 1.2 0 1.9 1.2 1.9 1.2"
    " 1 1.8 2.8 1.3 3.5 1 0-.8.4-1.3.7-1.6-2.7-.3-5.5-1.3-5.5-6"
    " 0-1.2.5-2.3 1.3-3.1-.2-.4-.6-1.6 0-3.2 0 0 1-.3 3.4 1.2"
    "a11.5 11.5 0 0 1 6 0c2.3-1.5 3.3-1.2 3.3-1.2.6 1.6.2 2.8 0 3.2"
    ".9.8 1.3 1.9 1.3 3.2 0 4.6-2.8 5.6-5.5 5.9.5.4.9 1 .9 2.2v3.3"
    "c0 .3.1.7.8.6A12 12 0 0 0 12 .3",
    "lightbulb": "M9 17h6M10 21h4M9 17c0-3-4-4-4-8.5a7 7 0 0 1 14 0c0 4.5-4 5.5-4 8.5",
    "list": "M8 6h13M8 12h13M8 18h13M3 6h1M3 12h1M3 18h1",
    "magnifying-glass": "M10.5 3a7.5 7.5 0 1 0 0 15 7.5 7.5 0 0 0 0-15M16 16l5 5",
    "moon": "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z",
    "rocket": "M9 15l-3-3c1-5 5-9 14-9 0 9-4 13-9 14zM9 15l-5 5M8 9H4l-1 3 3 0"
    "M15 16v4l-3 1v-3M14.5 8.5v1h1v-1z",
    "sun": "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2"
    "M5 5l1.5 1.5M17.5 17.5L19 19M19 5l-1.5 1.5M6.5 17.5L5 19",
}
ELEMENT = re.compile(r'<(i|span) class="([^"]*\bfa-[^"]*)"([^>]*)></\1>')


def draw(classes, attributes=""):
    """An icon as SVG. The classes, and what scripts read, stay those of the theme."""
    (name,) = {c.removeprefix("fa-") for c in classes.split()} & PATHS.keys()
    mode = re.search(r' data-mode="\w+"', attributes)
    style = f'class="mla-icon {" ".join(classes.split())}"{mode[0] if mode else ""}'
    path = f'<path d="{PATHS[name]}"/>'
    return f'<svg {style} viewBox="0 0 24 24" aria-hidden="true">{path}</svg>'


def draw_icons(page):
    """A page with its icons drawn. An icon that is not known here is an error."""
    return ELEMENT.sub(lambda found: draw(found[2], found[3]), page)
