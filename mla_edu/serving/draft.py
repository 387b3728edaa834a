"""Who guesses the tokens that a step then verifies: the text itself, or the model's MTP module."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mla_edu.cache.pages import PageTable
from mla_edu.cache.table import Step
from mla_edu.models.cache import ModelCache
from mla_edu.models.decoder import Decoder
from mla_edu.models.generate import probabilities
from mla_edu.serving.request import Request
from mla_edu.serving.schedule import Work
from mla_edu.validation import check_integer


class Drafter(ABC):
    """Guesses the next tokens of running requests."""

    @abstractmethod
    def propose(self, requests: Sequence[Request]) -> None:
        """Set ``drafts`` of requests whose tokens are all computed but the last one."""


class NGramDrafter(Drafter):
    """Guesses that a text goes on as it did after the last time its newest tokens stood there (prompt look-up).

    Args:
        num_drafts: tokens to guess at most.
        longest: newest tokens to look for; where they do not stand there, one fewer, down to one.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(self, num_drafts: int = 4, longest: int = 3):
        self.num_drafts = check_integer("num_drafts", num_drafts)
        self.longest = check_integer("longest", longest)

    def propose(self, requests: Sequence[Request]) -> None:
        """Set ``drafts`` of each request, to none where its newest token never stood before."""
        for request in requests:
            request.drafts = self.guess(request.tokens)[: max(request.num_left - 1, 0)]

    def guess(self, tokens: Sequence[int]) -> list[int]:
        """What followed the latest earlier place of the longest possible ending of ``tokens``."""
        for length in range(min(self.longest, len(tokens) - 1), 0, -1):
            ending = list(tokens[-length:])
            for start in range(len(tokens) - length - 1, -1, -1):
                if list(tokens[start : start + length]) == ending:
                    return list(tokens[start + length : start + length + self.num_drafts])
        return []


class MTPDrafter(Drafter):
    """Guesses with the model's MTP module, over latents of its own in the same pages (DeepSeek-V3 report, sec. 2.2).

    The first guess comes from the model's hidden state, each further one from the module's own. A request that draws
    its tokens draws its guesses too, by the same temperature and ``top_p``.

    Args:
        num_drafts: tokens to guess at most.

    Raises:
        ValueError: it is not positive.
    """

    def __init__(self, num_drafts: int = 1):
        self.num_drafts = check_integer("num_drafts", num_drafts)

    def attach(self, model: Decoder, cache: ModelCache) -> None:
        """Learn which model is served, and where its caches are.

        Raises:
            ValueError: the model has no MTP module.
        """
        if model.mtp is None:
            raise ValueError(
                "drafter is an MTPDrafter; expected a model with an MTP module, as load_model(.., mtp=True)"
            )
        assert isinstance(cache.table, PageTable)
        self._model, self._mtp, self._cache, self._table = model, model.mtp, cache.mtp, cache.table
        self._hidden: dict[Request, Float[Tensor, " hidden"]] = {}

    def follow(
        self,
        work: Sequence[Work],
        steps: Sequence[Step],
        hidden_states: Float[Tensor, "tokens hidden"],
        chosen: Mapping[Request, Sequence[int]],
    ) -> None:
        """Take the tokens of a step through the module's layer too, so that its latents are there to guess from.

        The module takes the hidden state of a token together with the token after it, which for the last one has just
        been chosen. Behind wrong guesses any token serves: their latents are cut off after the step. Kept is the
        module's output for the newest token of each request in ``chosen``, from which ``propose`` begins.

        Args:
            work: of the step, in the order in which its tokens stand in ``hidden_states``.
            steps: groups of the step, which is under way in the table.
            hidden_states: of the model, a row for each token of the step.
            chosen: the tokens that follow, of each request that has computed all it knows.
        """
        next_tokens: list[int] = []
        newest: dict[Request, int] = {}
        for each in work:
            request, start = each.request, len(next_tokens)
            known = [*request.tokens, *chosen.get(request, ())]
            first = self._table.lengths[request.row or 0] + 1
            if request in chosen:
                newest[request] = start + len(known) - 1 - first
            after = known[first : first + each.count]
            next_tokens += after + [0] * (each.count - len(after))
        tokens = torch.tensor([next_tokens], device=hidden_states.device)
        out = self._mtp(hidden_states[None], tokens, self._model.embed_tokens, self._cache, steps)[0]
        self._hidden = {request: out[place] for request, place in newest.items()}

    def propose(self, requests: Sequence[Request]) -> None:
        """Set ``drafts`` of each request, as many as it may still add but one; fewer where pages run out."""
        wanted = {request: min(self.num_drafts, request.num_left - 1) for request in requests}
        lengths = {request: self._table.lengths[_row(request)] for request in requests}
        guesses: dict[Request, list[Tensor]] = {request: [] for request in requests}
        try:
            while some := [request for request in requests if len(request.drafts) < wanted[request]]:
                if any(request.drafts for request in some) and not self._advance(some):
                    break
                logits = self._model.logits(torch.stack([self._hidden[request] for request in some]))
                for request, row in zip(some, logits, strict=True):
                    self._guess(request, row, guesses[request])
        finally:
            self._hidden = {}
            for request, length in lengths.items():
                self._table.truncate(length, [_row(request)])
        for request, each in guesses.items():
            request.draft_probabilities = torch.stack(each) if each else None

    def _guess(self, request: Request, logits: Tensor, guesses: list[Tensor]) -> None:
        if not request.params.temperature:
            request.drafts = [*request.drafts, int(logits.argmax())]
            return
        guesses.append(probabilities(logits, request.params.temperature, request.params.top_p))
        drawn = torch.multinomial(guesses[-1], 1, generator=request.generator)
        request.drafts = [*request.drafts, int(drawn)]

    def _advance(self, requests: Sequence[Request]) -> bool:
        """Take the newest guesses through the module's layer; False where there are no pages for them."""
        rows = [_row(request) for request in requests]
        if sum(self._table.num_missing_pages(row, 1) for row in rows) > self._table.allocator.num_free:
            return False
        hidden = torch.stack([self._hidden[request] for request in requests])[:, None]
        tokens = torch.tensor([request.drafts[-1:] for request in requests], device=hidden.device)
        with self._table.step(1, rows):
            out = self._mtp(hidden, tokens, self._model.embed_tokens, self._cache)[:, 0]
        self._hidden |= dict(zip(requests, out, strict=True))
        return True


def _row(request: Request) -> int:
    assert request.row is not None
    return request.row
