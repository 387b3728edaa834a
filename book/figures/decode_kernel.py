"""The decode kernel's pictures: grid, tile, block table, rows and mask, merge.

Sizes are those of the chapter's own problem, 19 heads and 83 tokens, unless a picture
says what it leaves out.
"""

import math

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

from mla_edu.kernels.problems import NO_PAGE, random_problem

HEADS, TOKENS, PAGE, BLOCK_H, SPLITS, S_Q = 19, 83, 32, 16, 3, 3
LATENT, ROPE = 32, 16  # widths
WIDTH = 400


def spread(total, parts):
    """(first, count) of each part of ``total``, as the fourth version cuts."""
    each = math.ceil(total / parts)
    return [(i, min(each, total - i)) for i in range(0, total, each)]


def program_grid():
    """Blocks of heads against splits of the tokens: one program for each pair."""
    left, top, high = 112, 62, 66
    scale = (WIDTH - left) / TOKENS
    splits, blocks = spread(TOKENS, SPLITS), math.ceil(HEADS / BLOCK_H)
    elements = [
        text(0, 11, f"cache: {TOKENS} tokens, {len(splits)} splits"),
        text(0, top - 8, f"{HEADS} heads"),
    ]
    for column, (first, count) in enumerate(splits):
        x, across = left + first * scale, count * scale - 6
        elements += [
            solid(x, 20, across, 8, "key"),
            solid(x, 28, across, 4, "rope"),
            centred(x + across / 2, 48, f"{count} tokens"),
        ]
        for row in range(blocks):
            y = top + row * (high + 10)
            elements += [
                outlined(x, y, across, high, "ink"),
                centred(x + across / 2, y + 30, "program"),
                centred(x + across / 2, y + 48, f"({row}, {column})"),
            ]
    for row in range(blocks):
        y = top + row * (high + 10)
        used = min(BLOCK_H, HEADS - row * BLOCK_H)
        for i in range(BLOCK_H):
            if i < used:
                elements.append(solid(64, y + 1 + 4 * i, 40, 3, "query"))
            else:
                elements.append(
                    line(
                        [(64, y + 2.5 + 4 * i), (104, y + 2.5 + 4 * i)],
                        "query",
                        0.7,
                        0.5,
                    )
                )
        words = [f"{used} rows"] + (
            [f"{BLOCK_H - used} idle"] if used < BLOCK_H else []
        )
        elements += [text(0, y + 30 + 18 * i, each) for i, each in enumerate(words)]
    y = top + blocks * (high + 10) + 16
    words = f"then the merge: one program for each of the {HEADS} heads"
    elements.append(text(0, y, words))
    label = (
        f"A grid of programs. Across, the cache of {TOKENS} tokens is cut into "
        f"{len(splits)} splits of {', '.join(str(count) for _, count in splits)} "
        f"tokens. Down, {HEADS} heads fill {blocks} blocks of {BLOCK_H} rows, the "
        f"last of which has {blocks * BLOCK_H - HEADS} idle rows. Each pair of a "
        f"block and a split is one program: {blocks * len(splits)} in all. A merge "
        "follows, with one program for each head."
    )
    return drawing(WIDTH, y + 6, label, elements)


def row_of(x, y, high, unit, kinds, box):
    """A latent part and a rotary part beside each other."""
    latent, rope = kinds
    parts = [box(x, y, LATENT * unit, high, latent)]
    if rope:
        parts.append(box(x + LATENT * unit, y, ROPE * unit, high, rope))
    return parts


