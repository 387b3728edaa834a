"""What expanded and absorbed attention cost, and from how many new tokens on."""

from typing import Any

from mla_edu.book.widgets.parts import Name, Number, Widget, source
from mla_edu.config import MLAConfig
from mla_edu.cost import absorption_crossover, attention_macs
from mla_edu.registry import get_model, list_models

WIDTHS = {"num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}


def quantities(config: MLAConfig, new_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Multiply-adds of all heads of a layer, absorbed over expanded, and the crossover behind ``cached_tokens``.

    Every score is counted, as a layer in plain PyTorch computes them.
    """
    expanded, absorbed = (
        attention_macs(config, new_tokens, cached_tokens + new_tokens, mode, causal=False)
        for mode in ("expanded", "absorbed")
    )
    return {
        "expanded_macs": expanded,
        "absorbed_macs": absorbed,
        "ratio": absorbed / expanded,
        "crossover": absorption_crossover(config, cached_tokens),
    }


def _mla_config(model: str) -> MLAConfig:
    config = get_model(model).config
    if not isinstance(config, MLAConfig):
        raise ValueError(f"model is {model!r}; expected a model with multi-head latent attention")
    return config


def _usual_name(model: str) -> str:
    _mla_config(model)
    return get_model(model).name


def _record(model: str) -> dict[str, Any]:
    """What the browser needs to know of a model."""
    return {"name": model, "title": get_model(model).title, **_mla_config(model).model_dump(include=WIDTHS)}


class AbsorptionCrossover(Widget):
    """Multiply-adds of one layer's attention, expanded and absorbed, with the curve on which they cross.

    A model gives the heads and their widths, and at first the latent, which can then be changed.
    """

    _esm = source("absorption_crossover.js")
    _css = source("absorption_crossover.css")

    model = Name(_usual_name)
    kv_lora_rank = Number(1, 8192)
    new_tokens = Number(1, 2**20)
    cached_tokens = Number(0, 2**20)

    def __init__(
        self,
        model: str = "deepseek-v3",
        new_tokens: int = 1,
        cached_tokens: int = 32_768,
        kv_lora_rank: int | None = None,
    ):
        """A view with these settings.

        Args:
            model: a name of the registry, of a model with MLA.
            new_tokens: whose attention is counted, 1 to 1,048,576.
            cached_tokens: before them, 0 to 1,048,576.
            kv_lora_rank: width of the latent, 1 to 8,192; None for the model's.

        Raises:
            ValueError: a model without MLA or not known, or a number out of range.
        """
        config = _mla_config(model)
        names = [name for name in list_models() if isinstance(get_model(name).config, MLAConfig)]
        super().__init__(
            {"models": [_record(name) for name in names]},
            model=model,
            new_tokens=new_tokens,
            cached_tokens=cached_tokens,
            kv_lora_rank=config.kv_lora_rank if kv_lora_rank is None else kv_lora_rank,
        )

    @property
    def config(self) -> MLAConfig:
        """The layer that is counted: the model's, with ``kv_lora_rank``."""
        return _mla_config(self.model).model_copy(update={"kv_lora_rank": self.kv_lora_rank})

    @property
    def quantities(self) -> dict[str, Any]:
        """``quantities`` of the present settings."""
        return quantities(self.config, self.new_tokens, self.cached_tokens)

    def text(self) -> str:
        """The settings, both counts, and where they cross."""
        found = self.quantities
        most = "any number of" if found["crossover"] is None else f"up to {found['crossover']:,}"
        return (
            f"{get_model(self.model).title}, {self.config.num_attention_heads:,} heads, latent {self.kv_lora_rank:,}; "
            f"new tokens: {self.new_tokens:,}, cached: {self.cached_tokens:,}\n"
            f"multiply-adds per layer: expanded {found['expanded_macs']:,}, absorbed {found['absorbed_macs']:,}\n"
            f"absorbed costs no more for {most} new tokens"
        )
