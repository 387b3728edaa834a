"""How fast absorbed MLA can decode on a GPU, by its datasheet."""

from typing import Any, cast

from mla_edu.book.widgets.parts import Name, Number, Widget, one_of, source
from mla_edu.config import MLAConfig
from mla_edu.cost import CacheFormat, Cost, kernel_cost, kv_cache_bytes, pace, rates, ridge, roofline, step_seconds
from mla_edu.registry import get_gpu, get_model, list_gpus

LAYER = cast(MLAConfig, get_model("deepseek-v3").config)  # a latent of 512 and 64 rotary numbers
DTYPES = ("bf16", "fp16", "fp8_mla")
MILLION = 10**6


def _step_cost(rows: int, dtype: CacheFormat) -> Cost:
    """One layer over a million cached tokens, beside which queries and results are nothing."""
    return Cost(kernel_cost(LAYER, rows, MILLION, 1, dtype).flops, kv_cache_bytes(LAYER, MILLION, 1, dtype))


def quantities(gpu: str, heads: int, s_q: int, dtype: CacheFormat) -> dict[str, Any]:
    """What a GPU's datasheet allows; the cache counts as bytes, queries and results do not. Products are in 16 bits.

    Returns:
        ``rows`` (heads times new tokens), ``intensity`` in FLOP/byte, ``rows_at_ridge``, ``flops`` and ``bandwidth``,
        both per second, as far as the slower of the two lets them, and ``microseconds`` of one layer over a million
        cached tokens.
    """
    rows, machine = heads * s_q, rates(gpu, "fp16")
    cost = _step_cost(rows, dtype)
    flops = roofline(cost, machine)
    return {
        "rows": rows,
        "intensity": cost.intensity,
        "rows_at_ridge": ridge(machine) * rows / cost.intensity,
        "flops": flops,
        "bandwidth": flops / cost.intensity,
        "microseconds": 1e6 * step_seconds(cost, machine),
    }


class DecodeRoofline(Widget):
    """How fast one layer of absorbed MLA can decode, by a GPU's datasheet, with the roofline over rows."""

    _esm = source("decode_roofline.js")
    _css = source("decode_roofline.css")

    gpu = Name(lambda name: get_gpu(name).name)
    dtype = one_of("dtype", DTYPES)
    heads = Number(1, 128)
    s_q = Number(1, 8)

    def __init__(self, gpu: str = "h200", heads: int = 16, s_q: int = 1, dtype: str = "bf16"):
        """A view with these settings.

        Args:
            gpu: a name of the registry.
            heads: query heads on this GPU, 1 to 128.
            s_q: new tokens processed together, 1 to 8.
            dtype: of the cache: "bf16", "fp16", or "fp8_mla", the 656-byte token.

        Raises:
            ValueError: a GPU or dtype that is not known, or a number out of range.
        """
        gpus = [
            {"name": name, "title": get_gpu(name).title, "rates": rates(name, "fp16")._asdict()} for name in list_gpus()
        ]
        layer = LAYER.model_dump(include={"kv_lora_rank", "qk_rope_head_dim"})
        data = {"gpus": gpus, "dtypes": DTYPES, "layer": layer}
        super().__init__(data, gpu=gpu, heads=heads, s_q=s_q, dtype=dtype)

    @property
    def quantities(self) -> dict[str, Any]:
        """``quantities`` of the present settings."""
        return quantities(self.gpu, self.heads, self.s_q, cast(CacheFormat, self.dtype))

    def text(self) -> str:
        """The settings, what sets the pace, and both bounds."""
        found = self.quantities
        slower = pace(_step_cost(found["rows"], cast(CacheFormat, self.dtype)), self.gpu, "fp16")
        return (
            f"{get_gpu(self.gpu).title}, {self.dtype} cache; heads: {self.heads}, new tokens: {self.s_q}\n"
            f"rows: {found['rows']:,}, at the ridge {found['rows_at_ridge']:.0f}: {slower} sets the pace\n"
            f"at most {found['flops'] / 1e12:,.0f} TFLOP/s, "
            f"at least {found['microseconds']:,.0f} µs per layer and million cached tokens"
        )