def tile_twice():
    """One tile of rows: keys for the scores, then values for the sum."""
    unit, high, tile = 2.6, 26, 84
    width, x, lane = LATENT * unit, 0, 60
    left, top = 262, 92  # of the tile
    queries, scores, weights, out = 22, 100, 158, 240
    square = 64  # tokens of the tile, across
    middle = lane - square / 2
    tile_x, whole = left + width / 2, left + (LATENT + ROPE) * unit / 2
    return drawing(
        WIDTH,
        282,
        "One tile of the cache, used twice. The tile holds the latent and the rotary "
        "part of some tokens and is loaded once. As keys, both parts are multiplied "
        "with a block of queries, which gives scores. The softmax makes weights of "
        "them. As values, the latent part of the same tile is multiplied with the "
        "weights, and the product is added to the accumulator.",
        [
            text(x, 12, "queries, heads × 48"),
            *row_of(x, queries, high, unit, ("query", "rope"), outlined),
            arrow([(lane, queries + high + 2), (lane, scores - 3)]),
            outlined(middle, scores, square, high, "neutral"),
            text(middle + square + 8, scores + 17, "scores"),
            arrow([(lane, scores + high + 2), (lane, weights - 3)]),
            text(lane + 8, scores + high + 21, "softmax"),
            outlined(middle, weights, square, high, "neutral"),
            text(middle + square + 8, weights + 17, "weights"),
            arrow([(lane, weights + high + 2), (lane, out - 3)]),
            *row_of(lane - width / 2, out, high, unit, ("value", None), outlined),
            text(lane + width / 2 + 8, out + 17, "accumulator, heads × 32"),
            band(left - 9, top - 30, WIDTH - left + 9, tile + 58),
            centred(whole, top - 12, "a tile, loaded once"),
            *row_of(left, top, tile, unit, ("key", "rope"), solid),
            centred(
                left + (LATENT + ROPE) * unit / 2, top + tile + 18, "tokens × (32 + 16)"
            ),
            line([(left - 9, 72), (lane, 72)]),
            dot(lane, 72),
            text(lane + 40, 66, "as keys, 32 + 16"),
            line([(tile_x, top + tile + 29), (tile_x, 218), (lane, 218)]),
            dot(lane, 218),
            text(lane + 40, 212, "as values, 32"),
        ],
    )


def block_table():
    """Where the pages of one sequence lie in the pool."""
    widths = {"kv_lora_rank": LATENT, "qk_rope_head_dim": ROPE, "page_size": PAGE}
    problem = random_problem([TOKENS], num_heads=HEADS, dtype="fp32", **widths)
    table, num_pages = problem.block_table[0].tolist(), len(problem.kv_cache)
    owned = [page for page in table if page != NO_PAGE]
    pool, bar, high, pitch, top = 232, 168, 14, 30, 44
    entry, first = 116, 44
    elements = [
        text(0, 12, "tokens"),
        centred(entry + 22, 12, "block table"),
        text(pool, 12, f"pool: {num_pages} pages of {PAGE} rows"),
    ]
    for page in range(num_pages):
        y = top + page * pitch
        elements += [
            outlined(pool, y, bar, high, "neutral"),
            text(pool - 15, y + 11.5, str(page)),
        ]
    for i, page in enumerate(table):
        y = first + i * pitch
        elements.append(outlined(entry, y - 3, 44, 20, "ink"))
        if page == NO_PAGE:
            elements.append(centred(entry + 22, y + 11.5, "?"))
            continue
        count = min(PAGE, TOKENS - i * PAGE)
        target = top + page * pitch
        elements += [
            text(0, y + 11.5, f"{i * PAGE} to {i * PAGE + count - 1}"),
            arrow([(70, y + 7), (entry - 2, y + 7)]),
            centred(entry + 22, y + 11.5, str(page)),
            line([(entry + 45, y + 7), (pool - 34, target + 7)]),
            arrow([(pool - 34, target + 7), (pool - 20, target + 7)]),
            solid(
                pool + 1.4, target + 1.4, (bar - 2.8) * count / PAGE, high - 2.8, "key"
            ),
        ]
    bottom = top + max(num_pages, len(table)) * pitch
    elements += [
        text(0, bottom + 8, "Token {s} is row {s} % 32 of page table[{s} // 32]."),
        text(0, bottom + 26, "Outlined rows hold NaN. ? is a number that is no page."),
    ]
    label = (
        f"Left, the block table of one sequence of {TOKENS} tokens: its entries name "
        f"the pages {', '.join(map(str, owned))}; the entries behind them hold a "
        f"number that is no page. Right, the pool of {num_pages} pages of {PAGE} "
        f"rows. The first two of those pages are full, the last holds {TOKENS % PAGE} "
        "rows; all other rows of the pool are NaN."
    )
    return drawing(WIDTH, bottom + 30, label, elements)


