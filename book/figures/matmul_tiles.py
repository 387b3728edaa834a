"""A tile of C = A B, and the strips of A and B along which its program walks."""

from svg import arrow, band, centred, drawing, outlined, solid, text

SIDE = 27  # of a tile
DEEP, HIGH, WIDE = 4, 3, 5  # tiles along K, M and N
ROW, COLUMN, STEP = 1, 3, 2  # the program's tile, and where along K it is
GAP = 44
LEFT, TOP = 30, 26
A_X, A_Y = LEFT, TOP + DEEP * SIDE + GAP
B_X, B_Y = LEFT + DEEP * SIDE + GAP, TOP
C_X, C_Y = B_X, A_Y
RIGHT = C_X + WIDE * SIDE


def grid(x, y, rows, columns):
    """A matrix, cut into tiles."""
    tops = [y + SIDE * i + 0.5 for i in range(rows)]
    lefts = [x + SIDE * i + 0.5 for i in range(columns)]
    side = SIDE - 1
    return [outlined(a, b, side, side, "neutral") for b in tops for a in lefts]


def strip(x, y, along, kind, is_row):
    """The tiles that a program passes, the one at hand filled."""
    drawn = []
    for step in range(along):
        left, top = (x + SIDE * step, y) if is_row else (x, y + SIDE * step)
        box = solid if step == STEP else outlined
        drawn.append(box(left + 3, top + 3, SIDE - 6, SIDE - 6, kind))
    return drawn


def matmul_tiles():
    """The drawing."""
    a_row, b_column = A_Y + ROW * SIDE, B_X + COLUMN * SIDE
    tile = (C_X + COLUMN * SIDE, C_Y + ROW * SIDE)
    middle = (tile[0] + SIDE / 2, tile[1] + SIDE / 2)
    return drawing(
        RIGHT + 34,
        A_Y + HIGH * SIDE + 60,
        label(),
        [
            text(B_X - 16, B_Y + DEEP * SIDE / 2 + 4, "*B*", text_anchor="end"),
            centred(B_X + WIDE * SIDE / 2, B_Y - 9, "{N}"),
            text(RIGHT + 8, B_Y + DEEP * SIDE / 2 + 4, "{K}"),
            *grid(B_X, B_Y, DEEP, WIDE),
            *strip(b_column, B_Y, DEEP, "key", is_row=False),
            centred(A_X + DEEP * SIDE / 2, A_Y - 9, "*A*"),
            text(A_X - 8, A_Y + HIGH * SIDE / 2 + 4, "{M}", text_anchor="end"),
            centred(A_X + DEEP * SIDE / 2, A_Y + HIGH * SIDE + 17, "{K}"),
            *grid(A_X, A_Y, HIGH, DEEP),
            *strip(A_X, a_row, DEEP, "query", is_row=True),
            band(tile[0] + 1, tile[1] + 1, SIDE - 2, SIDE - 2),
            *grid(C_X, C_Y, HIGH, WIDE),
            outlined(tile[0] + 3, tile[1] + 3, SIDE - 6, SIDE - 6, "ink"),
            text(RIGHT + 8, C_Y + HIGH * SIDE / 2 + 4, "*C*"),
            arrow([(A_X + DEEP * SIDE + 6, middle[1]), (C_X - 6, middle[1])]),
            arrow([(middle[0], B_Y + DEEP * SIDE + 6), (middle[0], C_Y - 6)]),
            text(
                A_X,
                A_Y + HIGH * SIDE + 42,
                f"program ({ROW}, {COLUMN}), step {STEP}: a tile of *A*, a tile of *B*",
            ),
        ],
    )


def label():
    """The drawing in words."""
    return (
        f"The matrix A, {HIGH} by {DEEP} tiles, stands to the left of C, {HIGH} by "
        f"{WIDE} tiles, and B, {DEEP} by {WIDE} tiles, above it. Program ({ROW}, "
        f"{COLUMN}) makes one tile of C. It walks along row {ROW} of A's tiles and "
        f"down column {COLUMN} of B's, {DEEP} steps; the tiles of step {STEP} are "
        "filled."
    )
