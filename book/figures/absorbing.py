"""One decode step of one head, alive: latents are unpacked, then the matrices move.

The drawing stands still where no script runs, and then shows the last step with both
counts. ``absorbing.js`` and ``absorbing.css`` go into the SVG, which the page inlines.
"""

import json
from html import escape
from pathlib import Path

from data_flow import KEY, MEAN_LATENT, MLA, SHORT, VALUE, WIDE
from data_flow import LATENT_ROW as LATENT
from svg import arrow, band, centred, dot, drawing, line, outlined, solid, text

from mla_edu.config import MLAConfig
from mla_edu.cost import attention_macs_per_score, expansion_macs_per_token

HERE = Path(__file__).parent
SIZE = 360, 376
NEW, CACHED = 88, 262  # the middle of each lane
ROWS, PITCH, BAR, MATRIX = 6, 6, 8, 24
QUERY, KEYS, UP_K, CACHE, UP_V, VALUES = 24, 19, 68, 118, 220, 254
Q_UP_K, WIDER, MEET, SCORES, WEIGHTS, READ = 58, 94, 110, 142, 168, 194
MEAN, MEAN_UP_V, OUT, COUNTS = 205, 226, 286, 326
LAST = 9
EXPANDED, ABSORBED = range(5), range(5, 10)  # steps


def stages(config: MLAConfig) -> list[dict[str, object]]:
    """What each step after the first adds: multiply-adds of one head, and its words.

    ``each`` stands for work that every cached token costs, else it is done once.
    """
    one = config.model_copy(update={"num_attention_heads": 1})
    keys = one.model_copy(update={"v_head_dim": 0})
    up_k, up_v = (
        expansion_macs_per_token(keys),
        expansion_macs_per_token(one) - expansion_macs_per_token(keys),
    )
    score = attention_macs_per_score(keys, "expanded")
    mean = attention_macs_per_score(one, "expanded") - score
    latent = attention_macs_per_score(one, "absorbed") - one.elements_per_token
    told = [
        ("expanded", up_k, True, "Each latent goes through Wᵁᴷ and becomes a key"),
        ("expanded", score, True, "The query meets each key: a score"),
        ("expanded", up_v, True, "Each latent goes through Wᵁⱽ and becomes a value"),
        ("expanded", mean, True, "Each value is added, with its weight, to the output"),
        ("absorbed", 0, True, "Both matrices move to the new token"),
        ("absorbed", up_k, False, "The one query goes through Wᵁᴷ, transposed"),
        ("absorbed", one.elements_per_token, True, "It meets the cache as it lies"),
        ("absorbed", latent, True, "Each latent is added, with its weight, to a mean"),
        ("absorbed", up_v, False, "The one mean goes through Wᵁⱽ"),
    ]
    names = ("mode", "macs", "each", "words")
    return [dict(zip(names, stage, strict=True)) for stage in told]


def counts(config: MLAConfig) -> dict[str, int]:
    """Multiply-adds per cached token and head, by mode."""
    return {
        mode: sum(
            stage["macs"]
            for stage in stages(config)
            if stage["mode"] == mode and stage["each"]
        )
        for mode in ("expanded", "absorbed")
    }


def at_steps(steps, *elements, **named):
    """Elements that are there at some steps; ``named`` are data attributes."""
    shown = " ".join(map(str, steps))
    off = "" if LAST in steps else ' class="off"'
    more = "".join(f' data-{name}="{value}"' for name, value in named.items())
    return f'<g data-at="{shown}"{off}{more}>{"".join(elements)}</g>'


def row(centre, y, parts, box=outlined, height=BAR):
    x, boxes = centre - parts[0][0] / 2, []
    for wide, kind in parts:
        boxes.append(box(x, y, wide, height, kind))
        x += wide
    return "".join(boxes)


def tokens(name, y, parts, steps, box=outlined):
    """A row for each cached token, numbered for the script."""
    return [
        at_steps(steps, row(CACHED, y + PITCH * i, parts, box, PITCH - 1), **{name: i})
        for i in range(ROWS)
    ]


