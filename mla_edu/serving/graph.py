"""A decode step over buffers that stay where they are, so that a GPU can replay it as a CUDA graph.

An ordinary step is driven by the host, kernel by kernel, which for one token takes longer than the GPU computes. A
graph holds the whole step and starts at once, but always does the same to the same memory: batches are filled up to the
next of a few sizes, and what differs from step to step is copied into the graph's own input before.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mla_edu.cache.pages import PageTable
from mla_edu.cache.table import Step
from mla_edu.layers.moe import FEW
from mla_edu.models.cache import ModelCache
from mla_edu.models.decoder import Decoder

Outputs = tuple[Float[Tensor, "tokens hidden"], Float[Tensor, "tokens vocab"]]


class FixedStep(Step):
    """As many new tokens for each row of a batch, read from a buffer.

    Attributes:
        inputs: ``[size, 2 + 3 * num_new]``, on the device: for each row of the batch its row of the table, its length
            behind the step, its tokens, their places and their slots. A row that only fills up has length 0, and its
            slots in the spare page.
    """

    def __init__(self, table: PageTable, size: int, longest: int, num_new: int):
        self.table, self.num_new = table, num_new
        self.sequences = tuple(range(size))
        self.lengths = [longest] * size  # what the host decides by, once and for all
        self.inputs: Int[Tensor, "size numbers"] = torch.zeros(
            size, 2 + 3 * num_new, dtype=torch.long, device=table.seq_lens.device
        )
        self.index, self._lens = self.inputs[:, 0], self.inputs[:, 1]
        self.tokens, self.positions, self.slots = self.inputs[:, 2:].split(num_new, dim=1)

    def fill(self, tokens: Sequence[int], rows: Sequence[int]) -> None:
        """Copy in what a step is about: tokens for each of some rows of the table, whose pages have room for them."""
        table, num_new = self.table, self.num_new
        assert isinstance(table, PageTable)
        size, nowhere = table.page_size, table.allocator.num_pages * table.page_size
        values = []
        for i, row in enumerate(rows):
            places = range(table.lengths[row], table.lengths[row] + num_new)
            slots = [table.pages_of[row][place // size] * size + place % size for place in places]
            values.append([row, places.stop, *tokens[i * num_new : (i + 1) * num_new], *places, *slots])
        spare = [0] * (2 + 2 * num_new) + [nowhere] * num_new
        self.inputs.copy_(torch.tensor(values + [spare] * (len(self.sequences) - len(rows))))

    def begin(self) -> None:
        """Work out on the device what all layers share."""
        assert isinstance(self.table, PageTable)
        self.blocks = self.table.block_table[self.index]
        self.seq_lens = self._lens.int()


class DecodeGraphs:
    """A model's decode steps over one cache, each size recorded when it is first asked for.

    On a CPU the same step runs over the same buffers, and nothing is recorded.

    Args:
        model: all of whose layers are MLA.
        cache: over a ``PageTable`` with a spare page, for rows that fill up a batch.
    """

    def __init__(self, model: Decoder, cache: ModelCache):
        assert isinstance(cache.table, PageTable) and cache.table.spare_pages
        self._model, self._cache, self._table = model, cache, cache.table
        self._steps: dict[tuple[int, int], tuple[FixedStep, Callable[[], Outputs]]] = {}
        self._pool: Any = None  # one memory for all graphs: they never run at the same time

    def size(self, rows: int) -> int:
        """Rows of the batch that is computed for so many: the next power of two, or all of the table."""
        return min(1 << (rows - 1).bit_length(), self._table.batch_size)

    def holds(self, rows: int, num_new: int) -> bool:
        """Whether a step is small enough to be run from here: the filled-up batch has at most 256 tokens.

        With more, a GPU computes longer than the host takes to drive it, and a mixture of experts may read back.

        Args:
            rows: sequences of the step.
            num_new: new tokens of each.
        """
        return self.size(rows) * num_new <= FEW

    @torch.no_grad()
    def run(self, tokens: Sequence[int], rows: Sequence[int]) -> Outputs:
        """Take a step; a size of batch that is new is recorded first.

        Args:
            tokens: new ones, as many for each sequence: those of the first, those of the next, and so on.
            rows: of the table, one for each sequence, all in the step that is under way there.

        Returns:
            Hidden states ``[tokens, hidden]`` and logits ``[tokens, vocab]`` behind each new token. They lie in the
            graph's own memory, which the next call writes over.
        """
        size, num_new = self.size(len(rows)), len(tokens) // len(rows)
        is_new = (size, num_new) not in self._steps
        if is_new:
            longest = max(self._table.lengths[row] for row in rows) + num_new
            step = FixedStep(self._table, size, longest, num_new)
        else:
            step, call = self._steps[size, num_new]
        step.fill(tokens, rows)
        if is_new:
            call = self._record(step)
            self._steps[size, num_new] = step, call
        hidden, logits = call()
        return hidden[: len(tokens)], logits[: len(tokens)]

    def _record(self, step: FixedStep) -> Callable[[], Outputs]:
        def compute() -> Outputs:
            step.begin()
            hidden = self._model.hidden_states(step.tokens.reshape(1, -1), self._cache, [step])[0]
            return hidden, self._model.logits(hidden)

        if step.inputs.device.type != "cuda":
            return compute
        compute()  # so that nothing is left to compile, to load or to plan
        torch.cuda.synchronize()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                outputs = compute()
        except BaseException:
            torch.cuda.set_stream(stream)  # a capture that fails may leave its own
            raise

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay
