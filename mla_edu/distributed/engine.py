"""Engines whose model is dealt over ranks, one for each way of dealing.

Each rank has an engine of its own and calls it as the others do: a step is made by all of them or by none. None is
captured as a CUDA graph.
"""

from collections.abc import Sequence
from typing import TypedDict, Unpack

import torch

from mla_edu.cache.layer import LayerCache
from mla_edu.cache.pages import PageTable
from mla_edu.config import MLAConfig
from mla_edu.distributed.context import ContextLatentCache
from mla_edu.distributed.model import context_parallel, data_parallel, layers_of, tensor_parallel
from mla_edu.distributed.ranks import Ranks, check_ranks
from mla_edu.distributed.requests import Meeting
from mla_edu.kernels.api import Backend
from mla_edu.models.cache import ModelCache
from mla_edu.models.config import ModelConfig
from mla_edu.models.decoder import Decoder
from mla_edu.serving.draft import Drafter, MTPDrafter
from mla_edu.serving.engine import Engine, Storage, params_of_each
from mla_edu.serving.request import Event, Request, SamplingParams
from mla_edu.serving.schedule import Work


class ContextOptions(TypedDict, total=False):
    """Arguments that a ``ContextParallelEngine`` hands on to ``Engine``."""

    page_size: int
    max_batch_tokens: int
    backend: Backend
    drafter: Drafter | None
    share_prefixes: bool | None


class Options(ContextOptions, total=False):
    """Arguments that the other engines hand on to ``Engine``."""

    mla: Storage


class LockstepEngine(Engine):
    """What engines share whose ranks all work on the same requests: all plan the same steps, or say that they do not.

    Attributes:
        ranks: that work together.
    """

    ranks: Ranks

    def step(self) -> list[Event]:
        """As ``Engine.step``, on all ranks at once.

        Raises:
            ValueError: the ranks do not have the same requests at the same place; nothing was computed.
            RankLost: a rank has ended, or did not come in time.
        """
        here = [*self.scheduler.running, *self.scheduler.waiting]
        places = [(each.number, each.state, len(each.tokens), each.tokens[-1], each.drafts) for each in here]
        self.ranks.check_same(requests=places)
        return super().step()

    def _request(self, prompt_tokens: Sequence[int], params: SamplingParams) -> Request:
        request = super()._request(prompt_tokens, params)
        if params.temperature and params.seed is None:
            raise ValueError("seed is None; expected a number, since all ranks have to draw the same tokens")
        return request


class TensorParallelEngine(LockstepEngine):
    """An engine whose heads and inner widths are dealt over the ranks; every rank keeps the latents of all tokens.

    Args:
        model: whole, the same on all ranks; each keeps its part.
        ranks: among which it is dealt.
        num_pages: of the pool, in every layer and on every rank.
        options: the others of ``Engine``.

    Raises:
        TypeError: as ``Engine``, ``ranks`` is not a ``Ranks``, or a layer is neither attention nor an MLP.
        ValueError: as ``Engine``; there are more ranks than heads; or an argument differs between ranks.
    """

    def __init__(self, model: Decoder, ranks: Ranks, num_pages: int, **options: Unpack[Options]):
        self.ranks = ranks
        _check_same(ranks, self, num_pages, options)
        super().__init__(tensor_parallel(model, ranks), num_pages, capture=False, **options)


class ContextParallelEngine(LockstepEngine):
    """An engine whose tokens are dealt over the ranks, one after the other in turn: W ranks keep W times as many.

    Args:
        model: whole, the same on all ranks; all its layers are MLA. Each rank keeps its heads and inner widths.
        ranks: among which it is dealt.
        num_pages: of the pool, in every layer. ``page_size`` tokens of each, a W-th lies on each rank.
        before_absorption: exchange the queries before W_UK has widened them.
        options: the others of ``Engine`` but ``mla``.

    Raises:
        TypeError: as ``Engine``, ``ranks`` is not a ``Ranks``, or a layer is not MLA.
        ValueError: as ``Engine``; a page does not divide by the ranks; there are more ranks than heads; or an argument
            differs between ranks.
    """

    def __init__(
        self,
        model: Decoder,
        ranks: Ranks,
        num_pages: int,
        *,
        before_absorption: bool = False,
        **options: Unpack[ContextOptions],
    ):
        self.ranks = ranks
        _check_same(ranks, self, num_pages, options)
        dealt = context_parallel(model, ranks, before_absorption=before_absorption)
        super().__init__(dealt, num_pages, capture=False, **options)

    def _new_cache(self, backend: Backend, mtp: bool) -> ModelCache:
        dtype = self.model.embed_tokens.weight.dtype
        return ContextModelCache(self.model.config, self.table, self.ranks, dtype, backend, mtp=mtp)


