"""The one style of figure of the book's notebooks.

Figures are SVG without a background. Their text takes the colour of the page around them, so that one picture is
legible in light and in dark mode, and each kind of tensor has one colour through the whole book. A page may set that
colour for its own background; those here hold where a picture stands alone, on white and on black.
"""

import hashlib
import html
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Told apart by readers who do not see red, green or blue: tests/book/test_colours.py.
QUERY = "#2e6ed6"
KEY = "#c4581c"  # content keys, and the latent that replaces them
ROPE = "#12a05a"
VALUE = "#d05ab4"
NEUTRAL = "#868380"
THEMED = {
    colour: f"var(--mla-{kind}, {colour})"
    for kind, colour in {"query": QUERY, "key": KEY, "rope": ROPE, "value": VALUE, "neutral": NEUTRAL}.items()
}
_INK = "#010203"  # stands for the page's own text colour until the SVG is written

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mla",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.formatter.min_exponent": 8,  # powers, whose letters are small, only where digits would not fit
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": NEUTRAL,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "figure.constrained_layout.use": True,
}


def figure(width: float = 4.3, height: float = 3.1, **options: Any) -> Any:
    """``matplotlib.pyplot.subplots`` in the book's style; returns the figure and its axes.

    Args:
        width: in inches; up to 4.4 the letters keep nine pixels on a phone.
        height: in inches.
        options: passed on, such as ``ncols``.
    """
    import matplotlib.pyplot as plt
    from cycler import cycler

    plt.rcParams.update(_STYLE)
    plt.rcParams["axes.prop_cycle"] = cycler(color=[KEY, QUERY, VALUE, ROPE, NEUTRAL])
    return plt.subplots(figsize=(width, height), **options)


@dataclass(frozen=True)
class Picture:
    """An SVG that a notebook displays, and in words what it shows."""

    svg: str
    alt: str

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def _repr_svg_(self) -> str:
        return self.svg


def show(fig: "Figure", alt: str) -> Picture:
    """The figure as a self-contained SVG, the same bytes on every run.

    Args:
        fig: from ``figure``; closed afterwards.
        alt: what the picture shows, for readers who do not see it.
    """
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(fig)
    return Picture(accessible_svg(buffer.getvalue(), alt), alt)


def accessible_svg(svg: str, alt: str) -> str:
    """Matplotlib's SVG made fit for a page: alternative text, the page's ink and font, no needless identifiers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<(metadata|defs)>\s*(<style|<rdf).*?</\1>", "", svg, flags=re.DOTALL)
    svg = svg.replace(_INK, "currentColor")
    svg = re.sub("|".join(THEMED), lambda colour: THEMED[colour[0]], svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--pst-font-family-base, system-ui, sans-serif)", svg)
    svg = _renamed(svg, hashlib.sha256(alt.encode()).hexdigest()[:8])
    svg = re.sub(r' (?:d|x|y|width|height|points)="[^"]*"|(?:translate|rotate)\([^)]*\)', _rounded, svg)
    label = html.escape(alt)
    # The grey is for viewers that show the SVG on its own; a page's style sheet overrides it.
    attributes = f'class="mla-figure" role="img" aria-label="{label}" color="#7a7a7a" stroke-linejoin="round"'
    return svg.replace("<svg", f"<svg {attributes}", 1)


def _renamed(svg: str, prefix: str) -> str:
    """Identifiers numbered as they appear, those without a reference dropped; matplotlib's are hashes of floats."""
    referenced = set(re.findall(r'(?:href="|url\()#([\w-]+)', svg))
    names = [name for name in dict.fromkeys(re.findall(r' id="([^"]+)"', svg)) if name in referenced]
    numbered = {name: f"f{prefix}-{number}" for number, name in enumerate(names)}
    svg = re.sub(r' id="([^"]+)"', lambda match: f' id="{numbered[match[1]]}"' if match[1] in numbered else "", svg)
    return re.sub(r'(href="|url\()#([\w-]+)', lambda match: f"{match[1]}#{numbered[match[2]]}", svg)


def _rounded(attribute: re.Match[str]) -> str:
    """Lengths in hundredths of a point: none is fine enough to show how a processor rounds."""

    def hundredths(number: re.Match[str]) -> str:
        return f"{round(float(number[0]), 2) + 0:.2f}".rstrip("0").rstrip(".")

    return re.sub(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", hundredths, attribute[0])
