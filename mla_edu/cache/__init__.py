"""Where earlier tokens are kept, so that a decode step computes only the new one."""

from mla_edu.cache.contiguous import KVCache, LatentCache
from mla_edu.cache.paged import PagedLatentCache

__all__ = ["KVCache", "LatentCache", "PagedLatentCache"]
