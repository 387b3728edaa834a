"""How many tokens each sequence holds, and where they lie: one table for all layers of a model.

A step adds the same number of tokens to some sequences. While it runs, every layer writes its part of the new tokens
and attends; the lengths grow when it ends, or stay what they were if it fails::

    with table.step(num_new=1):
        for block, cache in zip(blocks, caches):
            x = block(x, cache)

Sequences that grow by different numbers do so in groups, ``table.steps``, and a layer takes one group after the other.
A layer that is called outside a step makes one of its own. Within a step nothing is read back from the device and
nothing copied to it, so that a step over pages can be captured as a CUDA graph.
"""

import operator
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import SupportsIndex

import torch
from jaxtyping import Int, Int32
from torch import Tensor

from mla_edu.validation import check_device, check_integer, shown

MOST = 2**31 - 1  # tokens, pages or sequences of a table


class Step:
    """Tokens on their way into some sequences of a table.

    Attributes:
        sequences: which ones, in the order of the batch.
        num_new: how many for each; 0 for a step that only looks.
        lengths: tokens of each sequence, the new ones included.
        index: ``sequences`` on the device; None where they are all of the table's, in order.
        slots: where a table of pages puts the new tokens, once a layer has asked.
        blocks: the sequences' rows of its block table, likewise.
    """

    slots: Tensor | None = None
    blocks: Tensor | None = None

    def __init__(self, table: "SequenceTable", sequences: Sequence[int] | None, num_new: int):
        self.table = table
        self.num_new = num_new
        self.sequences = tuple(range(table.batch_size) if sequences is None else sequences)
        self.lengths = [table.lengths[sequence] + num_new for sequence in self.sequences]
        everything = len(self.sequences) == table.batch_size and self.sequences == tuple(range(table.batch_size))
        self.index = (
            None if everything else torch.tensor(self.sequences, dtype=torch.long, device=table.seq_lens.device)
        )

    def select(self, tensor: Tensor) -> Tensor:
        """The rows of a tensor, one for each sequence of the table, that belong to the step's sequences."""
        return tensor if self.index is None else tensor[self.index]

    @property
    def is_even(self) -> bool:
        """Whether all sequences of the table take part and are equally long."""
        return self.index is None and len(set(self.lengths)) == 1

    @cached_property
    def seq_lens(self) -> Int32[Tensor, " batch"]:
        """``lengths`` on the device."""
        return self.select(self.table.seq_lens) + self.num_new

    @cached_property
    def positions(self) -> Int[Tensor, "batch num_new"]:
        """Of the new tokens, each counted from the start of its sequence."""
        new = torch.arange(self.num_new, device=self.table.seq_lens.device)
        return self.select(self.table.seq_lens)[:, None] + new


