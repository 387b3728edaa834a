"""MHA, GQA, MQA and MLA side by side: who reads what, and what is cached.

The picture grows through the book: MHA alone, then the heads that share, then the
latent, then all four. Drawn with 8 query heads, in GQA with 2 groups; boxes are as wide
as their tensors. The numbers are those of DeepSeek-V3's 128 heads, in GQA 8 groups.
"""

from svg import arrow, at, band, centred, drawing, legend, line, outlined, solid, text

from mla_edu.config import GQAConfig
from mla_edu.registry import get_model

MLA = get_model("deepseek-v3").config
GROUPS = 8  # as in Llama 3
HEADS, GROUPS_DRAWN = 8, 2
PANEL, GUTTER, LEGEND = 188, 24, 56
PITCH, UNIT, BOX = 22, 12, 12  # between heads; a head's width; height of all boxes
ROPE = UNIT * MLA.qk_rope_head_dim / MLA.qk_nope_head_dim
LATENT = UNIT * MLA.kv_lora_rank / MLA.qk_nope_head_dim
QUERIES, BAND, FOOT = 52, 66, 32  # top of the queries; height of the cache, below it
NEAR, FAR = 44, 102  # from the queries to the cache; MLA needs FAR
EDGE = (PANEL - HEADS * PITCH) / 2  # left and right of heads that fill a panel


def cached_numbers():
    """Per token and layer, for the four kinds."""
    heads, width = MLA.num_attention_heads, MLA.qk_nope_head_dim
    numbers = {
        kind: GQAConfig(
            hidden_size=MLA.hidden_size,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=width,
        ).elements_per_token
        for kind, groups in [("mha", heads), ("gqa", GROUPS), ("mqa", 1)]
    }
    return numbers | {"mla": MLA.elements_per_token}


def frame(title, queries, top, words):
    """What all panels have: title, way to the queries, ground of the cache."""
    return [
        text(0, 11, f"*{title}*", font_size=14),
        centred(PANEL / 2, 32, queries),
        arrow([(PANEL / 2, 38), (PANEL / 2, QUERIES - 2)]),
        band(0, top, PANEL, BAND),
        centred(PANEL / 2, top + 55, words),
    ]


def projection(x, top, words, aside=0):
    """An arrow up into the cache from what is written under it, or ``aside`` of it."""
    foot = top + BAND
    return [
        arrow([(x, foot + 14), (x, foot + 2)]),
        centred(x + aside, foot + 28, words),
    ]


