"""A latent cache in pages: sequences of different lengths share one pool of memory.

A page holds ``page_size`` tokens. Token t of a sequence lies in slot ``t % page_size`` of page
``block_table[sequence, t // page_size]``; at most one page of a sequence is partly filled (Kwon et al. 2023, sec. 4).
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mla_edu.config import MLAConfig
from mla_edu.ops.fp8 import fp8_row_bytes, pack_fp8, unpack_fp8


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


class PagedLatentCache:
    """The latents and rotary keys of several sequences, each of its own length, in pages from one pool.

    A row is that of ``LatentCache``: ``c_kv`` after its norm, then ``k_pe``, rotated. Memory outside a sequence is
    never written nor read. ``pages``, ``block_table`` and ``seq_lens`` are what ``mla_decode`` takes.

    Args:
        config: of the layer that will fill it.
        num_pages: in the pool.
        page_size: tokens in a page.
        max_sequences: sequences at a time, numbered from 0.
        max_seq_len: tokens of the longest sequence; None for as many as the pool holds.
        dtype: of the stored numbers; ``torch.uint8`` for the fp8 layout of ``mla_edu.ops.fp8``.
        device: where they lie; None for torch's default.

    Attributes:
        pages: ``[num_pages, page_size, row]``, a row being ``kv_lora_rank + qk_rope_head_dim`` numbers or, in fp8,
            656 bytes for DeepSeek-V3.
        block_table: int32 ``[max_sequences, max_pages]``; -1 where no page is.
        seq_lens: int32 ``[max_sequences]``, on the device.
        lengths: the same on the host.

    Raises:
        TypeError: ``config`` is not an ``MLAConfig``.
        ValueError: a size is not positive, or ``config`` does not fit the fp8 layout.
    """

    def __init__(
        self,
        config: MLAConfig,
        num_pages: int,
        page_size: int = 64,
        max_sequences: int = 1,
        max_seq_len: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
    ):
        if not isinstance(config, MLAConfig):
            raise TypeError(f"config is a {type(config).__name__}; expected a MLAConfig")
        max_seq_len = num_pages * page_size if max_seq_len is None else max_seq_len
        sizes = {"num_pages": num_pages, "page_size": page_size, "max_sequences": max_sequences}
        for name, size in (sizes | {"max_seq_len": max_seq_len}).items():
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        width = config.elements_per_token
        if dtype == torch.uint8:
            width = fp8_row_bytes(config.kv_lora_rank, config.qk_rope_head_dim)
        self.config = config
        self.allocator = PageAllocator(num_pages)
        self.pages = torch.empty((num_pages, page_size, width), dtype=dtype, device=device)
        max_pages = -(-max_seq_len // page_size)
        self.block_table = torch.full((max_sequences, max_pages), -1, dtype=torch.int32, device=device)
        self.seq_lens = torch.zeros(max_sequences, dtype=torch.int32, device=device)
        self.lengths = [0] * max_sequences
        self.max_seq_len = max_seq_len
        self._pages_of: list[list[int]] = [[] for _ in range(max_sequences)]

    @property
    def page_size(self) -> int:
        return self.pages.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the pool, filled or not."""
        return self.pages.nbytes

    @property
    def _new_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.pages.dtype == torch.uint8 else self.pages.dtype

    def append(
        self,
        c_kv: Float[Tensor, "some new kv_lora_rank"],
        k_pe: Float[Tensor, "some new qk_rope_head_dim"],
        sequences: Sequence[int] | None = None,
    ) -> None:
        """Store the rows of new tokens, without their gradients; pages are taken from the pool as they are needed.

        Args:
            c_kv: latents, the same number of new tokens for each sequence.
            k_pe: rotated shared keys; with an fp8 cache both are bf16.
            sequences: which ones; None for all.

        Raises:
            ValueError: shape, dtype or device differ from the cache's, a sequence is unknown, named twice or would
                grow past ``max_seq_len``, or the pool has too few free pages; nothing is stored.
        """
        sequences = range(len(self.lengths)) if sequences is None else sequences
        self._check_sequences(sequences)
        num_new = c_kv.shape[1] if c_kv.ndim == 3 else 0
        widths = {"c_kv": self.config.kv_lora_rank, "k_pe": self.config.qk_rope_head_dim}
        for (name, width), new in zip(widths.items(), (c_kv, k_pe), strict=True):
            expected = (len(sequences), num_new, width)
            if new.shape != expected:
                raise ValueError(f"{name} has shape {list(new.shape)}; expected {list(expected)}")
            if (new.dtype, new.device) != (self._new_dtype, self.pages.device):
                raise ValueError(
                    f"{name} is {new.dtype} on {new.device}; expected {self._new_dtype} on {self.pages.device}"
                )
        for sequence in sequences:
            if (length := self.lengths[sequence] + num_new) > self.max_seq_len:
                raise ValueError(
                    f"sequence {sequence} would hold {length} tokens; expected at most max_seq_len = {self.max_seq_len}"
                )
        self._grow(sequences, num_new)

        rows = torch.cat((c_kv, k_pe), dim=-1).detach()
        if self.pages.dtype == torch.uint8:
            rows = pack_fp8(rows, self.config.kv_lora_rank)
        for sequence, new in zip(sequences, rows, strict=True):
            start, end = self.lengths[sequence], self.lengths[sequence] + num_new
            self.pages.flatten(0, 1)[self._slots(sequence, start, end)] = new
            self.lengths[sequence] = end
            self.seq_lens[sequence] = end

    def gather(self, sequence: int) -> Float[Tensor, "length row"]:
        """All rows of one sequence, in order: a copy, in float32 if the cache is fp8.

        Raises:
            ValueError: there is no such sequence.
        """
        self._check_sequences([sequence])
        rows = self.pages.flatten(0, 1)[self._slots(sequence, 0, self.lengths[sequence])]
        return unpack_fp8(rows, self.config.kv_lora_rank) if rows.dtype == torch.uint8 else rows

    def free(self, sequence: int) -> None:
        """Forget one sequence and give its pages back; it is empty afterwards.

        Raises:
            ValueError: there is no such sequence.
        """
        self._check_sequences([sequence])
        self.allocator.free(self._pages_of[sequence])
        self._pages_of[sequence] = []
        self.block_table[sequence] = -1
        self.seq_lens[sequence] = self.lengths[sequence] = 0

    def _check_sequences(self, sequences: Sequence[int]) -> None:
        for sequence in sequences:
            if not 0 <= sequence < len(self.lengths):
                raise ValueError(f"sequence is {sequence}; expected 0 to {len(self.lengths) - 1}")
        if len(set(sequences)) != len(sequences):
            raise ValueError(f"sequences is {list(sequences)}; expected each once")

    def _grow(self, sequences: Sequence[int], num_new: int) -> None:
        """Give each sequence the pages that ``num_new`` more tokens need; all of them or none."""
        missing = [
            -(-(self.lengths[sequence] + num_new) // self.page_size) - len(self._pages_of[sequence])
            for sequence in sequences
        ]
        fresh = self.allocator.allocate(sum(missing))
        for sequence, count in zip(sequences, missing, strict=True):
            held = self._pages_of[sequence]
            pages, fresh = fresh[:count], fresh[count:]
            self.block_table[sequence, len(held) : len(held) + count] = torch.tensor(pages, dtype=torch.int32)
            held += pages

    def _slots(self, sequence: int, start: int, end: int) -> Tensor:
        """Where tokens ``start`` to ``end`` lie in the pool seen as one list of rows."""
        positions = torch.arange(start, end, device=self.pages.device)
        pages = self.block_table[sequence, positions // self.page_size].long()
        return pages * self.page_size + positions % self.page_size
