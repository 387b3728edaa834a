"""An engine that serves many requests with one model, over pages of latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mla_edu.cache.pages import PageTable
from mla_edu.cache.prefix import PrefixAllocator
from mla_edu.cache.table import Step
from mla_edu.config import Mamba2Config
from mla_edu.cost import cheaper_mode
from mla_edu.kernels.api import Backend, check_backend
from mla_edu.models.cache import ModelCache
from mla_edu.models.decoder import Decoder
from mla_edu.ops.rope import check_positions
from mla_edu.serving.draft import Drafter, MTPDrafter
from mla_edu.serving.graph import DecodeGraphs
from mla_edu.serving.request import Event, Request, SamplingParams
from mla_edu.serving.schedule import Scheduler, Work
from mla_edu.serving.speculate import verify, verify_greedy
from mla_edu.validation import check_flag, check_integer, shown

Storage = Literal["latent", "expanded"]


@dataclass
class Stats:
    """What an engine has done so far.

    Attributes:
        steps: that computed something.
        computed: tokens that went through the model, again and in vain included.
        found: tokens that did not, since pages that were kept hold them.
        output: tokens chosen.
        drafted: guesses that were verified.
        accepted: of these, the right ones.
        preempted: times that a request lost its pages.
        peak_pages: most pages held at a time.
    """

    steps: int = 0
    computed: int = 0
    found: int = 0
    output: int = 0
    drafted: int = 0
    accepted: int = 0
    preempted: int = 0
    peak_pages: int = 0


class Engine:
    """Continuous batching over a paged cache: requests come and go, each step takes a part of all.

    Whatever is shared, cut into chunks, preempted or guessed, greedy tokens are those of ``mla_edu.models.generate``.
    In a narrow dtype products of another shape may round otherwise, and near ties fall to another token.

    Args:
        model: in the mode and on the device that it is.
        num_pages: of the pool, in every layer.
        page_size: tokens in a page.
        mla: what MLA layers keep: ``"latent"``, or ``"expanded"``, the keys and values of every head.
        max_batch_tokens: that a step computes at most; as many requests run at a time at most.
        backend: of ``mla_decode``.
        drafter: guesses tokens, which a step then verifies; None for none.
        share_prefixes: whether full pages are kept and found again by requests with the same beginning; None for
            wherever all layers are attention, since a recurrent state cannot be entered in the middle.
        capture: whether decode steps run as CUDA graphs, which a GPU starts at once instead of kernel by kernel. Such a
            step has one new token for each request, and as many guesses for each, over absorbed latents; its batch is
            filled up to a power of two, and to at most 256 tokens. Other steps run as without. True needs a model whose
            layers all keep latents, and takes the same path unrecorded on a CPU; None is True for such a model on a
            GPU with another backend than the reference, else False.

    Attributes:
        table: lengths and pages of the requests that run.
        cache: what the layers keep.
        graphs: of the steps that are captured; None where none is.
        stats: what was done so far.

    Raises:
        TypeError: ``model`` is not a ``Decoder``, or ``drafter`` cannot propose.
        ValueError: a number or name is out of range, the drafter cannot guess for the model, or the model has recurrent
            layers and prefixes are to be shared or tokens to be guessed.
    """

    def __init__(
        self,
        model: Decoder,
        num_pages: int,
        page_size: int = 64,
        mla: Storage = "latent",
        max_batch_tokens: int = 512,
        backend: Backend = "auto",
        *,
        drafter: Drafter | None = None,
        share_prefixes: bool | None = None,
        capture: bool | None = None,
    ):
        if not isinstance(model, Decoder):
            raise TypeError(f"model is a {type(model).__name__}; expected a Decoder")
        if not isinstance(drafter, Drafter | None):
            raise TypeError(f"drafter is {shown(drafter)}; expected one such as NGramDrafter(), or None")
        if mla not in get_args(Storage):
            raise ValueError(f"mla is {shown(mla)}; expected 'latent' or 'expanded'")
        check_backend(backend)
        for name, value in {
            "num_pages": num_pages,
            "page_size": page_size,
            "max_batch_tokens": max_batch_tokens,
        }.items():
            check_integer(name, value)
        for flag, asked in (("share_prefixes", share_prefixes), ("capture", capture)):
            if asked is not None:
                check_flag(flag, asked)
        self._parts = [model.config.part(layer) for layer in range(len(model.config.layers))]
        recurrent = any(isinstance(part, Mamba2Config) for part in self._parts)
        if recurrent and (share_prefixes or drafter is not None):
            argument = "share_prefixes is True" if share_prefixes else "a drafter is given"
            raise ValueError(f"{argument}; expected a model without recurrent layers, whose states cannot be cut back")
        weight = model.embed_tokens.weight
        only_latents = mla == "latent" and set(model.config.layers) == {"mla"}
        if capture and not only_latents:
            raise ValueError(f"capture is True with mla {mla!r} and {set(model.config.layers)}; expected latents alone")
        if capture is None:
            capture = only_latents and weight.is_cuda and backend != "reference"
        self.model, self.drafter, self.mla = model, drafter, mla
        has_layer = isinstance(drafter, MTPDrafter)
        allocator = PrefixAllocator(num_pages, page_size, lookahead=int(has_layer))
        rows = min(num_pages, max_batch_tokens)
        self.table = PageTable(
            num_pages, page_size, rows, device=weight.device, allocator=allocator, spare_pages=int(capture)
        )
        self.cache = self._new_cache(backend, has_layer)
        if isinstance(drafter, MTPDrafter):
            drafter.attach(model, self.cache)
        self.scheduler = Scheduler(
            self.table, allocator, max_batch_tokens, share=not recurrent if share_prefixes is None else share_prefixes
        )
        self._chooses_mode = mla == "latent" and model.config.mla is not None
        self._absorbed_from: dict[int, int] = {}  # by new tokens: the fewest keys known to cost less absorbed
        self.graphs = DecodeGraphs(model, self.cache) if capture else None
        self._number = 0
        self.stats = Stats()

    def submit(self, prompt_tokens: Sequence[int], params: SamplingParams | None = None) -> Request:
        """Queue a prompt.

        Args:
            prompt_tokens: at least one.
            params: how its tokens are chosen; None for ``SamplingParams()``.

        Raises:
            TypeError: ``prompt_tokens`` is no sequence, or ``params`` not ``SamplingParams``.
            ValueError: the prompt is empty, has a token that is not of the vocabulary, or is with its new tokens longer
                than what the pages hold or the positions that the model knows. The engine is as before.
        """
        request = self._request(prompt_tokens, SamplingParams() if params is None else params)
        self.scheduler.submit(request)
        self._number += 1
        return request

    def cancel(self, request: Request) -> None:
        """End a request, whatever it is at; its pages are free again.

        Raises:
            TypeError: ``request`` is not one.
            ValueError: it is of another engine.
        """
        if not isinstance(request, Request):
            raise TypeError(f"request is {shown(request)}; expected a Request, from submit")
        if not request.is_over and request not in (*self.scheduler.waiting, *self.scheduler.running):
            raise ValueError(f"request is number {request.number} of another engine; expected one of this engine")
        self.scheduler.cancel(request)

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self.scheduler.waiting and not self.scheduler.running

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[list[int]]:
        """The new tokens of each prompt, once all are done.

        Args:
            prompts: tokens of each.
            params: for all of them, or of each.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: as ``submit``, before anything has run, or ``params`` are not as many as ``prompts``.
        """
        each = params_of_each(prompts, params)
        requests: list[Request] = []
        try:
            for prompt, one in zip(prompts, each, strict=True):
                requests.append(self.submit(prompt, one))
            while not all(request.is_over for request in requests):
                self.step()
        except BaseException:
            for request in requests:
                self.cancel(request)
            raise
        return [request.output for request in requests]

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Compute what the budget allows, choose the tokens that follow, and say what has happened.

        An error in the model leaves every request as it was: the next call tries again.
        """
        work, events = self.scheduler.plan()
        self.stats.preempted += sum(event.kind == "preempted" for event in events)
        self.stats.found += sum(event.count for event in events if event.kind == "admitted")
        if not work:
            return events
        groups = self._groups(work)
        ordered = [each for group in groups for each in group]
        generators = {each.request: each.request.generator for each in ordered if each.request.generator}
        states = {request: generator.get_state() for request, generator in generators.items()}
        try:
            with self.table.steps([(group[0].count, [_row(each) for each in group]) for group in groups]) as steps:
                tokens = [token for each in ordered for token in self._tokens(each)]
                logits = None
                if self.graphs is not None and self._fits_a_graph(work, steps):
                    hidden, logits = self.graphs.run(tokens, steps[0].sequences)
                else:
                    hidden = self.model.hidden_states(self._tensor([tokens]), self.cache, steps)[0]
                chosen = self._choose(ordered, hidden, logits)
                if isinstance(self.drafter, MTPDrafter):
                    self.drafter.follow(ordered, steps, hidden, chosen)
        except BaseException:
            for request, state in states.items():
                generators[request].set_state(state)
            raise
        self.stats.steps += 1
        self.stats.peak_pages = max(self.stats.peak_pages, self.table.allocator.num_held)
        for each in work:
            events += self._advance(each, chosen.get(each.request, []))
        if self.drafter is not None:
            self.drafter.propose([each.request for each in work if each.is_last and not each.request.is_over])
        return events

    def _new_cache(self, backend: Backend, mtp: bool) -> ModelCache:
        dtype, expanded = self.model.embed_tokens.weight.dtype, self.mla == "expanded"
        return ModelCache(self.model.config, dtype=dtype, table=self.table, expanded=expanded, backend=backend, mtp=mtp)

    def _request(self, prompt_tokens: Sequence[int], params: SamplingParams) -> Request:
        if not isinstance(params, SamplingParams):
            raise TypeError(f"params is a {type(params).__name__}; expected SamplingParams")
        if not isinstance(prompt_tokens, Sequence):
            raise TypeError(f"prompt_tokens is {shown(prompt_tokens)}; expected a list of tokens")
        prompt = tuple(prompt_tokens)
        if not prompt:
            raise ValueError("prompt_tokens is empty; expected at least one token")
        for token in prompt:
            check_integer("a token of prompt_tokens", token, 0, self.model.config.vocab_size - 1)
        for part in self._parts:
            if not isinstance(part, Mamba2Config):
                check_positions(len(prompt) + params.max_new_tokens - 1, part.rope_scaling)
        device = self.model.embed_tokens.weight.device
        generator = None if params.seed is None else torch.Generator(device).manual_seed(params.seed)
        return Request(self._number, prompt, params, list(prompt), generator=generator)

    def _groups(self, work: list[Work]) -> list[list[Work]]:
        """Requests that compute as many tokens, and for whom the same way of reading the latents costs less."""
        groups: dict[tuple[int, str], list[Work]] = {}
        for each in work:
            mode = ""
            if self._chooses_mode:
                mode = self._mode(each.count, self.scheduler.num_computed(each.request) + each.count)
            groups.setdefault((each.count, mode), []).append(each)
        return list(groups.values())

    def _mode(self, num_new: int, num_keys: int) -> str:
        """``cheaper_mode``, which is asked no more once it was absorbed: with more keys it stays so."""
        if num_keys >= self._absorbed_from.get(num_new, num_keys + 1):
            return "absorbed"
        assert self.model.config.mla is not None
        mode = cheaper_mode(self.model.config.mla, num_new, num_keys)
        if mode == "absorbed":
            self._absorbed_from[num_new] = num_keys
        return mode

    def _fits_a_graph(self, work: list[Work], steps: list[Step]) -> bool:
        """Whether each request computes its last token, as many guesses, and nothing else, over absorbed latents."""
        assert self.graphs is not None
        if len(steps) > 1 or not all(each.is_last for each in work):
            return False
        num_new = steps[0].num_new
        if any(num_new != 1 + len(each.request.drafts) for each in work) or not self.graphs.holds(len(work), num_new):
            return False
        return self._mode(num_new, min(steps[0].lengths)) == "absorbed"

    def _tokens(self, work: Work) -> list[int]:
        start, request = self.scheduler.num_computed(work.request), work.request
        known = request.tokens[start : start + work.count]
        return known + request.drafts[: work.count - len(known)]

    def _choose(self, ordered: list[Work], hidden: Tensor, logits: Tensor | None) -> dict[Request, list[int]]:
        """The tokens that follow, for each request that has computed all it knows; ``logits`` may be there already."""
        places: list[int] = []
        rows: dict[Request, slice] = {}
        end = 0
        for each in ordered:
            end += each.count
            if each.is_last:
                start = len(places)
                places += range(end - 1 - len(each.request.drafts), end)
                rows[each.request] = slice(start, len(places))
        if not rows:
            return {}
        if logits is None:
            logits = self.model.logits(hidden[self._tensor(places)])
        best = logits.argmax(dim=-1).tolist()  # of all requests at once
        return {
            request: verify_greedy(best[rows[request]], request.drafts)
            if request.params.temperature == 0
            else verify(
                logits[rows[request]], request.drafts, request.draft_probabilities, request.params, request.generator
            )
            for request in rows
        }

    def _advance(self, work: Work, chosen: list[int]) -> list[Event]:
        request = work.request
        drafted = len(request.drafts) if work.is_last else 0
        added = self.scheduler.advance(request, chosen)
        events = [Event("computed", request, count=work.count)]
        self.stats.computed += work.count
        self.stats.output += len(added)
        if chosen:
            right = min(len(chosen) - 1, len(added))
            self.stats.drafted += drafted
            self.stats.accepted += right
            events.append(Event("tokens", request, count=right, tokens=tuple(added)))
        if request.is_over:
            events.append(Event("finished", request))
        return events

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, device=self.model.embed_tokens.weight.device)


def params_of_each(
    prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None
) -> list[SamplingParams]:
    """Of each prompt its own ones.

    Raises:
        TypeError: ``prompts`` or ``params`` are no sequence.
        ValueError: they are not as many.
    """
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts is {shown(prompts)}; expected a list of prompts")
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * len(prompts)
    if not isinstance(params, Sequence):
        raise TypeError(f"params is {shown(params)}; expected SamplingParams, or a list of them")
    if len(params) != len(prompts):
        raise ValueError(f"params has {len(params)} entries; expected {len(prompts)}, as prompts")
    return list(params)


def _row(work: Work) -> int:
    assert work.request.row is not None
    return work.request.row
