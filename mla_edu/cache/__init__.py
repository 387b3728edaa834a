"""What is kept of past tokens: a table says which and where, a cache holds one layer's part of them."""

from mla_edu.cache.kv import KVCache, PagedKVCache
from mla_edu.cache.latent import LatentCache, PagedLatentCache
from mla_edu.cache.pages import PageAllocator, PageTable
from mla_edu.cache.prefix import Prefix, PrefixAllocator
from mla_edu.cache.state import StateCache
from mla_edu.cache.table import SequenceTable

__all__ = [
    "KVCache",
    "LatentCache",
    "PageAllocator",
    "PageTable",
    "PagedKVCache",
    "PagedLatentCache",
    "Prefix",
    "PrefixAllocator",
    "SequenceTable",
    "StateCache",
]
