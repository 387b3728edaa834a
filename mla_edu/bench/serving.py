"""The engine, measured: beside transformers, and by what it saves.

Each part is measured in rounds. In each round all that are compared take their turn, so that what else the machine does
falls on all alike; ratios are medians over the rounds. Texts are compared before they are timed.
"""

import os
import random
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

import mla_edu.bench.run as bench
from mla_edu.bench.libraries import Unsupported
from mla_edu.bench.serving_results import (
    AtOnce,
    FirstToken,
    OwnCost,
    ServingResults,
    Storage,
    Texts,
    Verification,
)
from mla_edu.bench.serving_size import FULL, TOY, Size
from mla_edu.bench.texts import (
    PAGE_SIZE,
    check_same,
    continuous_batching,
    engine_loop,
    plain_loop,
    transformers_model,
)
from mla_edu.bench.transformers_layer import probe_transformers
from mla_edu.models import Decoder, ModelConfig
from mla_edu.serving import Engine, SamplingParams
from mla_edu.testing import randomize
from mla_edu.validation import check_integer

SMALL_PAGE = 16  # where many requests run at a time
SHORT_PROMPT, SHORT_NEW = 24, 8  # they take two small pages from their start to their end


class NoModel(Decoder):
    """A model of two tokens that computes nothing: what is left of a step is the engine's own."""

    def __init__(self) -> None:
        widths = {"kv_lora_rank": 1, "qk_nope_head_dim": 1, "qk_rope_head_dim": 2, "v_head_dim": 1, "q_lora_rank": None}
        mla: Any = {"num_attention_heads": 1, **widths}
        super().__init__(ModelConfig(vocab_size=2, hidden_size=1, intermediate_size=1, layers=("mla",), mla=mla))

    def hidden_states(self, tokens: Tensor, cache: Any = None, steps: Any = ()) -> Tensor:  # noqa: ARG002
        """Zeros."""
        return torch.zeros(*tokens.shape, 1)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros(*hidden_states.shape[:-1], 2)


