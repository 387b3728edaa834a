"""One decode step of MLA, expanded and absorbed: where W_UK and W_UV stand.

Each column has two lanes, the new token's on the left and the cached tokens' on the
right. Both columns hold the same boxes; the two matrices change lanes.
"""

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

from mla_edu.cost import attention_macs_per_score, expansion_macs_per_token
from mla_edu.registry import get_model

MLA = get_model("deepseek-v3").config
COLUMN, GUTTER, LEGEND, HEIGHT = 188, 24, 66, 576
NEW, CACHED = 36, 142  # the middle of each lane: of what is read of the latent
ROWS, PITCH, BAR = 6, 6, 8  # tokens drawn, how far apart; height of a single vector
TALL = ROWS * PITCH
BAND, CACHE = 70, 216  # height and top of the cache
QUERY, KEYS, UP_K, LONG, MEET = 68, 74, 130, 168, 194  # down to the scores
READ, MEAN, UP_V, VALUES, OUT = 308, 326, 348, 396, 430  # and on to the output
SCORES, WEIGHTS, MATRIX = 224, 270, 24


def width(numbers):
    return numbers / 8


def parts(*named):
    return [(width(getattr(MLA, name)), kind) for name, kind in named]


LATENT_ROW = parts(("kv_lora_rank", "key"), ("qk_rope_head_dim", "rope"))
KEY = parts(("qk_nope_head_dim", "key"), ("qk_rope_head_dim", "rope"))
SHORT = parts(("qk_nope_head_dim", "query"), ("qk_rope_head_dim", "rope"))
WIDE = parts(("kv_lora_rank", "query"), ("qk_rope_head_dim", "rope"))
VALUE = parts(("v_head_dim", "value"))
MEAN_LATENT = parts(("kv_lora_rank", "key"))


def row(centre, y, parts, box=outlined, height=BAR):
    """Boxes side by side, the first of them centred."""
    x, boxes = centre - parts[0][0] / 2, []
    for wide, kind in parts:
        boxes.append(box(x, y, wide, height, kind))
        x += wide
    return boxes


def tokens(y, parts, box=outlined):
    """A row for each cached token."""
    tops = [y + PITCH * i for i in range(ROWS)]
    return [part for top in tops for part in row(CACHED, top, parts, box, PITCH - 1)]


def matrix(centre, y, name, pile=1):
    """A projection; one that is done for every token is drawn as a pile."""
    boxes = [outlined(centre - 23, y, 46, MATRIX, "ink")]
    for step in range(3, 3 * pile, 3):
        left, right, top = centre - 23 + step, centre + 22 + step, y - step + 1
        corner = [(left, top), (right, top), (right, top + MATRIX - 1)]
        boxes.append(line(corner, "ink", 1.4, 1))
    return [*boxes, centred(centre, y + 17, name)]


def common(title, what, macs):
    """What both columns hold, at the same places."""
    return [
        text(0, 11, f"*{title}*", font_size=14),
        text(0, 30, what),
        centred(NEW, QUERY - 9, f"{{q_i}}: 1 × {MLA.qk_head_dim}"),
        *row(NEW, QUERY, SHORT),
        band(CACHED - 40, CACHE, 86, BAND),
        *tokens(CACHE + 10, LATENT_ROW, solid),
        centred(CACHED + 3, CACHE + 61, "cache"),
        outlined(NEW - TALL / 2, SCORES, TALL, BAR, "neutral"),
        text(NEW + 24, SCORES + 9, "1 × {T}"),
        arrow([(NEW, SCORES + 11), (NEW, WEIGHTS - 3)]),
        text(NEW + 7, (SCORES + WEIGHTS) / 2 + 9, "softmax"),
        outlined(NEW - TALL / 2, WEIGHTS, TALL, BAR, "neutral"),
        *row(NEW, OUT, VALUE),
        centred(NEW, OUT + BAR + 17, f"{{o_i}}: 1 × {MLA.v_head_dim}"),
        text(0, OUT + BAR + 48, f"*{macs:,}* multiply-adds"),
        text(0, OUT + BAR + 66, "per cached token and head"),
    ]


