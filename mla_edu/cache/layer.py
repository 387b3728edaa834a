"""What the caches of all kinds of layers share."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import SupportsIndex

import torch
from torch import Tensor

from mla_edu.cache.pages import PageTable
from mla_edu.cache.table import SequenceTable, Step
from mla_edu.config import GQAConfig, Mamba2Config, MLAConfig
from mla_edu.validation import shown

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # what layers compute in


class LayerCache:
    """What one layer keeps of the tokens of a table's sequences.

    Attributes:
        config: of the layer that fills it.
        table: which tokens there are, and where; other layers may share it.
        memory: the tensors that hold them, each ``[*table.memory_shape, ...]``.
    """

    config: GQAConfig | MLAConfig | Mamba2Config

    def __init__(self, table: SequenceTable, *memory: Tensor):
        self.table = table
        self.memory = memory

    @property
    def batch_size(self) -> int:
        """Sequences of the table."""
        return self.table.batch_size

    @property
    def max_seq_len(self) -> int:
        """Tokens of the longest sequence that fits."""
        return self.table.max_seq_len

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
        if len(set(self.lengths)) != 1:
            raise ValueError(f"lengths is {self.lengths}; expected all equal, or ask for lengths")
        return self.lengths[0]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, filled or not."""
        return sum(tensor.nbytes for tensor in self.memory)

    @property
    def new_dtype(self) -> torch.dtype:
        """What new tokens come in."""
        return self.memory[0].dtype

    def step(self, num_new: int, sequences: Collection[SupportsIndex] | None = None) -> AbstractContextManager[Step]:
        """``table.step``: some of the sequences grow, each by ``num_new`` tokens; raises what that does."""
        return self.table.step(num_new, sequences)

    def truncate(self, length: int, sequences: Collection[SupportsIndex] | None = None) -> None:
        """``table.truncate``: forget the tokens past the first ``length``; raises what that does."""
        self.table.truncate(length, sequences)

    def check(self, dtype: torch.dtype, device: torch.device) -> None:
        """Raise ``ValueError`` unless new tokens of this dtype on this device can be stored."""
        held = self.memory[0].device
        if (dtype, device) != (self.new_dtype, held):
            raise ValueError(f"new tokens are {dtype} on {device}; expected {self.new_dtype} on {held}, as the cache")

    def _check_new(self, step: Step, **expected: tuple[Tensor, Sequence[int]]) -> None:
        """Raise ``ValueError`` unless every tensor has a token of the given shape for each new one of the step."""
        for name, (new, shape) in expected.items():
            wanted = (len(step.sequences), step.num_new, *shape)
            if new.shape != wanted:
                raise ValueError(f"{name} has shape {list(new.shape)}; expected {list(wanted)}")
            self.check(new.dtype, new.device)


def check_config(config: object, *kinds: type) -> None:
    """Raise ``TypeError`` unless ``config`` is one of a layer of these kinds."""
    if not isinstance(config, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"config is a {type(config).__name__}; expected a {expected}")


def check_dtype(dtype: object, *further: torch.dtype) -> None:
    """Raise an error unless a cache can hold numbers of this dtype.

    Args:
        dtype: of the cache.
        further: what it can hold besides what a layer computes in.

    Raises:
        TypeError: it is no ``torch.dtype``.
        ValueError: it is another one.
    """
    known = (*FLOATS, *further)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype is {shown(dtype)}; expected a torch.dtype such as torch.bfloat16")
    if dtype not in known:
        raise ValueError(f"dtype is {dtype}; expected {', '.join(map(str, known[:-1]))} or {known[-1]}")


def check_table(table: object, kind: type[SequenceTable] = PageTable) -> None:
    """Raise ``TypeError`` unless ``table`` is of a kind."""
    if not isinstance(table, kind):
        raise TypeError(f"table is a {type(table).__name__}; expected a {kind.__name__}")
