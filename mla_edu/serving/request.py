"""What is asked of an engine, and what has become of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mla_edu.cache.prefix import Prefix
from mla_edu.validation import Checked, NonNegativeInt, NonNegativeNumber, Number, PositiveInt

Seed = Annotated[NonNegativeInt, Field(lt=2**63)]  # what a generator of torch takes


class SamplingParams(Checked):
    """How a request's tokens are chosen, and when they end.

    Raises:
        ValueError: a value is out of range; names the argument, the value and what was expected.
    """

    max_new_tokens: PositiveInt = 16  # it ends after so many
    temperature: NonNegativeNumber = 0.0  # what logits are divided by before one is drawn; 0 takes the largest
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0  # drawn from as few tokens as have this probability together
    seed: Seed | None = None  # of the draws; None for torch's own generator
    stop_tokens: tuple[NonNegativeInt, ...] = ()  # it ends before one of them


State = Literal["waiting", "running", "finished", "cancelled"]


@dataclass(eq=False)
class Request:
    """A prompt and what follows it.

    Attributes:
        number: of the request, in the order of submission.
        prompt: its tokens.
        params: how the others are chosen.
        tokens: the prompt and what has been chosen so far.
        drafts: guesses of what comes next, to be verified in the next step.
        draft_probabilities: ``[drafts, vocab]`` that sampled guesses were drawn from; None where they were not drawn.
        row: of the table that holds its pages; None while it waits, and after its end.
        prefixes: names of the full pages of ``tokens``.
        num_named: pages of the row that the allocator knows by name.
        generator: of the draws.
        state: ``"waiting"``, ``"running"``, ``"finished"`` or ``"cancelled"``.
        finish_reason: ``"stop"`` or ``"length"``, once it has finished.
    """

    number: int
    prompt: tuple[int, ...]
    params: SamplingParams
    tokens: list[int]
    drafts: list[int] = field(default_factory=list)
    draft_probabilities: Tensor | None = None
    row: int | None = None
    prefixes: list[Prefix] = field(default_factory=list)
    num_named: int = 0
    generator: torch.Generator | None = None
    state: State = "waiting"
    finish_reason: Literal["stop", "length"] | None = None

    @property
    def output(self) -> list[int]:
        """The tokens chosen so far."""
        return self.tokens[len(self.prompt) :]

    @property
    def is_over(self) -> bool:
        """Whether it has finished or was cancelled."""
        return self.state in ("finished", "cancelled")

    @property
    def num_left(self) -> int:
        """Tokens that may still be chosen."""
        return self.params.max_new_tokens - (len(self.tokens) - len(self.prompt))

    def forget_drafts(self, keep: int = 0) -> None:
        """Drop the guesses past the first ``keep``."""
        self.drafts = self.drafts[:keep]
        if self.draft_probabilities is not None:
            self.draft_probabilities = self.draft_probabilities[:keep] if keep else None

    def accept(self, tokens: Sequence[int]) -> list[int]:
        """Add chosen tokens as far as the request goes, and say which; it is over at a stop token or its last one."""
        added = []
        for token in tokens:
            if token in self.params.stop_tokens:
                self.finish_reason = "stop"
                break
            added.append(token)
            self.tokens.append(token)
            if not self.num_left:
                self.finish_reason = "length"
                break
        if self.finish_reason:
            self.state = "finished"
        return added


@dataclass(frozen=True)
class Event:
    """Something that a step did.

    Attributes:
        kind: ``"admitted"``, ``count`` tokens being found in pages that are kept; ``"preempted"``, since its pages were
            needed, so that it waits again; ``"computed"``, ``count`` tokens, guesses included; ``"tokens"``, when
            ``tokens`` were chosen, ``count`` of them guesses that were right; ``"finished"``.
        request: of which request.
        count: a number, as above.
        tokens: the new ones.
    """

    kind: Literal["admitted", "preempted", "computed", "tokens", "finished"]
    request: Request
    count: int = 0
    tokens: tuple[int, ...] = ()