def rows_and_mask():
    """Rows of a tile as (token, head) pairs, and which keys each may see."""
    heads, keys, cell, high, top, left = 3, 13, 19, 13, 40, 150
    elements = [
        text(0, 30, "row: token, head"),
        text(left, 12, "keys: cached before"),
        text(left + (keys - S_Q) * cell - 2, 30, "new"),
        text(left, 30, "…"),
    ]
    for row in range(heads * S_Q):
        token, head = divmod(row, heads)
        y = top + row * (high + 4) + 6 * token
        kind = f"row {row}: {token}, {head}"
        elements += [
            text(0, y + 11, kind),
            solid(98, y + 3, 40, 7, "query"),
        ]
        last = keys - S_Q + token
        for key in range(keys):
            x = left + key * cell + (4 if key >= keys - S_Q else 0)
            box = solid if key <= last else outlined
            elements.append(box(x, y, cell - 4, high, "neutral"))
    bottom = top + heads * S_Q * (high + 4) + 6 * S_Q
    elements += [
        solid(0, bottom + 8, 14, 12, "neutral"),
        text(20, bottom + 18.5, "seen"),
        outlined(70, bottom + 8, 14, 12, "neutral"),
        text(90, bottom + 18.5, "masked"),
        text(158, bottom + 18.5, f"drawn: {heads} of {HEADS} heads"),
    ]
    label = (
        f"Nine rows of a tile: row r is head r modulo {heads} of new token r divided "
        f"by {heads}. Each of the {S_Q} heads of the first new token sees all keys "
        "that were cached before and its own; those of the second see one more; "
        "those of the third see all. The masked keys form a staircase at the lower "
        "end of the sequence."
    )
    return drawing(WIDTH, bottom + 24, label, elements)


def merge_of_two():
    """Two partial results, weighted by two to the power of their log-sum-exps."""
    sums = [3, 1]  # the log-sum-exps, in base 2
    largest = max(sums)
    weights = [2.0 ** (each - largest) for each in sums]
    merged = largest + math.log2(sum(weights))
    bar, high, first, pitch = 92, 20, 46, 52  # of a partial result
    elements = [
        text(0, 12, "partial result"),
        text(150, 12, "lse"),
        text(206, 12, "weight"),
    ]
    for i, (each, weight) in enumerate(zip(sums, weights, strict=True)):
        y = first + i * pitch
        elements += [
            text(0, y - 7, f"split {i}"),
            outlined(0, y, bar, high, "value"),
            outlined(140, y, 36, high, "neutral"),
            centred(158, y + 15, str(each)),
            arrow([(178, y + 10), (204, y + 10)]),
            text(210, y + 15, "2"),
            text(217.5, y + 9, f"{each}\u2009−\u2009{largest}", font_size=10.8),
            text(250, y + 15, f"= {weight:g}"),
        ]
    y = first + 2 * pitch
    elements += [
        text(0, y - 7, "an empty split"),
        line([(0, y + 10), (bar, y + 10)], "value", 0.8, 0.6),
        outlined(140, y, 36, high, "neutral"),
        centred(158, y + 15, "−∞"),
        arrow([(178, y + 10), (204, y + 10)]),
        text(210, y + 15, "0; no output is loaded"),
    ]
    y = first + 3 * pitch + 14
    parts = " + ".join(f"{weight:g} · split {i}" for i, weight in enumerate(weights))
    elements += [
        line([(0, y - 24), (WIDTH, y - 24)], "ink", 0.8, 0.5),
        text(0, y - 7, "merged"),
        outlined(0, y, bar, high, "value"),
        outlined(140, y, 36, high, "neutral"),
        centred(158, y + 15, f"{merged:.2f}"),
        text(190, y + 15, f"= {largest} + log {sum(weights):g}, base 2"),
        text(0, y + 42, f"= ({parts}) / {sum(weights):g}"),
    ]
    label = (
        f"The merge. Split 0 has a log-sum-exp of {sums[0]} in base 2 and weighs "
        f"{weights[0]:g}; split 1 has {sums[1]} and weighs {weights[1]:g}, two to the "
        "power of its distance from the larger one. An empty split has minus "
        "infinity, weighs 0, and its output is not loaded. The merged output is the "
        f"weighted mean of the two, the merged log-sum-exp {merged:.2f}."
    )
    return drawing(WIDTH, y + 48, label, elements)
