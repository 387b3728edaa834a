"""Attention, MLPs and the engine on several processes: heads, requests or the tokens of a sequence dealt over them."""

from mla_edu.distributed.context import ContextLatentCache, ContextParallelAttention, num_local
from mla_edu.distributed.engine import (
    ContextModelCache,
    ContextParallelEngine,
    DataParallelEngine,
    TensorParallelEngine,
)
from mla_edu.distributed.heads import TensorParallelAttention, TensorParallelMLP
from mla_edu.distributed.model import context_parallel, data_parallel, tensor_parallel
from mla_edu.distributed.ranks import RankLost, Ranks, connect
from mla_edu.distributed.requests import DataParallelMLP, Meeting

__all__ = [
    "ContextLatentCache",
    "ContextModelCache",
    "ContextParallelAttention",
    "ContextParallelEngine",
    "DataParallelEngine",
    "DataParallelMLP",
    "Meeting",
    "RankLost",
    "Ranks",
    "TensorParallelAttention",
    "TensorParallelEngine",
    "TensorParallelMLP",
    "connect",
    "context_parallel",
    "data_parallel",
    "num_local",
    "tensor_parallel",
]