class ContextModelCache(ModelCache):
    """A rank's part of what the MLA layers of a model keep: a ``ContextLatentCache`` for each, over one table.

    Args:
        config: of the model that this rank has; all its layers are MLA.
        table: lengths and pages of the whole sequences.
        ranks: over which the tokens are dealt.
        dtype: of the stored numbers.
        backend: of ``mla_decode``.
        mtp: whether the layer of the model's MTP module is there too.
    """

    def __init__(
        self,
        config: ModelConfig,
        table: PageTable,
        ranks: Ranks,
        dtype: torch.dtype = torch.bfloat16,
        backend: Backend = "auto",
        *,
        mtp: bool = False,
    ):
        self.table = table

        def cache_of(layer: int) -> LayerCache:
            part = config.part(layer)
            assert isinstance(part, MLAConfig)
            return ContextLatentCache(part, table, ranks, dtype, backend)

        self.layers = [cache_of(layer) for layer in range(len(config.layers))]
        self.mtp = cache_of(-1) if mtp else None


class DataParallelEngine(Engine):
    """An engine of this rank's own requests, which meets those of the other ranks in the MLPs of every step.

    ``step`` is called on all ranks, on those too that have nothing to do.

    Args:
        model: whole, the same on all ranks; each keeps all heads, and its inner widths of the MLPs.
        ranks: that each have requests of their own.
        num_pages: of this rank's pool, in every layer.
        options: the others of ``Engine``. No ``MTPDrafter``: ranks draft at other times, and its MLP would meet nobody.

    Attributes:
        meeting: of the ranks; behind a step, ``meeting.most`` is 0 when no rank has had anything to do.

    Raises:
        TypeError: as ``Engine``, ``ranks`` is not a ``Ranks``, or an MLP is not one that can be shared out.
        ValueError: as ``Engine``; the drafter is an ``MTPDrafter``; or the models differ between ranks.
    """

    def __init__(self, model: Decoder, ranks: Ranks, num_pages: int, **options: Unpack[Options]):
        if isinstance(options.get("drafter"), MTPDrafter):
            raise ValueError("drafter is an MTPDrafter; expected one without a layer, since ranks draft at other times")
        self.ranks, self.meeting = ranks, Meeting(ranks)
        _check_same(ranks, self, num_pages, options)
        super().__init__(data_parallel(model, self.meeting), num_pages, capture=False, **options)

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[list[int]]:
        """The new tokens of each prompt, on all ranks, once all are done; each rank takes every W-th prompt.

        Args:
            prompts: tokens of each, on all ranks the same.
            params: for all of them, or of each.

        Raises:
            ValueError: as ``Engine.generate``, or prompts or params differ between ranks.
            RankLost: a rank has ended, or did not come in time.
        """
        each, size = params_of_each(prompts, params), self.ranks.size
        self.ranks.check_same(prompts=[list(prompt) for prompt in prompts], params=each)
        requests: list[Request] = []
        try:
            for prompt, one in zip(prompts, each, strict=True):
                requests.append(self.submit(prompt, one))
            for request in requests:
                if request not in requests[self.ranks.rank :: size]:
                    self.cancel(request)
            while True:
                self.step()
                if not self.meeting.most:
                    break
        except BaseException:
            for request in requests:
                self.cancel(request)
            raise
        outputs = self.ranks.gather_values([request.output for request in requests[self.ranks.rank :: size]])
        return [outputs[place % size][place // size] for place in range(len(prompts))]

    @torch.no_grad()
    def step(self) -> list[Event]:
        """As ``Engine.step`` for this rank's requests; without any, only what the other ranks need of it.

        Raises:
            RankLost: a rank has ended, or did not come in time.
        """
        self._has_met = False
        events = super().step()
        if not self._has_met and self.meeting.agree(0):
            nothing = self.model.embed_tokens.weight[:0]
            for layer in layers_of(self.model):
                layer.mlp(nothing)
        return events

    def _groups(self, work: list[Work]) -> list[list[Work]]:
        self.meeting.agree(sum(each.count for each in work))
        self._has_met = True
        return super()._groups(work)


def _check_same(ranks: Ranks, engine: Engine, num_pages: int, options: ContextOptions) -> None:
    check_ranks(ranks)
    values = {name: type(value).__name__ if name == "drafter" else value for name, value in options.items()}
    ranks.check_same(engine=type(engine).__name__, num_pages=num_pages, **values)
