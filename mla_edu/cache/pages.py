"""Sequences in pages: a table whose sequences share one pool of memory.

A page holds ``page_size`` tokens. Token t of a sequence lies in slot ``t % page_size`` of page
``block_table[sequence, t // page_size]``; at most one page of a sequence is partly filled (Kwon et al. 2023, sec. 4).
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from mla_edu.cache.table import SequenceTable, Step, check_sizes

NO_PAGE = -1


class PageAllocator:
    """Which pages of a pool are in use. No page is handed out twice, none is lost.

    Args:
        num_pages: in the pool; they are numbered from 0.
    """

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free = list(reversed(range(num_pages)))
        self._used: set[int] = set()

    @property
    def num_free(self) -> int:
        """Pages that can be handed out."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Hand out ``count`` pages.

        Raises:
            ValueError: fewer are free; none is handed out.
        """
        if not 0 <= count <= self.num_free:
            raise ValueError(f"{count} pages are needed; expected at most the {self.num_free} free of {self.num_pages}")
        pages = [self._free.pop() for _ in range(count)]
        self._used.update(pages)
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Take pages back.

        Raises:
            ValueError: one of them is not in use, or named twice; none is taken back.
        """
        pages = list(pages)
        if len(set(pages)) != len(pages) or not self._used.issuperset(pages):
            raise ValueError(f"pages is {pages}; expected pages in use, each once")
        self._used.difference_update(pages)
        self._free.extend(reversed(pages))


class PageTable(SequenceTable):
    """Lengths and pages of sequences that share one pool; pages are taken as they are needed.

    Memory outside a sequence is never written nor read. ``truncate`` gives whole pages back.

    Args:
        num_pages: in the pool.
        page_size: tokens in a page.
        batch_size: sequences at a time, numbered from 0.
        max_seq_len: tokens of the longest sequence; None for as many as the pool holds.
        device: where the caches lie; None for torch's default.

    Attributes:
        allocator: of the pool.
        block_table: int32 ``[batch_size, max_pages]``, on the device; -1 where no page is.
        pages_of: the pages of each sequence, on the host.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int = 64,
        batch_size: int = 1,
        max_seq_len: int | None = None,
        device: torch.device | str | None = None,
    ):
        check_sizes(num_pages=num_pages, page_size=page_size)
        super().__init__(batch_size, num_pages * page_size if max_seq_len is None else max_seq_len, device)
        self.page_size = page_size
        self.allocator = PageAllocator(num_pages)
        self.pages_of: list[list[int]] = [[] for _ in range(batch_size)]
        max_pages = -(-self.max_seq_len // page_size)
        self.block_table = torch.full((batch_size, max_pages), NO_PAGE, dtype=torch.int32, device=device)

    @property
    def memory_shape(self) -> tuple[int, int]:
        """What the memory of a layer begins with: ``(num_pages, page_size)``."""
        return self.allocator.num_pages, self.page_size

    def write(self, memory: Tensor, new: Tensor) -> None:
        """Put the new tokens of the step under way into a layer's memory, ``[*memory_shape, ...]``."""
        step = self.now()
        memory.flatten(0, 1)[self._slots(step.select(self.block_table), step.positions)] = new

    def read(self, *memory: Tensor) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
        """What sequences hold, the new tokens included, one after the other: places in the batch, and copies."""
        step = self.now()
        for b, (sequence, length) in enumerate(zip(step.sequences, step.lengths, strict=True)):
            positions = torch.arange(length, device=self.block_table.device)[None]
            slots = self._slots(self.block_table[sequence : sequence + 1], positions)
            yield slice(b, b + 1), tuple(each.flatten(0, 1)[slots] for each in memory)

    def free(self, sequence: int) -> None:
        """Give the pages of a sequence back; its length is 0 again.

        Raises:
            ValueError: there is no such sequence, or a step is under way.
        """
        self.truncate(0, [sequence])

    def _slots(self, block_table: Int[Tensor, "batch max_pages"], positions: Int[Tensor, "batch tokens"]) -> Tensor:
        """Where tokens lie in the pool, counted in tokens from its start."""
        pages = block_table.gather(1, (positions // self.page_size).long()).long()
        return pages * self.page_size + positions % self.page_size

    def _reserve(self, step: Step) -> None:
        missing = [
            max(-(-length // self.page_size) - len(self.pages_of[sequence]), 0)
            for sequence, length in zip(step.sequences, step.lengths, strict=True)
        ]
        pages = self.allocator.allocate(sum(missing))
        for sequence, count in zip(step.sequences, missing, strict=True):
            held = self.pages_of[sequence]
            held += [pages.pop() for _ in range(count)]
            if count:
                self.block_table[sequence, len(held) - count : len(held)] = torch.tensor(held[-count:])

    def _release(self, sequences: Sequence[int]) -> None:
        for sequence in sequences:
            held, keep = self.pages_of[sequence], -(-self.lengths[sequence] // self.page_size)
            if len(held) > keep:
                self.allocator.free(held[keep:])
                self.pages_of[sequence] = held[:keep]
                self.block_table[sequence, keep:] = NO_PAGE
