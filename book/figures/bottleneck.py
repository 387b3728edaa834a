"""Keys and values of all heads, made of the hidden state or through a latent.

The widths are those of the small model in the chapter on compression: 8 heads of 16,
and a latent of a quarter of what they cache.
"""

from svg import (
    KINDS,
    arrow,
    at,
    band,
    centred,
    drawing,
    legend,
    line,
    outlined,
    solid,
    text,
)

HIDDEN, HEADS, HEAD, LATENT = 128, 8, 16, 64
COLUMN, GUTTER, LEGEND = 188, 24, 66
BAR, MATRIX, MIDDLE = 14, 24, COLUMN / 2
STATE, DOWN, CACHE, UP, MADE = 62, 104, 152, 206, 254


def width(numbers):
    return numbers * 0.62


def heads(y, box):
    """Keys of all heads, then their values."""
    wide, x = width(HEAD), MIDDLE - HEADS * width(HEAD) - 4
    boxes = []
    for kind in ("key", "value"):
        boxes += [box(x + i * wide, y, wide - 1.2, BAR, kind) for i in range(HEADS)]
        x += HEADS * wide + 8
    return boxes


def matrix(centre, y, name):
    box = outlined(centre - 25, y, 50, MATRIX, "ink")
    return [box, centred(centre, y + 17, name)]


def common(title, what):
    """The title, and the hidden state on its way down."""
    half = width(HIDDEN) / 2
    return [
        text(0, 11, f"*{title}*", font_size=14),
        text(0, 30, what),
        centred(MIDDLE, STATE - 7, f"{{h}}: {HIDDEN}"),
        outlined(MIDDLE - half, STATE, 2 * half, BAR, "neutral"),
    ]


def direct():
    all_of_them = 2 * HEADS * HEAD
    keys, values = MIDDLE - 43, MIDDLE + 43
    return [
        *common("No bottleneck", "caches keys and values"),
        line([(MIDDLE, STATE + BAR + 1), (MIDDLE, STATE + BAR + 9)]),
        line([(keys, STATE + BAR + 9), (values, STATE + BAR + 9)]),
        *[
            arrow([(x, y), (x, y + step)])
            for x in (keys, values)
            for y, step in ((STATE + BAR + 9, 17), (DOWN + MATRIX + 1, 21))
        ],
        *matrix(keys, DOWN, "{W^K}"),
        *matrix(values, DOWN, "{W^V}"),
        band(0, CACHE - 6, COLUMN, BAR + 12),
        *heads(CACHE, solid),
        centred(MIDDLE, CACHE + BAR + 24, f"*{all_of_them}* numbers cached"),
    ]


def latent():
    half = width(LATENT) / 2
    keys, values = MIDDLE - 43, MIDDLE + 43
    fork = CACHE + BAR + 14
    return [
        *common("A bottleneck", "caches the latent"),
        arrow([(MIDDLE, STATE + BAR + 1), (MIDDLE, DOWN - 2)]),
        *matrix(MIDDLE, DOWN, "{W^DKV}"),
        text(MIDDLE + 33, DOWN + 17, "down"),
        arrow([(MIDDLE, DOWN + MATRIX + 1), (MIDDLE, CACHE - 3)]),
        band(MIDDLE - half - 6, CACHE - 6, 2 * half + 12, BAR + 12),
        solid(MIDDLE - half, CACHE, 2 * half, BAR, "key"),
        text(MIDDLE + half + 13, CACHE + 11, f"{{c}}: *{LATENT}*"),
        line([(MIDDLE, CACHE + BAR + 1), (MIDDLE, fork)]),
        line([(keys, fork), (values, fork)]),
        *[
            arrow([(x, y), (x, end)])
            for x in (keys, values)
            for y, end in ((fork, UP - 2), (UP + MATRIX + 1, MADE - 2))
        ],
        *matrix(keys, UP, "{W^UK}"),
        *matrix(values, UP, "{W^UV}"),
        centred(MIDDLE, UP + 17, "up"),
        *heads(MADE, outlined),
        centred(MIDDLE, MADE + BAR + 18, "made for the step"),
    ]


def bottleneck():
    """The drawing."""
    columns = [at(0, LEGEND, direct()), at(COLUMN + GUTTER, LEGEND, latent())]
    words = legend(query=None, rope=None)
    shifted = [at(-KINDS["key"][0], 0, words[:4]), *words[4:]]
    return drawing(2 * COLUMN + GUTTER, 362, label(), [*shifted, *columns])


def label():
    """The drawing in words."""
    return (
        f"Two columns. Without a bottleneck, W_K and W_V turn a hidden state of "
        f"{HIDDEN} numbers into the keys and values of {HEADS} heads, "
        f"{2 * HEADS * HEAD} numbers, which are cached. With one, W_DKV turns it into "
        f"a latent of {LATENT} numbers, which alone is cached, and W_UK and W_UV make "
        f"the keys and values of that when they are needed."
    )