class SequenceTable:
    """The lengths of a batch of sequences, each in a row of memory of its own.

    Args:
        batch_size: sequences, numbered from 0.
        max_seq_len: tokens that fit in each.
        device: where the caches lie; None for torch's default.

    Attributes:
        lengths: tokens that each sequence holds, on the host.
        seq_lens: the same, int32 on the device.

    Raises:
        TypeError: ``device`` is not a device.
        ValueError: a size is out of range, or there is no such device.
    """

    def __init__(self, batch_size: int = 1, max_seq_len: int = 4096, device: torch.device | str | None = None):
        check_sizes(batch_size=batch_size, max_seq_len=max_seq_len)
        check_device(device)
        self.max_seq_len = max_seq_len
        self.lengths = [0] * batch_size
        self.seq_lens = torch.zeros(batch_size, dtype=torch.int32, device=device)
        self._steps: list[Step] = []
        self._running: Step | None = None

    @property
    def batch_size(self) -> int:
        """Sequences, growing or empty."""
        return len(self.lengths)

    @property
    def memory_shape(self) -> tuple[int, int]:
        """What the memory of a layer begins with: ``(batch_size, max_seq_len)``."""
        return self.batch_size, self.max_seq_len

    @contextmanager
    def step(self, num_new: int, sequences: Collection[SupportsIndex] | None = None) -> Iterator[Step]:
        """Add ``num_new`` tokens to each of some sequences; within a step under way, take part in it.

        Args:
            num_new: how many.
            sequences: which ones, in the order of the batch; None for all, or those of the step under way.

        Raises:
            TypeError: ``sequences`` is no collection of integers.
            ValueError: ``num_new`` is negative, a sequence is unknown, named twice or would grow past ``max_seq_len``,
                too few pages are free, or the step under way is another one. Nothing is changed.
        """
        if self._running is not None:
            self._check_same(self._running, num_new, sequences)
            yield self._running
            return
        everything = range(self.batch_size) if sequences is None else sequences
        with self.steps([(num_new, everything)]) as (step,), self.turn(step):
            yield step

    @contextmanager
    def steps(self, groups: Sequence[tuple[int, Collection[SupportsIndex]]]) -> Iterator[list[Step]]:
        """Add tokens to groups of sequences, to each sequence of a group as many; all grow, or none.

        Args:
            groups: pairs: how many new tokens, and for which sequences. ``turn`` says which group a layer is at.

        Raises:
            TypeError: the sequences of a group are no collection of integers.
            ValueError: a number of tokens is negative, a sequence is unknown, named twice or would grow past
                ``max_seq_len``, too few pages are free, or a step is under way. Nothing is changed.
        """
        if self._steps:
            raise ValueError("a step is under way; expected steps after it")
        numbered = [(check_integer("num_new", num_new, 0), self.check_sequences(these)) for num_new, these in groups]
        self.check_sequences([sequence for _, these in numbered for sequence in these])
        steps = [Step(self, these, num_new) for num_new, these in numbered]
        for step in steps:
            for sequence, length in zip(step.sequences, step.lengths, strict=True):
                if length > self.max_seq_len:
                    raise ValueError(
                        f"{step.num_new} new tokens after {self.lengths[sequence]} cached ones of sequence {sequence}; "
                        f"expected at most max_seq_len = {self.max_seq_len} in all"
                    )
        self._reserve(steps)
        self._steps = steps
        try:
            yield steps
        except BaseException:
            self._steps = []
            for step in steps:
                self._release(step.sequences)
            raise
        self._steps = []
        for step in steps:
            for sequence, length in zip(step.sequences, step.lengths, strict=True):
                self.lengths[sequence] = length
            if step.index is None:
                self.seq_lens += step.num_new
            else:
                self.seq_lens[step.index] += step.num_new

    @contextmanager
    def turn(self, step: Step) -> Iterator[None]:
        """While it lasts, layers are at ``step``, one of those under way."""
        self._running = step
        try:
            yield
        finally:
            self._running = None

    def now(self) -> Step:
        """The step under way; outside of one, an empty step over all sequences."""
        return self._running or Step(self, None, 0)

    def truncate(self, length: int, sequences: Collection[SupportsIndex] | None = None) -> None:
        """Forget the tokens past the first ``length`` of each sequence that holds more.

        Raises:
            TypeError: ``sequences`` is no collection of integers.
            ValueError: ``length`` is negative, a sequence is unknown or named twice, or a step is under way.
        """
        check_integer("length", length, 0)
        if self._steps:
            raise ValueError("a step is under way; expected truncate after it")
        chosen = range(self.batch_size) if sequences is None else self.check_sequences(sequences)
        longer = [sequence for sequence in chosen if self.lengths[sequence] > length]
        for sequence in longer:
            self.lengths[sequence] = length
        if sequences is None:
            self.seq_lens.clamp_(max=length)  # nothing crosses from the host: a CUDA graph can hold it
        elif longer:
            self.seq_lens[longer] = length
        self._release(longer)

    def check_sequences(self, sequences: Collection[SupportsIndex]) -> list[int]:
        """The sequences as a list of their numbers.

        Raises:
            TypeError: they are no sequence of integers.
            ValueError: one of them is unknown, or named twice.
        """
        try:
            found = [as_integer(each) for each in sequences]
        except TypeError:
            raise TypeError(f"sequences is {shown(sequences)}; expected integers, each once") from None
        for sequence in found:
            if not 0 <= sequence < self.batch_size:
                raise ValueError(f"sequence is {sequence}; expected 0 to {self.batch_size - 1}")
        if len(set(found)) != len(found):
            raise ValueError(f"sequences is {found}; expected each once")
        return found

    def write(self, memory: Tensor, new: Tensor) -> None:
        """Put the new tokens of the step under way into a layer's memory, ``[*memory_shape, ...]``."""
        step = self.now()
        if step.is_even:
            end = step.lengths[0]
            memory[:, end - step.num_new : end] = new
            return
        for sequence, end, tokens in zip(step.sequences, step.lengths, new, strict=True):
            memory[sequence, end - step.num_new : end] = tokens

    def read(self, *memory: Tensor) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
        """What sequences hold, the new tokens included: places in the batch, and views ``[those, length, ...]``.

        All sequences come at once where they are equally long, else one after the other.
        """
        step = self.now()
        if step.is_even:
            yield slice(None), tuple(each[:, : step.lengths[0]] for each in memory)
            return
        for b, (sequence, length) in enumerate(zip(step.sequences, step.lengths, strict=True)):
            yield slice(b, b + 1), tuple(each[sequence : sequence + 1, :length] for each in memory)

    def _reserve(self, steps: Sequence[Step]) -> None:
        """Make room for steps; a row of memory has it."""

    def _release(self, sequences: Sequence[int]) -> None:
        """Give back the room past the lengths of some sequences; a row of memory keeps it."""

    def _check_same(self, running: Step, num_new: int, sequences: Collection[SupportsIndex] | None) -> None:
        if num_new != running.num_new:
            raise ValueError(f"num_new is {num_new}; expected {running.num_new}, as in the step under way")
        if sequences is None:
            return
        if (found := self.check_sequences(sequences)) != list(running.sequences):
            raise ValueError(f"sequences is {found}; expected {list(running.sequences)}, as in the step under way")


def check_sizes(**sizes: int) -> None:
    """Raise ``ValueError`` for the first size that is not positive, or that a table, in int32, cannot count."""
    for name, size in sizes.items():
        check_integer(name, size)
        check_integer(name, size, 1, MOST)


def as_integer(value: SupportsIndex) -> int:
    """An integer of Python, of numpy or of a tensor, but no bool; raises ``TypeError`` for anything else."""
    if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
        raise TypeError("a bool is no integer")
    return operator.index(value)
