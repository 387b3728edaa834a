"""Caches of one layer in one block of memory, allocated once for the longest sequence."""

import torch
from jaxtyping import Float
from torch import Tensor

from mla_edu.config import GQAConfig, MLAConfig


class ContiguousCache:
    """What both caches share. All sequences of the batch have the same length; memory past it is never read.

    Attributes:
        tensors: the memory, each ``[batch, max_seq_len, ...]``.
        length: tokens stored so far.
    """

    def __init__(self, *tensors: Tensor):
        self.tensors = tensors
        self.length = 0

    @property
    def batch_size(self) -> int:
        return self.tensors[0].shape[0]

    @property
    def max_seq_len(self) -> int:
        return self.tensors[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, filled or not."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def check_room(self, batch_size: int, num_new: int, dtype: torch.dtype, device: torch.device) -> None:
        """Raise ``ValueError`` unless ``num_new`` more tokens of ``batch_size`` sequences can be stored."""
        held = self.tensors[0]
        if batch_size != self.batch_size:
            raise ValueError(f"batch size is {batch_size}; expected {self.batch_size}, as the cache")
        if (dtype, device) != (held.dtype, held.device):
            raise ValueError(
                f"new tokens are {dtype} on {device}; expected {held.dtype} on {held.device}, as the cache"
            )
        if self.length + num_new > self.max_seq_len:
            raise ValueError(
                f"{num_new} new tokens after {self.length} cached ones; "
                f"expected at most max_seq_len = {self.max_seq_len} in all"
            )

    def _check_new(self, **expected: tuple[Tensor, tuple[int, ...]]) -> None:
        """Raise unless every tensor has the shape given with it and all of them can be stored."""
        for name, (new, shape) in expected.items():
            if new.shape != shape:
                raise ValueError(f"{name} has shape {list(new.shape)}; expected {list(shape)}")
            self.check_room(shape[0], shape[1], new.dtype, new.device)


def _check_arguments(config: object, kind: type, batch_size: int, max_seq_len: int) -> None:
    if not isinstance(config, kind):
        raise TypeError(f"config is a {type(config).__name__}; expected a {kind.__name__}")
    for name, size in (("batch_size", batch_size), ("max_seq_len", max_seq_len)):
        if size < 1:
            raise ValueError(f"{name} is {size}; expected at least 1")


class KVCache(ContiguousCache):
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
        _check_arguments(config, GQAConfig, batch_size, max_seq_len)
        shape = (batch_size, max_seq_len, config.num_key_value_heads, config.head_dim)
        self.config = config
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        super().__init__(self.keys, self.values)

    def append(
        self, keys: Float[Tensor, "batch new kv_heads dim"], values: Float[Tensor, "batch new kv_heads dim"]
    ) -> tuple[Float[Tensor, "batch length kv_heads dim"], Float[Tensor, "batch length kv_heads dim"]]:
        """Store the keys and values of new tokens, without their gradients; return views of all stored so far.

        Raises:
            ValueError: shape, dtype or device differ from the cache's, or there is no room; nothing is stored.
        """
        shape = (*keys.shape[:2], *self.keys.shape[2:])
        self._check_new(keys=(keys, shape), values=(values, shape))
        start, self.length = self.length, self.length + shape[1]
        self.keys[:, start : self.length] = keys.detach()
        self.values[:, start : self.length] = values.detach()
        return self.keys[:, : self.length], self.values[:, : self.length]


class LatentCache(ContiguousCache):
    """What MLA keeps of every token: its latent and the rotary key that all heads share, and nothing else.

    A row holds ``c_kv``, after its RMSNorm, and then ``k_pe``, rotated: ``kv_lora_rank + qk_rope_head_dim`` numbers,
    576 in DeepSeek-V3 (DeepSeek-V2 paper, Table 1). All sequences of the batch have the same length. Memory past
    ``length`` is never read.

    Args:
        config: of the layer that will fill it.
        batch_size: sequences.
        max_seq_len: tokens that fit in each.
        dtype: of the stored numbers; the layer's own.
        device: where they lie; None for torch's default.

    Attributes:
        rows: the memory, ``[batch, max_seq_len, kv_lora_rank + qk_rope_head_dim]``.

    Raises:
        TypeError: ``config`` is not an ``MLAConfig``.
        ValueError: a size is not positive.
    """

    def __init__(
        self,
        config: MLAConfig,
        batch_size: int = 1,
        max_seq_len: int = 4096,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
    ):
        _check_arguments(config, MLAConfig, batch_size, max_seq_len)
        shape = (batch_size, max_seq_len, config.elements_per_token)
        self.config = config
        self.rows = torch.empty(shape, dtype=dtype, device=device)
        super().__init__(self.rows)

    @property
    def c_kv(self) -> Float[Tensor, "batch max_seq_len kv_lora_rank"]:
        """The latents: a view of the memory, filled or not."""
        return self.rows[..., : self.config.kv_lora_rank]

    @property
    def k_pe(self) -> Float[Tensor, "batch max_seq_len qk_rope_head_dim"]:
        """The rotated shared keys: a view of the memory, filled or not."""
        return self.rows[..., self.config.kv_lora_rank :]

    def append(
        self, c_kv: Float[Tensor, "batch new kv_lora_rank"], k_pe: Float[Tensor, "batch new qk_rope_head_dim"]
    ) -> Float[Tensor, "batch length row"]:
        """Store the rows of new tokens, without their gradients; return a view of all stored so far.

        Raises:
            ValueError: shape, dtype or device differ from the cache's, or there is no room; nothing is stored.
        """
        batch_size, num_new = c_kv.shape[:2]
        self._check_new(
            c_kv=(c_kv, (batch_size, num_new, self.config.kv_lora_rank)),
            k_pe=(k_pe, (batch_size, num_new, self.config.qk_rope_head_dim)),
        )
        start, self.length = self.length, self.length + num_new
        self.c_kv[:, start : self.length] = c_kv.detach()
        self.k_pe[:, start : self.length] = k_pe.detach()
        return self.rows[:, : self.length]
