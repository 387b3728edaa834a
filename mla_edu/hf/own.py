"""Models of this package that no family of transformers is: what ``save_model`` writes of them."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from mla_edu.config import GQAConfig, Mamba2Config, MLAConfig
from mla_edu.hf.spec import CacheGroup
from mla_edu.validation import describe

OWN = "mla_edu"  # their model_type


class _Own(BaseModel):
    layers: Annotated[tuple[Literal["gqa", "mla", "mamba2"], ...], Field(min_length=1)]
    gqa: GQAConfig | None = None
    mla: MLAConfig | None = None
    mamba2: Mamba2Config | None = None

    def groups(self) -> Iterator[CacheGroup]:
        for name in ("mla", "gqa"):
            config = getattr(self, name)
            if number := self.layers.count(name):
                alike = {"role": "kv", "layers": number, "elements": config.elements_per_token}
                if isinstance(config, GQAConfig):
                    alike |= {"heads": config.num_key_value_heads, "window": config.sliding_window}
                yield CacheGroup(**alike)


def own_values(hf: dict[str, Any], where: str) -> dict[str, Any]:
    """The arguments of a ``ModelSpec`` that follow from the layers of a model's ``config.json``.

    Raises:
        ValueError: a value is missing or out of range, or no layer attends.
    """
    try:
        own = _Own.model_validate(hf)
    except ValidationError as error:
        raise ValueError(f"{where}: {describe(error)}") from None
    for name in own.layers:
        if getattr(own, name) is None:
            raise ValueError(f"{where}: {name} is None; expected the sizes of the layers that are {name!r}")
    config = own.mla if "mla" in own.layers else own.gqa if "gqa" in own.layers else None
    if config is None:
        raise ValueError(f"{where} has no attention layer; expected at least one, since nothing else caches tokens")
    recurrent = own.layers.count("mamba2")
    numbers = ", ".join(f"{own.layers.count(name)} {name}" for name in dict.fromkeys(own.layers))
    return {
        "kind": config.kind,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": len(own.layers),
        "config": config,
        "cache": tuple(own.groups()),
        "state_elements": recurrent * own.mamba2.state_elements if own.mamba2 else 0,
        "state_heads": own.mamba2.num_heads if own.mamba2 else 1,
        "why": f"config.json of {OWN!r}, as save_model writes it: {numbers} layers.",
    }
