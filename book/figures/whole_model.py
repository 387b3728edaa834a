"""A decoder: the residual stream, and the two parts of a layer that add to it."""

from svg import (
    arrow,
    band,
    centred,
    dot,
    drawing,
    line,
    outlined,
    solid,
    text,
)

WIDTH, HEIGHT = 400, 418
STREAM, NORM, PART, BACK = 60, 112, 192, 236  # x: stream, boxes, and the way back
BOX, FRAME = 26, (70, 226)  # height of a box; top and height of the layer
ATTENTION, MIXTURE = 92, 200  # y of the two branches
ROWS, EXPERTS, TAKEN = 4, 8, (2, 5)


def box(x, y, width, words):
    """A box whose middle line is y."""
    return [
        outlined(x, y - BOX / 2, width, BOX, "ink"),
        centred(x + width / 2, y + 4.5, words),
    ]


def plus(y):
    """Where a part adds to the stream."""
    circle = (
        f'<circle cx="{STREAM}" cy="{y:g}" r="8.5" fill="none" stroke-width="1.4"'
        f' style="stroke:currentColor"/>'
    )
    level, upright = (
        [(STREAM - 4, y), (STREAM + 4, y)],
        [(STREAM, y - 4), (STREAM, y + 4)],
    )
    return [
        circle,
        line(level, width=1.4, opacity=1),
        line(upright, width=1.4, opacity=1),
    ]


def branch(y, back):
    """From the stream through a norm to a part, and from there back into the sum."""
    return [
        dot(STREAM, y),
        arrow([(STREAM, y), (NORM - 2, y)]),
        *box(NORM, y, 54, "norm"),
        arrow([(NORM + 55, y), (PART - 2, y)]),
        arrow([(BACK, y + BOX / 2 + 1), (BACK, back), (STREAM + 10, back)]),
        *plus(back),
    ]


def cache(x, y):
    """Rows of the latent and the rotary key beside it."""
    rows = []
    for i in range(ROWS):
        top = y + 8 * i
        rows += [solid(x, top, 62, 6, "key"), solid(x + 63, top, 9, 6, "rope")]
    return [band(x - 6, y - 6, 84, 8 * ROWS + 10), *rows]


def experts(y):
    """The network that every token takes, and those of which it takes some."""
    boxes, top = [solid(PART, y - 8, 34, 16, "ink")], y + BOX / 2 + 1
    for i in range(EXPERTS):
        x, is_taken = PART + 46 + 19 * i, i in TAKEN
        draw = solid if is_taken else outlined
        boxes.append(draw(x, y - 8, 15, 16, "ink" if is_taken else "neutral"))
    return [*boxes, line([(PART, top), (PART + 42 + 19 * EXPERTS, top)])]


def whole_model():
    """The drawing."""
    top, height = FRAME
    back_1, back_2, end = ATTENTION + 56, MIXTURE + 62, top + height
    frame = (
        f'<rect x="18" y="{top}" width="381" height="{height}" rx="6" fill="none"'
        f' stroke-width="1.1" stroke-opacity="0.7" stroke-dasharray="4 4"'
        f' style="stroke:currentColor"/>'
    )
    elements = [
        centred(STREAM, 12, "a token"),
        arrow([(STREAM, 17), (STREAM, 25)]),
        *box(12, 40, 96, "embedding"),
        frame,
        text(250, 56, "a layer, {L} times"),
        line([(STREAM, 54), (STREAM, back_1 - 9)], width=2.4, opacity=1),
        *branch(ATTENTION, back_1),
        *box(PART, ATTENTION, 88, "attention"),
        line([(PART + 89, ATTENTION), (PART + 107, ATTENTION)]),
        *cache(PART + 114, ATTENTION - 13),
        text(PART + 116, ATTENTION + 41, "its cache"),
        line([(STREAM, back_1 + 9), (STREAM, back_2 - 9)], width=2.4, opacity=1),
        *branch(MIXTURE, back_2),
        *experts(MIXTURE),
        text(PART, MIXTURE - 20, "shared"),
        text(PART + 58, MIXTURE - 20, "a few of many experts"),
        line([(STREAM, back_2 + 9), (STREAM, end + 14)], width=2.4, opacity=1),
        *box(STREAM - 27, end + 27, 54, "norm"),
        arrow([(STREAM, end + 41), (STREAM, end + 50)]),
        *box(STREAM - 27, end + 65, 54, "head"),
        arrow([(STREAM, end + 79), (STREAM, end + 89)]),
        text(12, end + 104, "a number for each token of the vocabulary"),
    ]
    return drawing(WIDTH, HEIGHT, label(), elements)


def label():
    """The drawing in words."""
    return (
        "From top to bottom: a token, the embedding, a frame for a layer that is "
        "repeated L times, a norm, the head, and a number for each token of the "
        "vocabulary. The residual stream runs straight through the layer. Two branches "
        "leave it, each through a norm, and are added to it again: one through "
        "attention, which has a cache, one through a shared expert and a few of many."
    )
