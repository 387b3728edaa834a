"""Multi-head latent attention, from the equations to a decode kernel, in small checked pieces."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mla_edu.config import GQAConfig, MLAConfig
    from mla_edu.hf import config_from_hf
    from mla_edu.layers.gqa import GroupedQueryAttention
    from mla_edu.layers.mla import MultiHeadLatentAttention

__version__ = "0.1.0"

__all__ = ["GQAConfig", "GroupedQueryAttention", "MLAConfig", "MultiHeadLatentAttention", "config_from_hf"]

# Read when they are asked for: the attention layers need torch, which takes seconds, and the command none of them.
_HOMES = {
    "GQAConfig": "mla_edu.config",
    "GroupedQueryAttention": "mla_edu.layers.gqa",
    "MLAConfig": "mla_edu.config",
    "MultiHeadLatentAttention": "mla_edu.layers.mla",
    "config_from_hf": "mla_edu.hf",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
