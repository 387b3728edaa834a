"""What was found of the engine: the seconds of every round, and the ratios that follow from them."""

import statistics
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_serializer, model_validator

from mla_edu.bench.results import CPU, Machine, Outcome, Record
from mla_edu.models.config import ModelConfig

Seconds = list[PositiveFloat]  # one of each round, in which the rivals took turns
Storage = Literal["latent", "expanded"]


def times_as_fast(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over the rounds of their time over ours in the same round."""
    return statistics.median(slow / fast for fast, slow in zip(ours, theirs, strict=True))


class Texts(Record):
    """Prompts of one length written on with as many tokens: by the engine, and as transformers does it."""

    batch: PositiveInt  # texts at a time
    prompt_tokens: PositiveInt  # of each
    new_tokens: PositiveInt  # of each; in float32 the same ones whoever writes, which is checked
    seconds: dict[str, Seconds]  # from the prompts to the last tokens
    step_seconds: dict[str, Seconds]  # of one token for all, behind the first; of those who let it be seen
    outside_model: list[NonNegativeFloat]  # share of the engine's steps that is scheduler, pages and choice
    same: dict[str, NonNegativeFloat] = Field(default_factory=dict)  # share of tokens before one is not the engine's

    @model_validator(mode="after")
    def _as_many_rounds(self) -> Self:
        rounds = {len(each) for each in (*self.seconds.values(), *self.step_seconds.values(), self.outside_model)}
        if len(rounds) > 1 or "engine" not in self.seconds:
            raise ValueError(f"seconds has {', '.join(self.seconds)} with {rounds} rounds; expected as many of each")
        return self

    def tokens_per_s(self, name: str) -> float:
        """Tokens written in a second, prompts included in the time."""
        return self.batch * self.new_tokens / statistics.median(self.seconds[name])

    def speed_up(self, name: str) -> float:
        """How many times as fast as another the engine is."""
        return times_as_fast(self.seconds["engine"], self.seconds[name])

    def step_tokens_per_s(self, name: str) -> float:
        """Tokens written in a second behind the first ones."""
        return self.batch / statistics.median(self.step_seconds[name])

    def step_speed_up(self, name: str) -> float:
        """The same of the steps behind the first tokens."""
        return times_as_fast(self.step_seconds["engine"], self.step_seconds[name])


class FirstToken(Record):
    """From a prompt to its first token, where pages with its beginning are kept and where not."""

    shared_tokens: PositiveInt  # found in pages
    own_tokens: PositiveInt  # behind them
    found: Seconds
    recomputed: Seconds

    @property
    def speed_up(self) -> float:
        """How many times as soon the token comes where the beginning is found."""
        return times_as_fast(self.found, self.recomputed)


class AtOnce(Record):
    """The same requests in pools of as many bytes, of latents and of the keys and values of every head."""

    page_size: PositiveInt
    tokens: PositiveInt  # of a request
    requests: PositiveInt  # in all
    pool_bytes: dict[Storage, PositiveInt]
    most: dict[Storage, PositiveInt]  # requests that took part in one step
    seconds: dict[Storage, Seconds]  # until all were done

    @property
    def ratio(self) -> float:
        """Requests that run at a time with latents, over those with keys and values."""
        return self.most["latent"] / self.most["expanded"]

    @property
    def speed_up(self) -> float:
        """How many times as soon all are done with latents."""
        return times_as_fast(self.seconds["latent"], self.seconds["expanded"])


class Verification(Record):
    """A step that verifies guesses, all of them wrong; it computes one token more than there are guesses."""

    cached_tokens: tuple[PositiveInt, PositiveInt]  # at the first step and at the last
    seconds: list[Seconds]  # of no guess, of one and so on

    @property
    def ratios(self) -> list[float]:
        """What a step takes with so many guesses, over what it takes without."""
        return [times_as_fast(self.seconds[0], each) for each in self.seconds]


class OwnCost(Record):
    """Steps of many requests through a model that computes nothing."""

    requests: PositiveInt
    scheduler: Seconds  # plan, pages, lengths, and what becomes of the tokens
    engine: Seconds  # the whole step


class ServingResults(Outcome):
    """The engine beside transformers, and what it saves by pages, latents and guesses."""

    grid: ClassVar[str] = "serving"

    machine: Machine | CPU
    load_average: NonNegativeFloat | None = None  # processes that ran in the minute before; None where none tells
    model: ModelConfig  # what was served
    dtype: Literal["fp32", "bf16"] = "fp32"  # of its weights
    weight_bytes: PositiveInt
    logits_error: NonNegativeFloat | None = None  # of its logits, relative to those of transformers
    continuous_batching: str  # of transformers: "runs", or why not
    texts: list[Texts]
    first_token: FirstToken
    at_once: AtOnce
    verification: Verification
    own_cost: OwnCost

    @field_serializer("model")
    def _whole(self, model: ModelConfig) -> dict[str, Any]:
        return model.model_dump(mode="json")  # what is None is written too: some numbers have no default
