"""What a whole model keeps of past tokens: a cache for each layer, over one table."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from mla_edu.cache.kv import KVCache
from mla_edu.cache.latent import LatentCache
from mla_edu.cache.layer import LayerCache
from mla_edu.cache.state import StateCache
from mla_edu.cache.table import SequenceTable, Step
from mla_edu.config import GQAConfig, Mamba2Config, MLAConfig
from mla_edu.models.config import ModelConfig


class ModelCache:
    """Keys and values, latents or states, as each layer of a model needs.

    Args:
        config: of the model.
        batch_size: sequences.
        max_seq_len: tokens that fit in each.
        dtype: of the stored numbers; the model's own.
        device: where they lie; None for torch's default.

    Attributes:
        table: the lengths of the sequences, for all layers.
        layers: what each layer keeps.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int = 1,
        max_seq_len: int = 4096,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
    ):
        self.table = SequenceTable(batch_size, max_seq_len, device)
        self.layers = [self._layer(config.part(layer), dtype) for layer in range(len(config.layers))]

    def _layer(self, part: GQAConfig | MLAConfig | Mamba2Config, dtype: torch.dtype) -> LayerCache:
        if isinstance(part, GQAConfig):
            return KVCache(part, dtype=dtype, table=self.table)
        if isinstance(part, MLAConfig):
            return LatentCache(part, dtype=dtype, table=self.table)
        return StateCache(part, self.table, dtype)

    @property
    def lengths(self) -> list[int]:
        """Tokens that each sequence holds."""
        return self.table.lengths

    @property
    def length(self) -> int:
        """Tokens that every sequence holds.

        Raises:
            ValueError: they hold different numbers of tokens.
        """
        return self.layers[0].length

    @property
    def nbytes(self) -> int:
        """Bytes allocated, filled or not."""
        return sum(layer.nbytes for layer in self.layers)

    def step(self, num_new: int, sequences: Sequence[int] | None = None) -> AbstractContextManager[Step]:
        """``table.step``: some of the sequences grow, each by ``num_new`` tokens."""
        return self.table.step(num_new, sequences)

    def truncate(self, length: int, sequences: Sequence[int] | None = None) -> None:
        """``table.truncate``: forget the tokens past the first ``length``."""
        self.table.truncate(length, sequences)
