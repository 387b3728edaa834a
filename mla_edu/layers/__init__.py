"""Attention layers and what stands beside them in a block."""

from mla_edu.layers.gqa import GroupedQueryAttention
from mla_edu.layers.mla import MultiHeadLatentAttention

__all__ = ["GroupedQueryAttention", "MultiHeadLatentAttention"]
