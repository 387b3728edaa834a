"""Multi-head latent attention, from the equations to a decode kernel, in small checked pieces."""

from typing import TYPE_CHECKING, Any

from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.hf import config_from_hf

if TYPE_CHECKING:
    from mla_edu.layers.gqa import GroupedQueryAttention
    from mla_edu.layers.mla import MultiHeadLatentAttention

__version__ = "0.1.0"

__all__ = ["GQAConfig", "GroupedQueryAttention", "MLAConfig", "MultiHeadLatentAttention", "config_from_hf"]


def __getattr__(name: str) -> Any:
    # Attention layers need torch, which takes seconds to import; the cost model and the command line do without it.
    if name == "GroupedQueryAttention":
        from mla_edu.layers.gqa import GroupedQueryAttention

        return GroupedQueryAttention
    if name == "MultiHeadLatentAttention":
        from mla_edu.layers.mla import MultiHeadLatentAttention

        return MultiHeadLatentAttention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
