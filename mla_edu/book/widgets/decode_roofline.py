"""The roofline of chapter 12: how fast absorbed MLA can decode on a GPU, by its datasheet.

``decode_roofline.js`` computes the same in the browser, with functions of the same names.
"""

import json
from typing import Any

import anywidget
import traitlets

from mla_edu.book.widgets.parts import check_integer, source
from mla_edu.cost import attention_macs_per_score, kv_cache_bytes
from mla_edu.registry import get_gpu, get_model, list_gpus

LIMITS = {"heads": (1, 128), "s_q": (1, 8)}
LAYER = get_model("deepseek-v3").config  # a latent of 512 and 64 rotary numbers
FLOPS_PER_ROW = 2 * attention_macs_per_score(LAYER, "absorbed") // LAYER.num_attention_heads
TOKEN_BYTES = {"16-bit": kv_cache_bytes(LAYER, 1), "fp8": kv_cache_bytes(LAYER, 1, dtype="fp8_mla")}
MILLION = 10**6


def quantities(gpu: str, heads: int, s_q: int, dtype: str) -> dict[str, Any]:
    """What a GPU's datasheet allows; the cache counts as bytes, queries and results do not. Products are 16-bit.

    Returns:
        ``rows`` (heads times new tokens), ``intensity`` and ``ridge`` in FLOP/byte, ``rows_at_ridge``, ``flops`` and
        ``bandwidth``, both per second, as far as the slower of the two lets them, and ``microseconds`` of one layer
        over a million cached tokens.
    """
    spec, token_bytes, rows = get_gpu(gpu), TOKEN_BYTES[dtype], heads * s_q
    intensity, ridge = rows * FLOPS_PER_ROW / token_bytes, spec.flops["fp16"] / spec.bandwidth
    flops = min(spec.flops["fp16"], intensity * spec.bandwidth)
    return {
        "rows": rows,
        "intensity": intensity,
        "ridge": ridge,
        "rows_at_ridge": ridge * token_bytes / FLOPS_PER_ROW,
        "flops": flops,
        "bandwidth": flops / intensity,
        "microseconds": 1e6 * MILLION * rows * FLOPS_PER_ROW / flops,
    }


class DecodeRoofline(anywidget.AnyWidget):
    """How fast one layer of absorbed MLA can decode, by a GPU's datasheet, with the roofline over rows.

    Its settings are attributes; its answers are ``quantities`` of the settings of the moment.
    """

    _esm = source("decode_roofline.js")
    _css = source("decode_roofline.css")

    gpu = traitlets.Unicode().tag(sync=True)
    dtype = traitlets.Unicode().tag(sync=True)
    heads = traitlets.Int().tag(sync=True)
    s_q = traitlets.Int().tag(sync=True)
    datasheets = traitlets.Unicode().tag(sync=True)  # GPUs, sizes and limits for the browser, in JSON

    def __init__(self, gpu: str = "h200", heads: int = 16, s_q: int = 1, dtype: str = "16-bit"):
        """A view with these settings.

        Args:
            gpu: a name of the registry.
            heads: query heads on this GPU, 1 to 128.
            s_q: new tokens processed together, 1 to 8.
            dtype: of the cache, "16-bit" (bf16 or fp16) or "fp8", the 656-byte token.

        Raises:
            ValueError: a GPU or dtype that is not known, or a number out of range.
        """
        specs = [get_gpu(name) for name in list_gpus()]
        gpus = [
            {"name": spec.name, "title": spec.title, "peak": spec.flops["fp16"], "bandwidth": spec.bandwidth}
            for spec in specs
        ]
        data = {"gpus": gpus, "token_bytes": TOKEN_BYTES, "flops_per_row": FLOPS_PER_ROW, "limits": LIMITS}
        super().__init__(gpu=gpu, heads=heads, s_q=s_q, dtype=dtype, datasheets=json.dumps(data))

    @traitlets.validate("gpu")
    def _valid_gpu(self, proposal):
        return get_gpu(proposal["value"]).name

    @traitlets.validate("dtype")
    def _valid_dtype(self, proposal):
        if proposal["value"] not in TOKEN_BYTES:
            raise ValueError(f"dtype is {proposal['value']!r}; expected {' or '.join(TOKEN_BYTES)}")
        return proposal["value"]

    @traitlets.validate(*LIMITS)
    def _valid_number(self, proposal):
        name = proposal["trait"].name
        check_integer(name, proposal["value"], *LIMITS[name])
        return proposal["value"]

    @property
    def quantities(self) -> dict[str, Any]:
        """``quantities`` of the present settings."""
        return quantities(self.gpu, self.heads, self.s_q, self.dtype)

    def _repr_mimebundle_(self, **kwargs):
        """The widget, and its answers in words for viewers that run none."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        found = self.quantities
        pace = "memory" if found["rows"] < found["rows_at_ridge"] else "arithmetic"
        text = (
            f"{get_gpu(self.gpu).title}, {self.dtype} cache; heads: {self.heads}, new tokens: {self.s_q}\n"
            f"rows: {found['rows']:,}, at the ridge {found['rows_at_ridge']:.0f}: {pace} sets the pace\n"
            f"at most {found['flops'] / 1e12:,.0f} TFLOP/s, "
            f"at least {found['microseconds']:,.0f} µs per layer and million cached tokens"
        )
        return data | {"text/plain": text, "text/html": f"<pre>{text}</pre>"}, metadata