def matrix(name, words, unpacking, absorbing):
    """A projection, and where it stood; the style sheet knows both places."""
    between = (unpacking + absorbing + MATRIX) / 2
    return [
        f'<g data-matrix="{name}">',
        outlined(-23, 0, 46, MATRIX, "ink"),
        at_steps(EXPANDED, centred(0, 17, f"{{{words}}}")),
        at_steps(ABSORBED, centred(0, 17, f"{{{words}{'⊤' if name == 'uk' else ''}}}")),
        "</g>",
        at_steps(
            ABSORBED,
            f'<rect x="{CACHED - 23}" y="{unpacking}" width="46" height="{MATRIX}"'
            ' fill="none" stroke="currentColor" stroke-opacity="0.5"'
            ' stroke-dasharray="3 3"/>',
            arrow([(CACHED - 26, between), (NEW + 88, between)]),
        ),
        at_steps(
            EXPANDED,
            text(CACHED - 30, unpacking + 17, "{T} *times*", text_anchor="end"),
        ),
        at_steps(ABSORBED, text(NEW + 44, absorbing + 17, "*once*")),
    ]


def lanes():
    """What stands in both modes."""
    cells = [
        at_steps(
            (2, 3, 4, 7, 8, 9),
            solid(NEW - 18 + 6 * i + 1, SCORES + 2, 4, BAR - 4, "neutral"),
            solid(NEW - 18 + 6 * i + 1, WEIGHTS + 2, 4, BAR - 4, "neutral"),
            cell=i,
        )
        for i in range(ROWS)
    ]
    return [
        centred(NEW, 12, "*one new token*"),
        centred(CACHED, 12, "{T} *cached tokens*"),
        row(NEW, QUERY, SHORT),
        text(NEW - 16, QUERY + 9, "query", text_anchor="end"),
        band(CACHED - 40, CACHE, 86, 70),
        *tokens("latent", CACHE + 8, LATENT, range(10), solid),
        centred(CACHED + 3, CACHE + 62, "cache"),
        outlined(NEW - 18, SCORES, 36, BAR, "neutral"),
        text(NEW - 26, SCORES + 9, "scores", text_anchor="end"),
        arrow([(NEW, SCORES + BAR + 1), (NEW, WEIGHTS - 2)]),
        text(NEW + 24, WEIGHTS + 2, "softmax"),
        outlined(NEW - 18, WEIGHTS, 36, BAR, "neutral"),
        text(NEW - 26, WEIGHTS + 9, "weights", text_anchor="end"),
        *cells,
        at_steps((4, 9), row(NEW, OUT, VALUE)),
        text(NEW - 16, OUT + 9, "output", text_anchor="end"),
    ]


def unpacked():
    """Ways of the expanded step, and what it unpacks."""
    key, value = KEYS + 18, VALUES + 18
    rotary = CACHED + 36
    return [
        at_steps(
            EXPANDED,
            arrow([(NEW, QUERY + BAR + 1), (NEW, SCORES - 2)]),
            line([(CACHED - 10, key), (NEW, key)]),
            dot(NEW, key),
            arrow([(CACHED, UP_K - 2), (CACHED, KEYS + 38)]),
            arrow([(CACHED, CACHE - 1), (CACHED, UP_K + MATRIX + 2)]),
            arrow([(rotary, CACHE - 1), (rotary, key), (CACHED + 18, key)], "rope"),
            text(rotary + 6, key + 4, "keys"),
            arrow([(CACHED, CACHE + 71), (CACHED, UP_V - 2)]),
            arrow([(CACHED, UP_V + MATRIX + 1), (CACHED, VALUES - 2)]),
            text(CACHED + 16, value + 4, "values"),
            line([(CACHED - 10, value), (NEW, value)]),
            dot(NEW, value),
            arrow([(NEW, WEIGHTS + BAR + 1), (NEW, OUT - 2)]),
        ),
        *tokens("key", KEYS, KEY, range(1, 5)),
        *tokens("value", VALUES, VALUE, (3, 4)),
    ]


