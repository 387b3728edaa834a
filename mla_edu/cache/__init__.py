"""Where earlier tokens are kept, so that a decode step computes only the new one."""

from mla_edu.cache.contiguous import KVCache, LatentCache

__all__ = ["KVCache", "LatentCache"]
