"""Guess and verify: tokens proposed cheaply, and kept where the model would have written them.

Verification is exact: greedy text is that of the model alone, sampled text has the model's distribution
(Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318).
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mla_edu.models.generate import choose, probabilities
from mla_edu.serving.request import Request, SamplingParams
from mla_edu.validation import check_integer


@runtime_checkable
class Drafter(Protocol):
    """Who guesses the next tokens of running requests."""

    def propose(self, requests: Sequence[Request]) -> None:
        """Set ``drafts`` of requests whose tokens are all computed but the last one."""


def verify(
    logits: Float[Tensor, "rows vocab"],
    drafts: Sequence[int],
    draft_probabilities: Float[Tensor, "drafts vocab"] | None,
    params: SamplingParams,
    generator: torch.Generator | None = None,
) -> list[int]:
    """The guesses that stay, and one more token.

    A guess x, drawn from q, stays with probability min(1, p(x) / q(x)), p being the model's distribution there; where
    it does not, a token drawn from max(0, p - q) takes its place, and the guesses after it are void. A guess that was
    not drawn has q(x) = 1. At temperature 0 it stays where it is the likeliest token.

    Args:
        logits: of the token after the last one known, and after each guess.
        drafts: the guesses.
        draft_probabilities: q of each guess; None where they were not drawn.
        params: of the request.
        generator: of the draws; None for torch's own.
    """
    if params.temperature == 0:
        return follow(logits.argmax(dim=-1).tolist(), drafts)
    for i, draft in enumerate(drafts):
        p = probabilities(logits[i], params.temperature, params.top_p)
        q = torch.zeros_like(p)
        q[draft] = 1
        if draft_probabilities is not None:
            q = draft_probabilities[i].to(p)
        drawn = torch.rand((), generator=generator, device=p.device, dtype=p.dtype)
        if drawn * q[draft] < p[draft]:
            continue
        rest = (p - q).clamp(min=0)
        token = torch.multinomial(rest if rest.any() else p, 1, generator=generator)
        return [*drafts[:i], int(token)]
    return [*drafts, choose(logits[-1], params.temperature, params.top_p, generator)]


def follow(best: Sequence[int], drafts: Sequence[int]) -> list[int]:
    """``verify`` at temperature 0: the guesses up to the first wrong one, and the token that is right there.

    Args:
        best: the likeliest token after the last one known, and after each guess.
        drafts: the guesses.
    """
    right = next((i for i, draft in enumerate(drafts) if draft != best[i]), len(drafts))
    return [*drafts[:right], best[right]]


class NGramDrafter:
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