def as_it_lies():
    """Ways of the absorbed step."""
    short, wide = NEW + 12, NEW + 36
    return [
        at_steps(
            ABSORBED,
            arrow([(NEW, QUERY + BAR + 1), (NEW, Q_UP_K - 2)]),
            arrow([(NEW, Q_UP_K + MATRIX + 1), (NEW, WIDER - 2)]),
            arrow(
                [
                    (short, QUERY + BAR + 1),
                    (short, QUERY + BAR + 9),
                    (wide, QUERY + BAR + 9),
                    (wide, WIDER - 2),
                ],
                "rope",
            ),
            arrow([(NEW, WIDER + BAR + 1), (NEW, SCORES - 2)]),
            line([(CACHED, CACHE - 1), (CACHED, MEET), (NEW, MEET)]),
            dot(NEW, MEET),
            arrow([(NEW, WEIGHTS + BAR + 1), (NEW, MEAN - 2)]),
            line([(CACHED, CACHE + 71), (CACHED, READ), (NEW, READ)]),
            dot(NEW, READ),
            arrow([(NEW, MEAN + BAR + 1), (NEW, MEAN_UP_V - 2)]),
            arrow([(NEW, MEAN_UP_V + MATRIX + 1), (NEW, OUT - 2)]),
        ),
        at_steps(range(6, 10), row(NEW, WIDER, WIDE)),
        at_steps(
            range(8, 10),
            row(NEW, MEAN, MEAN_LATENT),
            text(NEW - 38, MEAN + 9, "mean", text_anchor="end"),
        ),
    ]


def counters(config):
    """Both counts; the script lets them run."""
    shown = []
    for x, (mode, macs) in zip((0, 188), counts(config).items(), strict=True):
        number = text(
            x, COUNTS + 25, f"{macs:,}", font_size=21, font_weight=600, data_count=mode
        )
        name = text(x, COUNTS, mode.capitalize())
        shown.append(f'<g data-counter="{mode}">{name}{number}</g>')
    return [
        line([(0, COUNTS - 18), (SIZE[0], COUNTS - 18)], width=1, opacity=0.4),
        *shown,
        text(0, SIZE[1] - 5, "multiply-adds per cached token and head"),
    ]


def absorbing(config=MLA):
    """The drawing, with the numbers of a layer; its boxes are as wide as V3's."""
    style = (HERE / "absorbing.css").read_text(encoding="utf-8")
    places = "".join(
        f'[data-figure="absorbing"]{mode} [data-matrix="{name}"]'
        f" {{ transform: translate({x}px, {y}px); }}\n"
        for mode, name, x, y in [
            ("", "uk", CACHED, UP_K),
            ("", "uv", CACHED, UP_V),
            ('[data-mode="absorbed"]', "uk", NEW, Q_UP_K),
            ('[data-mode="absorbed"]', "uv", NEW, MEAN_UP_V),
        ]
    )
    script = (HERE / "absorbing.js").read_text(encoding="utf-8")
    told = escape(json.dumps(stages(config), separators=(",", ":")))
    elements = [
        f"<style>\n{style}{places}</style>",
        *lanes(),
        *unpacked(),
        *as_it_lies(),
        *matrix("uk", "W_i^UK", UP_K, Q_UP_K),
        *matrix("uv", "W_i^UV", UP_V, MEAN_UP_V),
        *counters(config),
        f"<script><![CDATA[\n{script}]]></script>",
    ]
    heights = escape(json.dumps({"uk": UP_K + 12, "uv": UP_V + 12}))
    more = ' data-figure="absorbing" data-mode="absorbed"'
    more += f' data-stages="{told}" data-places="{heights}"'
    return drawing(*SIZE, label(config), elements, attributes=more)


def label(config):
    """The drawing in words."""
    both = counts(config)
    return (
        "One decode step of one head, a new token over T cached tokens. Expanded, the "
        "latent of every cached token would pass W_UK, to become a key, and W_UV, to "
        f"become a value: {both['expanded']:,} multiply-adds per cached token. "
        "Absorbed, both matrices have moved to the new token: W_UK, transposed, is "
        "applied once to the query, which reads the cache as it lies, and W_UV once to "
        f"the mean latent: {both['absorbed']:,} multiply-adds per cached token."
    )
