"""Sequences in pages: a table whose sequences share one pool of memory.

A page holds ``page_size`` tokens. Token t of a sequence lies in slot ``t % page_size`` of page
``block_table[sequence, t // page_size]``; at most one page of a sequence is partly filled (Kwon et al. 2023, sec. 4).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from mla_edu.cache.table import SequenceTable, Step, check_sizes
from mla_edu.validation import check_integer

NO_PAGE = -1


class PageAllocator:
    """Which pages of a pool are in use, and by how many sequences. No page is handed out twice, none is lost.

    Args:
        num_pages: in the pool; they are numbered from 0.

    Attributes:
        users: of each page, how many sequences hold it.

    Raises:
        ValueError: ``num_pages`` is not positive.
    """

    def __init__(self, num_pages: int):
        check_sizes(num_pages=num_pages)
        self.num_pages = num_pages
        self.users = [0] * num_pages
        self._free = list(reversed(range(num_pages)))

    @property
    def num_free(self) -> int:
        """Pages that can be handed out."""
        return len(self._free)

    @property
    def num_held(self) -> int:
        """Pages in use."""
        return self.num_pages - self.num_free

    def allocate(self, count: int) -> list[int]:
        """Hand out ``count`` pages.

        Raises:
            ValueError: ``count`` is negative, or fewer are free; none is handed out.
        """
        check_integer("count", count, lowest=0)
        if count > self.num_free:
            raise ValueError(f"count is {count} pages; expected at most the {self.num_free} free of {self.num_pages}")
        pages = [self._take() for _ in range(count)]
        for page in pages:
            self.users[page] = 1
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Let one more sequence hold pages that are there.

        Raises:
            ValueError: one of them is not in use, or is named twice; none is shared.
        """
        self._check(pages, self._is_there)
        for page in pages:
            self.users[page] += 1

    def free(self, pages: Iterable[int]) -> None:
        """Take pages back from one of the sequences that hold them.

        Raises:
            ValueError: one of them is not in use, or named twice; none is taken back.
        """
        pages = list(pages)
        self._check(pages, self._is_held)
        for page in reversed(pages):
            self.users[page] -= 1
            if not self.users[page]:
                self._put_back(page)

    def _take(self) -> int:
        return self._free.pop()

    def _put_back(self, page: int) -> None:
        self._free.append(page)

    def _is_held(self, page: int) -> bool:
        return 0 <= page < self.num_pages and self.users[page] > 0

    def _is_there(self, page: int) -> bool:
        return self._is_held(page)

    def _check(self, pages: Sequence[int], is_right: Callable[[int], bool]) -> None:
        if len(set(pages)) != len(pages) or not all(map(is_right, pages)):
            raise ValueError(f"pages is {list(pages)}; expected pages in use, each once")