def shared(title, groups, words, reach):
    """Queries over the keys and values of ``groups`` groups."""
    top = QUERIES + BOX + reach
    elements = frame(title, "{W^Q}{h_t}", top, words)
    centres = [EDGE + HEADS * PITCH / groups * (i + 0.5) for i in range(groups)]
    for i in range(HEADS):
        x = EDGE + PITCH * (i + 0.5)
        read = centres[i * groups // HEADS]
        elements += [
            outlined(x - UNIT / 2, QUERIES, UNIT, BOX, "query"),
            line([(x, QUERIES + BOX + 1), (read, top + 8)], "query"),
        ]
    for x in centres:
        elements += [
            solid(x - UNIT / 2, top + 9, UNIT, BOX, "key"),
            solid(x - UNIT / 2, top + 10 + BOX, UNIT, BOX, "value"),
        ]
    return elements + projection(PANEL / 2, top, "{W^K}{h_t}, {W^V}{h_t}")


def latent(title, words, rotary=True):
    """Queries over keys and values that one latent gives to all heads."""
    top = QUERIES + BOX + FAR
    bus, keys = QUERIES + BOX + 8, QUERIES + BOX + 20  # the rotary key's line; the keys
    compressed = "{W^DQ}{h_t}"
    queries = f"{{W^UQ}}{compressed}, {{W^QR}}{compressed}"
    elements = frame(title, queries if rotary else "{W^Q}{h_t}", top, words)
    for i in range(HEADS):
        x = PITCH * i if rotary else PITCH * (i + 0.5) - UNIT / 2 + EDGE
        middle, turned = x + UNIT / 2, x + UNIT + ROPE / 2
        if rotary:
            elements += [
                line([(turned, bus), (turned, QUERIES + BOX + 1)], "rope"),
                outlined(x + UNIT, QUERIES, ROPE, BOX, "rope"),
            ]
        elements += [
            line([(middle, QUERIES + BOX + 1), (middle, keys - 1)], "query"),
            outlined(x, QUERIES, UNIT, BOX, "query"),
            outlined(x, keys, UNIT, BOX, "key"),
            outlined(x, keys + BOX + 1, UNIT, BOX, "value"),
        ]
    row, below = top + 16, keys + 2 * BOX + 4  # the cached row; the feet of the values
    first = 0 if rotary else PITCH / 2 - UNIT / 2 + EDGE
    last = first + PITCH * (HEADS - 1) + UNIT
    middle = (first + last) / 2
    x, rope_x = middle - LATENT / 2, PANEL - 6 - ROPE
    right = rope_x + ROPE / 2
    fan = [(x, row - 2), (first, below), (last, below), (x + LATENT, row - 2)]
    elements += [
        line(fan, "key"),
        centred(middle, below + 24, "{W^UK}, {W^UV}"),
        solid(x, row, LATENT, BOX, "key"),
        *projection(middle, top, "{W^DKV}{h_t}"),
    ]
    if rotary:
        turn = [(right, row - 1), (right, bus), (UNIT + ROPE / 2, bus)]
        elements += [
            line(turn, "rope"),
            solid(rope_x, row, ROPE, BOX, "rope"),
            *projection(right, top, "{W^KR}{h_t}", aside=-14),
        ]
    return elements


TITLES = {
    "mha": "MHA: each its own",
    "gqa": "GQA: one per group",
    "mqa": "MQA: one for all",
    "mla": "MLA: one latent for all",
    "latent": "Latent: one for all",
}
FORMULAS = {
    "mha": "2{n_h}{d_h}",
    "gqa": "2{n_g}{d_h}",
    "mqa": "2{d_h}",
    "mla": "{d_c} + {d_h^R}",
}


def panel(kind, reach=FAR):
    """One of the four, with ``reach`` from its queries to its cache."""
    cached = f"cached: {FORMULAS[kind]} = *{cached_numbers()[kind]:,}*"
    if kind == "mla":
        return latent(TITLES[kind], cached)
    groups = {"mha": HEADS, "gqa": GROUPS_DRAWN, "mqa": 1}[kind]
    return shared(TITLES[kind], groups, cached, reach)


def panels(reach):
    """The four; the first two with ``reach`` from their queries to their cache."""
    return [panel("mha", reach), panel("gqa", reach), panel("mqa"), panel("mla")]


def notes(*drawn):
    """What the numbers are, in lines that fit beside a panel."""
    return [*drawn, "Numbers per token and", "layer, at DeepSeek-V3’s", "widths."]


def beside(y, words):
    """Lines of text in the right half of a drawing."""
    return [text(PANEL + GUTTER, y + 18 * i, words) for i, words in enumerate(words)]


def multi_head():
    """MHA alone: what a layer has before anything is shared."""
    heads = MLA.num_attention_heads
    words = notes(f"Drawn: {HEADS} of {heads} heads.")
    number = cached_numbers()["mha"]
    label = (
        f"One panel, multi-head attention: every query head of the new token reads a "
        f"key and a value of its own. Queries are computed for the step, keys and "
        f"values are cached for every token: {number:,} numbers per token and layer "
        f"with {heads} heads of width {MLA.qk_nope_head_dim}."
    )
    elements = legend(key="keys", rope=None)
    elements.append(at(0, LEGEND, panel("mha", NEAR)))
    height = LEGEND + QUERIES + BOX + NEAR + BAND + FOOT
    elements += beside(LEGEND + QUERIES + 10, words)
    return drawing(2 * PANEL + GUTTER, height + 6, label, elements)


def shared_heads():
    """MHA, GQA and MQA: how far heads can share."""
    numbers, heads = cached_numbers(), MLA.num_attention_heads
    words = notes(
        f"Drawn: {HEADS} of {heads} heads,", f"{GROUPS_DRAWN} of {GROUPS} groups."
    )
    label = (
        f"Three panels. Multi-head: every query head reads a key and a value of its "
        f"own, {numbers['mha']:,} cached numbers per token and layer with {heads} "
        f"heads. Grouped-query: the heads of a group share one key and value, "
        f"{numbers['gqa']:,} with {GROUPS} groups. Multi-query: all heads share one, "
        f"{numbers['mqa']:,}."
    )
    row = QUERIES + BOX + NEAR + BAND + FOOT + GUTTER
    elements = legend(key="keys", rope=None)
    elements += [
        at(0, LEGEND, panel("mha", NEAR)),
        at(PANEL + GUTTER, LEGEND, panel("gqa", NEAR)),
        at(0, LEGEND + row, panel("mqa", NEAR)),
        *beside(LEGEND + row + QUERIES + 10, words),
    ]
    height = LEGEND + 2 * row - GUTTER + 6
    return drawing(2 * PANEL + GUTTER, height, label, elements)


def one_latent():
    """GQA beside a latent, before rotation makes it harder."""
    numbers, heads = cached_numbers(), MLA.num_attention_heads
    rank = MLA.kv_lora_rank
    label = (
        f"Two panels. Grouped-query: the heads of a group share one key and value, "
        f"{numbers['gqa']:,} cached numbers per token and layer with {GROUPS} groups. "
        f"A latent: one row of {rank} numbers is cached, and W_UK and W_UV make a key "
        f"and a value of its own for every one of {heads} heads from it. Keys and "
        f"values are drawn in outline there: they are computed, not cached."
    )
    cached = f"cached: {{d_c}} = *{rank:,}*"
    top = QUERIES + BOX + FAR + BAND + FOOT + LEGEND + 26
    lines = [
        f"Drawn: {HEADS} of {heads} heads, {GROUPS_DRAWN} of {GROUPS} groups, "
        "widths to scale.",
        "Numbers per token and layer, at DeepSeek-V3’s widths.",
    ]
    elements = legend(rope=None)
    elements += [
        at(0, LEGEND, panel("gqa")),
        at(PANEL + GUTTER, LEGEND, latent(TITLES["latent"], cached, rotary=False)),
        *(text(0, top + 18 * i, words) for i, words in enumerate(lines)),
    ]
    return drawing(2 * PANEL + GUTTER, top + 18 + 6, label, elements)


def four_attentions(across=2):
    """The drawing with ``across`` panels in a row: 2 for a page, 4 for a slide."""
    rows = 4 // across
    drawn = panels(NEAR if rows == 2 else FAR)
    short = QUERIES + BOX + NEAR + BAND + FOOT
    tops = [LEGEND, LEGEND + short + GUTTER] if rows == 2 else [LEGEND - 12]
    elements = legend(apart=412 if rows == 1 else 0)
    for i, one in enumerate(drawn):
        elements.append(at(i % across * (PANEL + GUTTER), tops[i // across], one))
    heads = MLA.num_attention_heads
    lines = [
        f"Drawn: {HEADS} of {heads} heads, {GROUPS_DRAWN} of {GROUPS} groups, "
        "widths to scale.",
        "Numbers per token and layer, at DeepSeek-V3’s widths.",
    ]
    y = tops[-1] + QUERIES + BOX + FAR + BAND + FOOT + 26
    if rows == 1:
        lines = [" ".join(lines)]
    elements += [text(0, y + 18 * i, words) for i, words in enumerate(lines)]
    width = across * (PANEL + GUTTER) - GUTTER
    return drawing(width, y + 18 * len(lines) - 12, label(), elements)


def label():
    """The drawing in words."""
    numbers = cached_numbers()
    return (
        f"Four panels. Multi-head: every query head reads a key and a value of its "
        f"own, {numbers['mha']:,} cached numbers per token and layer with "
        f"{MLA.num_attention_heads} heads. Grouped-query: the heads of a group share "
        f"one key and value, {numbers['gqa']:,} with {GROUPS} groups. Multi-query: all "
        f"heads share one, {numbers['mqa']:,}. Multi-head latent: one latent and one "
        f"small rotary key are cached, {numbers['mla']:,}; keys and values of every "
        f"head come from the latent through W_UK and W_UV, and all heads read the "
        f"rotary key."
    )
