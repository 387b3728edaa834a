"""Draws the figures of the pages that are not notebooks: ``python book/figures/make_figures.py``.

Written by hand as SVG, since the page supplies ink, font and colours, in light and in dark mode.
"""

from html import escape
from pathlib import Path

from mla_edu.book import KEY, ROPE, VALUE
from mla_edu.config import MLAConfig
from mla_edu.cost import kv_cache_bytes
from mla_edu.models import get_model

FIGURES = Path(__file__).parent
MODELS = [
    "gpt-3-175b",
    "llama-3.1-405b",
    "deepseek-67b",
    "qwen2.5-72b-instruct",
    "palm-540b",
    "deepseek-v3",
]
KINDS = {"mha": "MHA", "gqa": "GQA", "mqa": "MQA", "mla": "MLA"}

WIDTH, ROW, BAR, TOP = 400, 46, 15, 34


def parts(name):
    """What the model caches for one token: (colour variable, colour, bytes) from left to right."""
    config, total = get_model(name).config, kv_cache_bytes(name, 1)
    if isinstance(config, MLAConfig):
        latent = total * config.kv_lora_rank // config.elements_per_token
        return [("--mla-key", KEY, latent), ("--mla-rope", ROPE, total - latent)]
    return [("--mla-key", KEY, total // 2), ("--mla-value", VALUE, total // 2)]


def kilobytes(num_bytes):
    return f"{num_bytes / 1000:,.0f} KB"


def cache_per_token():
    """Bars on one linear scale: what six models keep of each token."""
    totals = {name: kv_cache_bytes(name, 1) for name in MODELS}
    scale = WIDTH / max(totals.values())
    rows = []
    for row, name in enumerate(MODELS):
        model, y = get_model(name), TOP + row * ROW
        label = f"{model.title} · {KINDS[model.kind]}, {model.config.num_attention_heads} query heads"
        rows.append(f'<text x="0" y="{y + 12}">{escape(label)}</text>')
        size = kilobytes(totals[name])
        rows.append(
            f'<text x="{WIDTH}" y="{y + 12}" text-anchor="end" font-weight="600">{size}</text>'
        )
        x = 0.0
        for variable, colour, num_bytes in parts(name):
            width = num_bytes * scale
            style = f"fill:var({variable},{colour})"
            rows.append(
                f'<rect x="{x:.2f}" y="{y + 18}" width="{width:.2f}" height="{BAR}" style="{style}"/>'
            )
            x += width
    last = get_model(MODELS[-1])
    latent, rotary = last.config.kv_lora_rank, last.config.qk_rope_head_dim
    note = f"{latent} numbers of latent, {rotary} of rotary key, in {last.num_layers} layers"
    rows.append(
        f'<text x="{x + 6:.2f}" y="{y + 29.5}" font-size="11.5">{note}</text>'
    )
    legend, x = [], 0
    for variable, colour, text, width in [
        ("--mla-key", KEY, "keys, or the latent", 142),
        ("--mla-value", VALUE, "values", 66),
        ("--mla-rope", ROPE, "rotary key", 0),
    ]:
        legend.append(
            f'<rect x="{x}" y="2" width="10" height="10" style="fill:var({variable},{colour})"/>'
        )
        legend.append(f'<text x="{x + 16}" y="11.5" font-size="12">{text}</text>')
        x += width
    listed = ", ".join(
        f"{get_model(n).title} ({KINDS[get_model(n).kind]}) {kilobytes(totals[n])}"
        for n in MODELS
    )
    label = f"Bars of the cache that one token takes at 16 bits: {listed}."
    height = TOP + len(MODELS) * ROW - (ROW - 18 - BAR)
    body = "\n".join(legend + rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(label)}" font-size="13" fill="currentColor">\n{body}\n</svg>\n'
    )


DRAWINGS = {"cache-per-token.svg": cache_per_token}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (FIGURES / name).write_text(draw(), encoding="utf-8")
        print(f"wrote {name}")