def expanded():
    heads = MLA.num_attention_heads
    attend = attention_macs_per_score(MLA, "expanded")
    unpacked = f"{{T}} × {MLA.kv_lora_rank}"
    key, value = KEYS + TALL / 2, VALUES + TALL / 2
    key_left, value_left = CACHED - KEY[0][0] / 2, CACHED - VALUE[0][0] / 2
    rotary = CACHED + LATENT_ROW[0][0] / 2 + LATENT_ROW[1][0] / 2
    return [
        *common(
            "Expanded",
            "unpacks all {T} tokens",
            (expansion_macs_per_token(MLA) + attend) // heads,
        ),
        arrow([(NEW, QUERY + BAR + 1), (NEW, SCORES - 2)]),
        line([(key_left - 2, key), (NEW, key)]),
        dot(NEW, key),
        centred(CACHED + 6, QUERY - 9, f"{{K_i}}: {{T}} × {MLA.qk_head_dim}"),
        *tokens(KEYS, KEY),
        arrow([(CACHED, UP_K - 7), (CACHED, KEYS + TALL + 1)]),
        *matrix(CACHED, UP_K, "{W_i^UK}", pile=3),
        text(CACHED - 30, UP_K + 17, "{T} *times*", text_anchor="end"),
        arrow([(CACHED, CACHE - 1), (CACHED, UP_K + MATRIX + 2)]),
        text(CACHED - 6, CACHE - 20, unpacked, text_anchor="end"),
        arrow(
            [(rotary, CACHE - 1), (rotary, key), (CACHED + 8 + KEY[1][0] + 2, key)],
            "rope",
        ),
        arrow([(CACHED, CACHE + BAND + 1), (CACHED, UP_V - 8)]),
        text(CACHED - 6, CACHE + BAND + 27, unpacked, text_anchor="end"),
        *matrix(CACHED, UP_V, "{W_i^UV}", pile=3),
        text(CACHED - 30, UP_V + 17, "{T} *times*", text_anchor="end"),
        arrow([(CACHED, UP_V + MATRIX + 1), (CACHED, VALUES - 2)]),
        *tokens(VALUES, VALUE),
        centred(CACHED, OUT + BAR + 17, f"{{V_i}}: {{T}} × {MLA.v_head_dim}"),
        line([(value_left - 2, value), (NEW, value)]),
        dot(NEW, value),
        arrow([(NEW, WEIGHTS + BAR + 2), (NEW, OUT - 2)]),
    ]


def absorbed():
    heads = MLA.num_attention_heads
    rotary = [NEW + p[0][0] / 2 + p[1][0] / 2 for p in (SHORT, WIDE)]
    turn = QUERY + BAR + 18
    return [
        *common(
            "Absorbed",
            "unpacks none",
            attention_macs_per_score(MLA, "absorbed") // heads,
        ),
        arrow([(NEW, QUERY + BAR + 1), (NEW, UP_K - 2)]),
        *matrix(NEW, UP_K, "{W_i^UK⊤}"),
        text(rotary[1] + 10, UP_K + 17, "*once*"),
        arrow([(NEW, UP_K + MATRIX + 1), (NEW, LONG - 2)]),
        arrow(
            [
                (rotary[0], QUERY + BAR + 1),
                (rotary[0], turn),
                (rotary[1], turn),
                (rotary[1], LONG - 2),
            ],
            "rope",
        ),
        *row(NEW, LONG, WIDE),
        text(rotary[1] + 10, LONG + 9, f"1 × {MLA.elements_per_token}"),
        arrow([(NEW, LONG + BAR + 1), (NEW, SCORES - 2)]),
        line([(CACHED, CACHE - 1), (CACHED, MEET), (NEW, MEET)]),
        dot(NEW, MEET),
        text(
            CACHED - 6,
            MEET + 15,
            f"{{T}} × {MLA.elements_per_token}",
            text_anchor="end",
        ),
        arrow([(NEW, WEIGHTS + BAR + 2), (NEW, MEAN - 2)]),
        line([(CACHED, CACHE + BAND + 1), (CACHED, READ), (NEW, READ)]),
        dot(NEW, READ),
        text(CACHED - 6, READ - 5, f"{{T}} × {MLA.kv_lora_rank}", text_anchor="end"),
        *row(NEW, MEAN, MEAN_LATENT),
        text(rotary[1] + 2, MEAN + 9, f"1 × {MLA.kv_lora_rank}"),
        arrow([(NEW, MEAN + BAR + 1), (NEW, UP_V - 2)]),
        *matrix(NEW, UP_V, "{W_i^UV}"),
        text(rotary[1] + 10, UP_V + 17, "*once*"),
        arrow([(NEW, UP_V + MATRIX + 1), (NEW, OUT - 2)]),
    ]


def data_flow():
    """The drawing."""
    columns = [at(0, LEGEND, expanded()), at(COLUMN + GUTTER, LEGEND, absorbed())]
    return drawing(2 * COLUMN + GUTTER, HEIGHT, label(), [*legend(), *columns])


def label():
    """The drawing in words."""
    query, out = f"1 × {MLA.qk_head_dim}", f"1 × {MLA.v_head_dim}"
    return (
        f"Two columns: one decode step of head i, one new token over T cached rows of "
        f"{MLA.elements_per_token} numbers. Expanded: W_UK and W_UV turn the latent of "
        f"every cached token, T × {MLA.kv_lora_rank}, into keys, T × "
        f"{MLA.qk_head_dim}, and values, T × {MLA.v_head_dim}, which the query, "
        f"{query}, reads. Absorbed: W_UK is applied once, to the query, which becomes "
        f"1 × {MLA.elements_per_token} and reads the cache as it lies; the mean "
        f"latent, 1 × {MLA.kv_lora_rank}, passes W_UV once. Scores, softmax "
        f"and the output, {out}, are the same."
    )