class PageTable(SequenceTable):
    """Lengths and pages of sequences that share one pool; pages are taken as they are needed.

    Memory outside a sequence is never written nor read. ``truncate`` gives whole pages back.

    Args:
        num_pages: in the pool.
        page_size: tokens in a page.
        batch_size: sequences at a time, numbered from 0.
        max_seq_len: tokens of the longest sequence; None for as many as the pool holds.
        device: where the caches lie; None for torch's default.
        allocator: of the pool; None for one that knows nothing of what the pages hold.
        spare_pages: pages of memory behind the pool, which no sequence is ever given: room for what is computed to fill
            up a batch.

    Attributes:
        allocator: of the pool.
        block_table: int32 ``[batch_size, max_pages]``, on the device; -1 where no page is.
        pages_of: the pages of each sequence, on the host.

    Raises:
        TypeError: ``device`` is not a device.
        ValueError: a size is not positive, or there is no such device.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int = 64,
        batch_size: int = 1,
        max_seq_len: int | None = None,
        device: torch.device | str | None = None,
        *,
        allocator: PageAllocator | None = None,
        spare_pages: int = 0,
    ):
        check_sizes(num_pages=num_pages, page_size=page_size)
        super().__init__(batch_size, num_pages * page_size if max_seq_len is None else max_seq_len, device)
        self.page_size, self.spare_pages = page_size, spare_pages
        self.allocator = allocator or PageAllocator(num_pages)
        self.pages_of: list[list[int]] = [[] for _ in range(batch_size)]
        max_pages = -(-self.max_seq_len // page_size)
        self.block_table = torch.full((batch_size, max_pages), NO_PAGE, dtype=torch.int32, device=device)

    @property
    def memory_shape(self) -> tuple[int, int]:
        """What the memory of a layer begins with: ``(num_pages + spare_pages, page_size)``."""
        return self.allocator.num_pages + self.spare_pages, self.page_size

    def blocks(self, step: Step) -> Int[Tensor, "batch max_pages"]:
        """The block table of a step's sequences; picked out for its first layer, and true for all."""
        if step.blocks is None:
            step.blocks = step.select(self.block_table)
        return step.blocks

    def write(self, memory: Tensor, new: Tensor) -> None:
        """Put the new tokens of the step under way into a layer's memory, ``[*memory_shape, ...]``."""
        memory.flatten(0, 1)[self.new_slots(self.now())] = new

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
            TypeError: ``sequence`` is no integer.
            ValueError: there is no such sequence, or a step is under way.
        """
        self.truncate(0, [sequence])

    def adopt(self, sequence: int, pages: Sequence[int]) -> None:
        """Begin an empty sequence with full pages that the allocator keeps, in the order of their tokens.

        Raises:
            TypeError: ``sequence`` is no integer.
            ValueError: there is no such sequence, it is not empty, the pages are more than fit, or a page is not kept;
                nothing is changed.
        """
        self.check_sequences([sequence])
        length = len(pages) * self.page_size
        if self._steps or self.pages_of[sequence] or length > self.max_seq_len:
            raise ValueError(
                f"sequence {sequence} holds {self.lengths[sequence]} tokens; expected an empty one outside of a step, "
                f"for {length} of at most max_seq_len = {self.max_seq_len} tokens"
            )
        self.allocator.share(pages)
        self.pages_of[sequence] = list(pages)
        self.block_table[sequence, : len(pages)] = torch.tensor(self.pages_of[sequence], dtype=torch.int32)
        self.lengths[sequence] = length
        self.seq_lens[sequence] = length

    def new_slots(self, step: Step) -> Int[Tensor, "batch num_new"]:
        """Where the new tokens of a step lie in the pool; reckoned for its first layer, and true for all."""
        if step.slots is None:
            step.slots = self._slots(self.blocks(step), step.positions)
        return step.slots

    def _slots(self, block_table: Int[Tensor, "batch max_pages"], positions: Int[Tensor, "batch tokens"]) -> Tensor:
        """Where tokens lie in the pool, counted in tokens from its start."""
        pages = block_table.gather(1, (positions // self.page_size).long()).long()
        return pages * self.page_size + positions % self.page_size

    def num_missing_pages(self, sequence: int, num_new: int) -> int:
        """Pages that a sequence lacks for so many new tokens."""
        return max(-(-(self.lengths[sequence] + num_new) // self.page_size) - len(self.pages_of[sequence]), 0)

    def _reserve(self, steps: Sequence[Step]) -> None:
        missing = {each: self.num_missing_pages(each, step.num_new) for step in steps for each in step.sequences}
        pages = self.allocator.allocate(sum(missing.values()))
        for sequence, count in missing.items():
            held = self.pages_of[sequence]
            held += [pages.pop(0) for _ in range(count)]
            if count:
                self.block_table[sequence, len(held) - count : len(held)] = torch.tensor(held[-count:])

    def _release(self, sequences: Sequence[int]) -> None:
        for sequence in sequences:
            held, keep = self.pages_of[sequence], -(-self.lengths[sequence] // self.page_size)
            if len(held) > keep:
                self.allocator.free(held[keep:])
                self.pages_of[sequence] = held[:keep]
                self.block_table[sequence, keep:] = NO_PAGE
