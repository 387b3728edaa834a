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

Outputs = tuple[Float[Tensor, "batch hidden"], Float[Tensor, "batch vocab"]]


class FixedStep(Step):
    """One new token for each row of a batch, read from a buffer: tokens, rows of the table, places, lengths, slots.

    Attributes:
        inputs: ``[5, size]``, on the device. A row that only fills up has length 0, and its slot in the spare page.
    """

    def __init__(self, table: PageTable, size: int, longest: int):
        self.table, self.num_new = table, 1
        self.sequences = tuple(range(size))
        self.lengths = [longest] * size  # what the host decides by, once and for all
        self.inputs: Int[Tensor, "five size"] = torch.zeros(5, size, dtype=torch.long, device=table.seq_lens.device)
        self.tokens, self.index, positions, self._lens, slots = self.inputs.unbind()
        self.positions, self.slots = positions[:, None], slots[:, None]

    def fill(self, tokens: Sequence[int], rows: Sequence[int]) -> None:
        """Copy in what a step is about: a token for each of some rows of the table, whose pages have room for it."""
        table = self.table
        assert isinstance(table, PageTable)
        spare = [0] * (len(self.sequences) - len(rows))
        places = [table.lengths[row] for row in rows]
        pages = [table.pages_of[row][place // table.page_size] for row, place in zip(rows, places, strict=True)]
        slots = [page * table.page_size + place % table.page_size for page, place in zip(pages, places, strict=True)]
        nowhere = [table.allocator.num_pages * table.page_size] * len(spare)
        lengths = [place + 1 for place in places]
        values = [[*tokens, *spare], [*rows, *spare], places + spare, lengths + spare, slots + nowhere]
        self.inputs.copy_(torch.tensor(values))

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

    Attributes:
        largest: rows of the largest batch.
    """

    def __init__(self, model: Decoder, cache: ModelCache):
        assert isinstance(cache.table, PageTable) and cache.table.spare_pages
        self._model, self._cache, self._table = model, cache, cache.table
        self.largest = min(self._table.batch_size, FEW)
        self._steps: dict[int, tuple[FixedStep, Callable[[], Outputs]]] = {}
        self._pool: Any = None  # one memory for all graphs: they never run at the same time

    @torch.no_grad()
    def run(self, tokens: Sequence[int], rows: Sequence[int]) -> Outputs:
        """Hidden states and logits behind one new token of each sequence; good until the next call.

        Args:
            tokens: one for each.
            rows: of the table, in a step of which the sequences are.
        """
        size = min(1 << (len(rows) - 1).bit_length(), self.largest)
        is_new = size not in self._steps
        if is_new:
            step = FixedStep(self._table, size, max(self._table.lengths[row] for row in rows) + 1)
        else:
            step, call = self._steps[size]
        step.fill(tokens, rows)
        if is_new:
            call = self._record(step)
            self._steps[size] = step, call
        hidden, logits = call()
        return hidden[: len(rows)], logits[: len(rows)]

    def _record(self, step: FixedStep) -> Callable[[], Outputs]:
        def compute() -> Outputs:
            step.begin()
            hidden = self._model.hidden_states(step.tokens[None], self._cache, [step])[0]
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
