"""Attention, MLPs and the engine on several processes: heads, requests or the tokens of a sequence dealt over them."""

from mla_edu.distributed.context import ContextLatentCache, ContextParallelAttention, num_local
from mla_edu.distributed.heads import TensorParallelAttention, TensorParallelMLP
from mla_edu.distributed.ranks import RankLost, Ranks, connect
from mla_edu.distributed.requests import DataParallelMLP, Meeting

__all__ = [
    "ContextLatentCache",
    "ContextParallelAttention",
    "DataParallelMLP",
    "Meeting",
    "RankLost",
    "Ranks",
    "TensorParallelAttention",
    "TensorParallelMLP",
    "connect",
    "num_local",
]
