"""The landing page's picture: what one token leaves in the caches of six models."""

from svg import drawing, solid, text

from mla_edu.config import MLAConfig
from mla_edu.cost import kv_cache_bytes
from mla_edu.registry import get_model

MODELS = [
    "gpt-3-175b",
    "llama-3.1-405b",
    "deepseek-67b",
    "qwen2.5-72b-instruct",
    "palm-540b",
    "deepseek-v3",
]
WIDTH, ROW, BAR, TOP = 400, 46, 15, 34


def parts(name):
    """What a model caches for one token: (kind of tensor, bytes), left to right."""
    config, total = get_model(name).config, kv_cache_bytes(name, 1)
    if isinstance(config, MLAConfig):
        latent = total * config.kv_lora_rank // config.elements_per_token
        return [("key", latent), ("rope", total - latent)]
    return [("key", total // 2), ("value", total // 2)]


def kilobytes(name):
    return f"{kv_cache_bytes(name, 1) / 1000:,.0f} kB"


def cache_per_token():
    """Bars on one linear scale: what six models keep of each token."""
    models = [get_model(name) for name in MODELS]
    scale = WIDTH / max(kv_cache_bytes(name, 1) for name in MODELS)
    lines = []
    for x, kind, words in [
        (0, "key", "keys, or the latent"),
        (148, "value", "values"),
        (218, "rope", "rotary key"),
    ]:
        lines += [solid(x, 2, 10, 10, kind), text(x + 16, 11.5, words, font_size=12.5)]
    for row, model in enumerate(models):
        x, y = 0.0, TOP + row * ROW
        heads = model.config.num_attention_heads
        label = f"{model.title} · {model.kind.upper()}, {heads} query heads"
        size = kilobytes(model.name)
        lines.append(text(0, y + 12, label))
        lines.append(text(WIDTH, y + 12, size, text_anchor="end", font_weight=600))
        for kind, num_bytes in parts(model.name):
            lines.append(solid(x, y + 18, num_bytes * scale, BAR, kind))
            x += num_bytes * scale
    config, layers = models[-1].config, models[-1].num_layers
    note = (
        f"{config.kv_lora_rank} numbers of latent, "
        f"{config.qk_rope_head_dim} of rotary key, in {layers} layers"
    )
    lines.append(text(round(x + 6, 2), y + 29.5, note, font_size=12.5))
    listed = ", ".join(
        f"{model.title} ({model.kind.upper()}) {kilobytes(model.name)}"
        for model in models
    )
    label = f"The cache that one token takes at 16 bits, as bars: {listed}."
    return drawing(WIDTH, y + 18 + BAR, label, lines, font_size=14)
