"""What a whole model keeps of past tokens: a cache for each layer, over one table."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from mla_edu.cache.kv import KVCache, PagedKVCache
from mla_edu.cache.latent import LatentCache, PagedLatentCache
from mla_edu.cache.layer import LayerCache, check_config
from mla_edu.cache.pages import PageTable
from mla_edu.cache.state import StateCache
from mla_edu.cache.table import SequenceTable, Step
from mla_edu.config import GQAConfig, Mamba2Config, MLAConfig
from mla_edu.kernels.api import Backend
from mla_edu.models.config import ModelConfig
from mla_edu.validation import check_flag


class ModelCache:
    """Keys and values, latents or states, as each layer of a model needs.

    Args:
        config: of the model.
        batch_size: sequences.
        max_seq_len: tokens that fit in each.
        dtype: of the stored numbers; the model's own.
        device: where they lie; None for torch's default.
        table: of the sequences, in rows or in pages; None for rows of the sizes above.
        expanded: whether MLA layers keep the keys and values of every head instead of latents.
        backend: of ``mla_decode``, for latents in pages.
        mtp: whether the layer of the model's MTP module is there too.

    Attributes:
        table: the lengths of the sequences, for all layers.
        layers: what each layer keeps.
        mtp: what the layer of the MTP module keeps, as the last layer does; or None.

    Raises:
        TypeError: ``config`` is not a ``ModelConfig``, ``table`` not a ``SequenceTable``, ``dtype`` or ``device`` none,
            or ``expanded`` or ``mtp`` neither True nor False.
        ValueError: a size is not positive, ``dtype`` is not one that a layer computes in, the backend is unknown, or
            there is no such device.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int = 1,
        max_seq_len: int = 4096,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        *,
        table: SequenceTable | None = None,
        expanded: bool = False,
        backend: Backend = "auto",
        mtp: bool = False,
    ):
        check_config(config, ModelConfig)
        for name, flag in (("expanded", expanded), ("mtp", mtp)):
            check_flag(name, flag)
        self.table = SequenceTable(batch_size, max_seq_len, device) if table is None else table

        def cache_of(part: GQAConfig | MLAConfig | Mamba2Config) -> LayerCache:
            if isinstance(part, Mamba2Config):
                return StateCache(part, self.table, dtype)
            if isinstance(part, GQAConfig) or expanded:
                if isinstance(self.table, PageTable):
                    return PagedKVCache(part, self.table, dtype)
                return KVCache(part, dtype=dtype, table=self.table)
            if isinstance(self.table, PageTable):
                return PagedLatentCache(part, self.table, dtype, backend)
            return LatentCache(part, dtype=dtype, table=self.table)

        self.layers = [cache_of(config.part(layer)) for layer in range(len(config.layers))]
        self.mtp = cache_of(config.part(-1)) if mtp else None

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
        return sum(layer.nbytes for layer in self.layers) + (self.mtp.nbytes if self.mtp else 0)

    def step(self, num_new: int, sequences: Sequence[int] | None = None) -> AbstractContextManager[Step]:
        """``table.step``: some of the sequences grow, each by ``num_new`` tokens; raises what that does."""
        return self.table.step(num_new, sequences)

    def truncate(self, length: int, sequences: Sequence[int] | None = None) -> None:
        """``table.truncate``: forget the tokens past the first ``length``; raises what that does."""
        self.table.truncate(length, sequences)
