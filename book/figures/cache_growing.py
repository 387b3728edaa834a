"""Three decode steps: one new row of weights each, and one new row in the cache."""

from svg import (
    arrow,
    at,
    band,
    centred,
    dot,
    drawing,
    legend,
    line,
    outlined,
    solid,
    text,
)

FIRST, STEPS, SEEN = 3, 3, 5  # position, from 0, of the first token; steps; the last
PANEL, GUTTER, LEGEND = 118, 15, 58
CELL = 14  # of the matrix of weights, and between the rows of the cache
MATRIX = 34  # top of the matrix
CACHE = MATRIX + (SEEN + 1) * CELL + 36
BOX, WIDTH = 9, 26  # height of a row, width of a query, key or value
KEYS, VALUES = 44, 80  # where keys and values stand
GROUND = (SEEN + 1) * CELL + 8


def step(position):
    """The token at ``position``: its row of weights, its query, the cache after it."""
    elements = [text(0, 11, f"*token {position + 1}*", font_size=14)]
    left = (PANEL - (SEEN + 1) * CELL) / 2
    for t in range(position + 1):
        for s in range(t + 1):
            x, y = left + s * CELL, MATRIX + t * CELL
            if t == position:
                elements.append(outlined(x + 1, y + 1, CELL - 2, CELL - 2, "query"))
            else:
                elements.append(dot(x + CELL / 2, y + CELL / 2))
    elements += [
        centred(PANEL / 2, MATRIX - 8, "{a_t,s}"),
        band(KEYS - 8, CACHE, PANEL - KEYS + 8, GROUND),
        centred(KEYS + WIDTH / 2, CACHE - 7, "{k_s}"),
        centred(VALUES + WIDTH / 2, CACHE - 7, "{v_s}"),
    ]
    new = CACHE + 4 + position * CELL
    for s in range(position + 1):
        y = CACHE + 6 + s * CELL
        reach = [(WIDTH + 1, new + CELL / 2), (KEYS - 2, y + BOX / 2)]
        elements += [
            line(reach, "query"),
            solid(KEYS, y, WIDTH, BOX, "key"),
            solid(VALUES, y, WIDTH, BOX, "value"),
        ]
    foot = CACHE + GROUND
    elements += [
        outlined(0, new + 2, WIDTH, BOX, "query"),
        centred(WIDTH / 2, CACHE - 7, "{q_t}"),
        arrow([(PANEL + 12, new + CELL / 2), (PANEL + 1, new + CELL / 2)]),
    ]
    return elements, foot


def cache_growing():
    """Three steps side by side."""
    elements = legend(key="keys", rope=None)
    for i in range(STEPS):
        panel, foot = step(FIRST + i)
        elements.append(at(i * (PANEL + GUTTER), LEGEND, panel))
    width = STEPS * (PANEL + GUTTER)
    notes = [
        "Arrows: the row that the step appends. Dots: weights of",
        "earlier steps, which no step computes again.",
    ]
    top = LEGEND + foot + 26
    elements += [text(0, top + 18 * i, words) for i, words in enumerate(notes)]
    label = (
        f"Three decode steps, for tokens {FIRST + 1} to {SEEN + 1}. In each, "
        "the new token's query meets its own key and all cached ones, which gives one "
        "new row of the triangular matrix of weights; earlier rows are not computed "
        "again. The cache grows by one row: the new token's key and value. The query "
        "is not kept."
    )
    return drawing(width, top + 24, label, elements)