def seconds_of(call: Callable[[], Any]) -> float:
    """What one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def finish(engine: Engine) -> None:
    """Step until nothing is left to do."""
    while not engine.is_idle:
        engine.step()


class Bench:
    """The measurements of one size.

    Args:
        size: how much.
        rounds: of each part.
        model: random, of ``size.model``.
    """

    def __init__(self, size: Size, rounds: int, model: Decoder):
        self.size, self.rounds, self.model = size, rounds, model
        self.random = random.Random(0)

    def draw(self, count: int) -> list[int]:
        """A prompt of random tokens."""
        return self.random.choices(range(self.model.config.vocab_size), k=count)

    def texts(self, theirs: Any, batch: int, prompt_tokens: int, continuous: bool) -> Texts:
        """Equal prompts by the engine and by transformers.

        Args:
            theirs: its model, with the same weights.
            batch: prompts.
            prompt_tokens: of each.
            continuous: whether its continuous batching takes part.

        Raises:
            RuntimeError: they write different texts.
        """
        prompts, num_new = [self.draw(prompt_tokens) for _ in range(batch)], self.size.new_tokens
        written = {
            "engine": engine_loop(self.model, prompts, num_new)[0],
            "transformers": plain_loop(theirs, prompts, num_new)[0],
        }
        if continuous:
            written["continuous batching"] = continuous_batching(theirs, prompts, num_new)
        for name, tokens in written.items():
            check_same(tokens, written["transformers"], f"{name}, {batch} prompts of {prompt_tokens} tokens")
        seconds: dict[str, list[float]] = {name: [] for name in written}
        steps: dict[str, list[float]] = {"engine": [], "transformers": []}
        shares = []
        for _ in range(self.rounds):
            _, ours, outside = engine_loop(self.model, prompts, num_new)
            _, other = plain_loop(theirs, prompts, num_new)
            shares.append(outside)
            for name, stamps in (("engine", ours), ("transformers", other)):
                seconds[name].append(stamps[-1])
                steps[name].append((stamps[-1] - stamps[0]) / (num_new - 1))
            if continuous:
                seconds["continuous batching"].append(seconds_of(lambda: continuous_batching(theirs, prompts, num_new)))
        shape = {"batch": batch, "prompt_tokens": prompt_tokens, "new_tokens": num_new}
        return Texts(**shape, seconds=seconds, step_seconds=steps, outside_model=shares)

    def first_token(self) -> FirstToken:
        """Prompts that begin alike, in an engine that keeps pages and in one that does not.

        Raises:
            RuntimeError: they write different tokens.
        """
        shared, own = self.draw(self.size.shared_tokens), self.size.own_tokens
        pages = -(-(len(shared) + own) // PAGE_SIZE)
        keeps = Engine(self.model, 2 * pages, PAGE_SIZE)
        forgets = Engine(self.model, pages, PAGE_SIZE, share_prefixes=False)
        one = SamplingParams(max_new_tokens=1)
        keeps.generate([shared + self.draw(own)], one)
        found, recomputed = [], []
        for _ in range(self.rounds):
            prompt = shared + self.draw(own)
            requests = [engine.submit(prompt, one) for engine in (keeps, forgets)]
            found.append(seconds_of(lambda: finish(keeps)))
            recomputed.append(seconds_of(lambda: finish(forgets)))
            check_same(requests[0].output, requests[1].output, "behind pages that were kept")
        kept = keeps.stats.found // self.rounds
        return FirstToken(shared_tokens=kept, own_tokens=own, found=found, recomputed=recomputed)

    def at_once(self) -> AtOnce:
        """As many requests as latents leave room for, in as many bytes of keys and values too.

        Raises:
            RuntimeError: the two write different texts.
        """
        page_bytes: dict[Storage, int] = {
            mla: Engine(self.model, 1, SMALL_PAGE, mla).cache.nbytes for mla in ("latent", "expanded")
        }
        memory = self.size.expanded_pages * page_bytes["expanded"]
        pages = {mla: memory // num_bytes for mla, num_bytes in page_bytes.items()}
        prompts = [self.draw(SHORT_PROMPT) for _ in range(pages["latent"] // 2)]
        most: dict[Storage, int] = {"latent": 0, "expanded": 0}
        seconds: dict[Storage, list[float]] = {"latent": [], "expanded": []}
        for _ in range(self.rounds):
            written = {}
            for mla in most:
                engine = Engine(self.model, pages[mla], SMALL_PAGE, mla)
                requests = [engine.submit(prompt, SamplingParams(max_new_tokens=SHORT_NEW)) for prompt in prompts]
                start = time.perf_counter()
                while not engine.is_idle:
                    taking_part = sum(event.kind == "computed" for event in engine.step())
                    most[mla] = max(most[mla], taking_part)
                seconds[mla].append(time.perf_counter() - start)
                written[mla] = [request.output for request in requests]
            check_same(written["latent"], written["expanded"], "latents, beside keys and values")
        return AtOnce(
            page_size=SMALL_PAGE,
            tokens=SHORT_PROMPT + SHORT_NEW,
            requests=len(prompts),
            pool_bytes={mla: pages[mla] * page_bytes[mla] for mla in most},
            most=most,
            seconds=seconds,
        )

    def verification(self) -> Verification:
        """Steps of one request that verify random guesses, from none to the most, in another order each round."""
        counts = list(range(self.size.most_guesses + 1))
        longest = (self.rounds + 1) * sum(count + 1 for count in counts) + 1
        pages = -(-(self.size.shared_tokens + longest) // PAGE_SIZE)
        engine = Engine(self.model, pages, PAGE_SIZE)
        request = engine.submit(self.draw(self.size.shared_tokens), SamplingParams(max_new_tokens=longest))
        while not request.output:
            engine.step()
        seconds: list[list[float]] = [[] for _ in counts]
        start = 0
        for number in range(self.rounds + 1):
            if number == 1:  # a round to warm up is over
                seconds, start = [[] for _ in counts], engine.scheduler.num_computed(request)
            for count in self.random.sample(counts, len(counts)):
                request.drafts = self.draw(count)
                seconds[count].append(seconds_of(engine.step))
        end = engine.scheduler.num_computed(request)
        return Verification(cached_tokens=(start, end), seconds=seconds)

    def own_cost(self) -> OwnCost:
        """Steps of many requests of all lengths, one token each, through no model; those of the scheduler in turn."""
        rounds = 10 * self.rounds
        lengths = [self.random.randint(1, self.size.longest_prompt) for _ in range(self.size.requests)]
        new = SamplingParams(max_new_tokens=2 * rounds + 2)  # one more than there are steps
        pages = sum(-(-(length + new.max_new_tokens) // PAGE_SIZE) for length in lengths)
        engine = Engine(NoModel(), pages, PAGE_SIZE, max_batch_tokens=sum(lengths))
        requests = [engine.submit(self.random.choices(range(2), k=length), new) for length in lengths]
        engine.step()

        def schedule() -> None:
            work, _ = engine.scheduler.plan()
            with engine.table.steps([(1, [cast(int, each.request.row) for each in work])]):
                pass
            for each in work:
                engine.scheduler.advance(each.request, [0])

        scheduler, whole = [], []
        for _ in range(rounds):
            scheduler.append(seconds_of(schedule))
            whole.append(seconds_of(engine.step))
        if any(request.is_over for request in requests) or engine.stats.preempted:
            raise RuntimeError("a request ended or was preempted; expected all of them in every step")
        return OwnCost(requests=len(requests), scheduler=scheduler, engine=whole)


def run(*, toy: bool, rounds: int = 5) -> ServingResults:
    """Measure the engine on the CPU, part after part.

    Args:
        toy: a tiny model and few tokens: the times mean nothing.
        rounds: of each part.

    Raises:
        ValueError: ``rounds`` is not positive.
        ImportError: transformers is not installed, or one that caches no latent.
        RuntimeError: the engine and transformers write different texts.
    """
    check_integer("rounds", rounds)
    try:
        version = probe_transformers()
    except Unsupported as reason:
        raise ImportError(f"the engine is measured beside transformers: {reason}") from None
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    size = TOY if toy else FULL
    model = randomize(Decoder(size.model, dtype=torch.float32, device="meta").to_empty(device="cpu"))
    model.requires_grad_(False)
    theirs = transformers_model(model)
    measuring = Bench(size, rounds, model)
    verdict = "runs"
    try:
        continuous_batching(theirs, [measuring.draw(8)], 2)
    except Unsupported as reason:
        verdict = f"does not run: {reason}"
    texts = [measuring.texts(theirs, *each, continuous=verdict == "runs") for each in size.texts]
    del theirs
    return ServingResults(
        machine=bench.describe_cpu(),
        versions=bench.versions() | {"transformers": version},
        date=bench.today(),
        toy=toy,
        load_average=load,
        model=size.model,
        weight_bytes=sum(each.nbytes for each in model.parameters()),
        continuous_batching=verdict,
        texts=texts,
        first_token=measuring.first_token(),
        at_once=measuring.at_once(),
        verification=measuring.verification(),
        own_cost=measuring.own_cost(),
    )
