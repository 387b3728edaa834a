"""Caches of one layer in one block of memory, allocated once for the longest sequence."""

import torch
from jaxtyping import Float
from torch import Tensor

from mla_edu.config import GQAConfig


class KVCache:
    """Keys and values of every token so far: ``2 * num_key_value_heads * head_dim`` numbers per token.

    All sequences of the batch have the same length. Memory past ``length`` is never read.

    Args:
        config: of the layer that will fill it.
        batch_size: sequences.
        max_seq_len: tokens that fit in each.
        dtype: of the stored numbers; the layer's own.
        device: where they lie; None for torch's default.

    Raises:
        TypeError: ``config`` is not a ``GQAConfig``.
        ValueError: a size is not positive.
    """

    def __init__(
        self,
        config: GQAConfig,
        batch_size: int = 1,
        max_seq_len: int = 4096,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
    ):
        if not isinstance(config, GQAConfig):
            raise TypeError(f"config is a {type(config).__name__}; expected a GQAConfig")
        for name, size in (("batch_size", batch_size), ("max_seq_len", max_seq_len)):
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        shape = (batch_size, max_seq_len, config.num_key_value_heads, config.head_dim)
        self.config = config
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def batch_size(self) -> int:
        return self.keys.shape[0]

    @property
    def max_seq_len(self) -> int:
        return self.keys.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, filled or not."""
        return self.keys.nbytes + self.values.nbytes

    def check_room(self, batch_size: int, num_new: int, dtype: torch.dtype, device: torch.device) -> None:
        """Raise ``ValueError`` unless ``num_new`` more tokens of ``batch_size`` sequences can be stored."""
        if batch_size != self.batch_size:
            raise ValueError(f"batch size is {batch_size}; expected {self.batch_size}, as the cache")
        if (dtype, device) != (self.keys.dtype, self.keys.device):
            raise ValueError(
                f"new tokens are {dtype} on {device}; expected {self.keys.dtype} on {self.keys.device}, as the cache"
            )
        if self.length + num_new > self.max_seq_len:
            raise ValueError(
                f"{num_new} new tokens after {self.length} cached ones; "
                f"expected at most max_seq_len = {self.max_seq_len} in all"
            )

    def append(
        self, keys: Float[Tensor, "batch new kv_heads dim"], values: Float[Tensor, "batch new kv_heads dim"]
    ) -> tuple[Float[Tensor, "batch length kv_heads dim"], Float[Tensor, "batch length kv_heads dim"]]:
        """Store the keys and values of new tokens, without their gradients; return views of all stored so far.

        Raises:
            ValueError: shape, dtype or device differ from the cache's, or there is no room; nothing is stored.
        """
        batch_size, num_new = keys.shape[:2]
        expected = (batch_size, num_new, *self.keys.shape[2:])
        for name, new in (("keys", keys), ("values", values)):
            if new.shape != expected:
                raise ValueError(f"{name} has shape {list(new.shape)}; expected {list(expected)}")
            self.check_room(batch_size, num_new, new.dtype, new.device)
        end = self.length + num_new
        self.keys[:, self.length : end] = keys.detach()
        self.values[:, self.length : end] = values.detach()
        self.length = end
        return self.keys[:, :end], self.values[:, :end]
