"""The crossover of chapter 5: what expanded and absorbed attention cost, and from how many new tokens on.

``absorption_crossover.js`` computes the same in the browser, with functions of the same names.
"""

import json
from bisect import bisect_right
from typing import Any

import anywidget
import traitlets

from mla_edu.book.widgets.parts import check_integer, source
from mla_edu.config import MLAConfig
from mla_edu.layers.mla import attention_macs
from mla_edu.registry import get_model, list_models

LIMITS = {
    "heads": (1, 1024),
    "kv_lora_rank": (1, 8192),
    "new_tokens": (1, 2**20),
    "cached_tokens": (0, 2**20),
}
WIDTHS = {"qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}


def crossover(config: MLAConfig, num_cached: int) -> int | None:
    """The most new tokens behind ``num_cached`` cached ones whose absorbed attention costs no more than expanded.

    The new tokens are themselves attended to, so it solves chapter 5's equation with C = num_cached + s. Without cached
    tokens it is 0: there expanded costs less from the first token on.

    Returns:
        None where absorbed never costs more, which takes a latent with 2 d_c <= d_nope + d_v.
    """
    up = config.qk_nope_head_dim + config.v_head_dim
    gap = 2 * config.kv_lora_rank - up
    if gap <= 0:
        return None

    def expanded_wins(new: int) -> bool:
        macs = attention_macs(config, new, num_cached + new)
        return macs["absorbed"] > macs["expanded"]

    longest = config.kv_lora_rank * up // gap  # over a cache without end
    return bisect_right(range(1, longest + 1), False, key=expanded_wins)


def quantities(config: MLAConfig, new_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Multiply-adds of all heads of a layer, absorbed over expanded, and the crossover behind ``cached_tokens``."""
    macs = attention_macs(config, new_tokens, cached_tokens + new_tokens)
    return {
        "expanded_macs": config.num_attention_heads * macs["expanded"],
        "absorbed_macs": config.num_attention_heads * macs["absorbed"],
        "ratio": macs["absorbed"] / macs["expanded"],
        "crossover": crossover(config, cached_tokens),
    }


def _mla_config(model: str) -> MLAConfig:
    config = get_model(model).config
    if not isinstance(config, MLAConfig):
        raise ValueError(f"model is {model!r}; expected a model with multi-head latent attention")
    return config


def _record(model: str) -> dict[str, Any]:
    """What the browser needs to know of a model."""
    dims = _mla_config(model).model_dump(include={"num_attention_heads", "kv_lora_rank", *WIDTHS})
    return {"name": model, "title": get_model(model).title, **dims}


class AbsorptionCrossover(anywidget.AnyWidget):
    """Multiply-adds of one layer's attention, expanded and absorbed, with the curve on which they cross.

    A model gives the widths of a head, and at first the number of heads and the latent, which can then be changed.
    Its settings are attributes; so are its answers, for the settings of the moment.
    """

    _esm = source("absorption_crossover.js")
    _css = source("absorption_crossover.css")

    model = traitlets.Unicode().tag(sync=True)
    heads = traitlets.Int().tag(sync=True)
    kv_lora_rank = traitlets.Int().tag(sync=True)
    new_tokens = traitlets.Int().tag(sync=True)
    cached_tokens = traitlets.Int().tag(sync=True)
    registry = traitlets.Unicode().tag(sync=True)  # models and limits for the browser, in JSON

    def __init__(
        self,
        model: str = "deepseek-v3",
        new_tokens: int = 1,
        cached_tokens: int = 32_768,
        heads: int | None = None,
        kv_lora_rank: int | None = None,
    ):
        """A view with these settings.

        Args:
            model: a name of the registry, of a model with MLA.
            new_tokens: whose attention is counted, 1 to 1,048,576.
            cached_tokens: before them, 0 to 1,048,576.
            heads: 1 to 1,024; None for the model's.
            kv_lora_rank: width of the latent, 1 to 8,192; None for the model's.

        Raises:
            ValueError: a model without MLA or not known, or a number out of range.
        """
        config = _mla_config(model)
        names = [name for name in list_models() if isinstance(get_model(name).config, MLAConfig)]
        super().__init__(
            model=model,
            new_tokens=new_tokens,
            cached_tokens=cached_tokens,
            heads=config.num_attention_heads if heads is None else heads,
            kv_lora_rank=config.kv_lora_rank if kv_lora_rank is None else kv_lora_rank,
            registry=json.dumps({"models": [_record(name) for name in names], "limits": LIMITS}),
        )

    @traitlets.validate("model")
    def _valid_model(self, proposal):
        _mla_config(proposal["value"])
        return get_model(proposal["value"]).name

    @traitlets.validate(*LIMITS)
    def _valid_number(self, proposal):
        name = proposal["trait"].name
        check_integer(name, proposal["value"], *LIMITS[name])
        return proposal["value"]

    @property
    def config(self) -> MLAConfig:
        """The layer that is counted: the model's, with ``heads`` and ``kv_lora_rank``."""
        changed = {"num_attention_heads": self.heads, "kv_lora_rank": self.kv_lora_rank}
        return _mla_config(self.model).model_copy(update=changed)

    def _quantities(self) -> dict[str, Any]:
        return quantities(self.config, self.new_tokens, self.cached_tokens)

    @property
    def expanded_macs(self) -> int:
        """Multiply-adds of all heads, keys and values rebuilt."""
        return self._quantities()["expanded_macs"]

    @property
    def absorbed_macs(self) -> int:
        """Multiply-adds of all heads, queries taken to the latents."""
        return self._quantities()["absorbed_macs"]

    @property
    def crossover(self) -> int | None:
        """The most new tokens for which absorbed costs no more; None where it never does."""
        return self._quantities()["crossover"]

    def _repr_mimebundle_(self, **kwargs):
        """The widget, and its answers in words for viewers that run none."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        found = self._quantities()
        most = "any number" if found["crossover"] is None else f"{found['crossover']:,}"
        text = (
            f"{get_model(self.model).title}, {self.heads:,} heads, latent {self.kv_lora_rank:,}; "
            f"new tokens: {self.new_tokens:,}, cached: {self.cached_tokens:,}\n"
            f"multiply-adds per layer: expanded {found['expanded_macs']:,}, absorbed {found['absorbed_macs']:,}\n"
            f"absorbed costs no more for up to {most} new tokens"
        )
        return data | {"text/plain": text, "text/html": f"<pre>{text}</pre>"}, metadata
