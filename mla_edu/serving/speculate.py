"""The rule by which guessed tokens are kept or replaced.

It is exact: greedy text is that of the model alone, sampled text has the model's distribution
(Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mla_edu.models.generate import choose, probabilities
from mla_edu.serving.request import SamplingParams


def verify(
    logits: Float[Tensor, "rows vocab"],
    drafts: Sequence[int],
    draft_probabilities: Float[Tensor, "drafts vocab"] | None,
    params: SamplingParams,
    generator: torch.Generator | None = None,
) -> list[int]:
    """The guesses that stay, and one more token.

    A guess ``x``, drawn from ``q``, stays with probability ``min(1, p(x) / q(x))``, where ``p`` is the model's
    distribution there. Where it does not stay, a token takes its place that is drawn from ``max(0, p - q)``, scaled to
    sum to 1, and the guesses after it are void. A guess that was not drawn has ``q(x) = 1``. At temperature 0 a guess
    stays where it is the likeliest token.

    Args:
        logits: of the token after the last one known, and after each guess.
        drafts: the guesses.
        draft_probabilities: ``q`` of each guess; None where they were not drawn.
        params: of the request.
        generator: of the draws; None for torch's own.
    """
    if params.temperature == 0:
        return verify_greedy(logits.argmax(dim=-1).tolist(), drafts)
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


def verify_greedy(best: Sequence[int], drafts: Sequence[int]) -> list[int]:
    """``verify`` at temperature 0: the guesses up to the first wrong one, and the token that is right there.

    Args:
        best: the likeliest token after the last one known, and after each guess.
        drafts: the guesses.
    """
    right = next((i for i, draft in enumerate(drafts) if draft != best[i]), len(drafts))
    return [*drafts[:right], best[right]]
