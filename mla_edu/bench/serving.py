"""The engine, measured: beside transformers, and by what it saves.

Each part is measured in rounds. In each round all that are compared take their turn, so that what else the machine does
falls on all alike; ratios are medians over the rounds. In float32 all have to write the same texts. In bf16 they
cannot, since products of other shapes round otherwise and random weights have many near ties: there the logits have to
be near those of transformers, and it is counted how far the texts are the same.
"""

import os
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch

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
from mla_edu.bench.serving_size import FULL, GPU, TOY, NoModel, Size, random_model
from mla_edu.bench.texts import (
    PAGE_SIZE,
    check_same,
    continuous_batching,
    engine_loop,
    logits_error,
    plain_loop,
    same_share,
    transformers_model,
)
from mla_edu.bench.transformers_layer import probe_transformers
from mla_edu.models import Decoder
from mla_edu.serving import Engine, SamplingParams
from mla_edu.validation import check_integer

LARGEST_ERROR = 0.25  # of logits in bf16; a wrong weight, scale or mask gives one of order 1


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
        self.device = model.embed_tokens.weight.device
        self.random = random.Random(0)

    def draw(self, count: int) -> list[int]:
        """A prompt of random tokens."""
        return self.random.choices(range(self.model.config.vocab_size), k=count)

    def check(self, ours: Any, theirs: Any, where: str) -> None:
        """Raise ``RuntimeError`` unless two texts are the same, where nothing rounds away which token is the best."""
        if self.size.dtype == "fp32":
            check_same(ours, theirs, where)

    def texts(self, theirs: Any, batch: int, prompt_tokens: int, continuous: bool) -> Texts:
        """Equal prompts by the engine and by transformers; where steps are captured, by an engine without them too.

        Args:
            theirs: its model, with the same weights; None without.
            batch: prompts.
            prompt_tokens: of each.
            continuous: whether its continuous batching takes part.

        Raises:
            RuntimeError: they write different texts.
        """
        num_new = self.size.new_tokens
        pages, budget = batch * -(-(prompt_tokens + num_new) // PAGE_SIZE), batch * prompt_tokens
        engine = Engine(self.model, pages, PAGE_SIZE, max_batch_tokens=budget)
        loops: dict[str, Callable[..., Any]] = {"engine": partial(engine_loop, engine)}
        if engine.graphs is not None:
            uncaptured = Engine(self.model, pages, PAGE_SIZE, max_batch_tokens=budget, capture=False)
            loops["engine uncaptured"] = partial(engine_loop, uncaptured)
        if theirs is not None:
            loops["transformers"] = partial(plain_loop, theirs)
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        steps: dict[str, list[float]] = {name: [] for name in loops}
        same: dict[str, float] = {}
        shares = []
        for number in range(self.rounds + 1):
            prompts = [self.draw(prompt_tokens) for _ in range(batch)]
            written = {name: loop(prompts, num_new) for name, loop in loops.items()}
            whole = {name: stamps[-1] for name, (_, stamps, *_) in written.items()}
            tokens = {name: found[0] for name, found in written.items()}
            if continuous:
                start = time.perf_counter()
                tokens["continuous batching"] = continuous_batching(theirs, prompts, num_new)
                whole["continuous batching"] = time.perf_counter() - start
            for name, text in tokens.items():
                self.check(text, tokens["engine"], f"{name}, {batch} prompts of {prompt_tokens} tokens")
                same[name] = same_share(text, tokens["engine"])
            if number == 0:  # warms up
                continue
            shares.append(written["engine"][2])
            for name, each in whole.items():
                seconds.setdefault(name, []).append(each)
            for name, (_, stamps, *_) in written.items():
                steps[name].append((stamps[-1] - stamps[0]) / (num_new - 1))
        shape = {"batch": batch, "prompt_tokens": prompt_tokens, "new_tokens": num_new}
        return Texts(**shape, seconds=seconds, step_seconds=steps, outside_model=shares, same=same)

    def first_token(self) -> FirstToken:
        """Prompts that begin alike, in an engine that keeps pages and in one that does not.

        Raises:
            RuntimeError: they write different tokens.
        """
        shared, own = self.draw(self.size.shared_tokens), self.size.own_tokens
        pages = -(-(len(shared) + own) // PAGE_SIZE)
        budget = self.size.max_batch_tokens
        keeps = Engine(self.model, 2 * pages, PAGE_SIZE, max_batch_tokens=budget)
        forgets = Engine(self.model, pages, PAGE_SIZE, max_batch_tokens=budget, share_prefixes=False)
        one = SamplingParams(max_new_tokens=1)
        for engine in (keeps, keeps, forgets):  # the second time it finds what the first one left
            engine.generate([shared + self.draw(own)], one)
        already, found, recomputed = keeps.stats.found, [], []
        for _ in range(self.rounds):
            prompt = shared + self.draw(own)
            requests = [engine.submit(prompt, one) for engine in (keeps, forgets)]
            found.append(seconds_of(lambda: finish(keeps)))
            recomputed.append(seconds_of(lambda: finish(forgets)))
            self.check(requests[0].output, requests[1].output, "behind pages that were kept")
        kept = (keeps.stats.found - already) // self.rounds
        return FirstToken(shared_tokens=kept, own_tokens=own, found=found, recomputed=recomputed)

    def at_once(self) -> AtOnce:
        """As many requests as latents leave room for, in as many bytes of keys and values too.

        Raises:
            RuntimeError: the two write different texts.
        """
        size, (prompt_tokens, new_tokens) = self.size.page_size, self.size.at_once
        both: tuple[Storage, Storage] = ("latent", "expanded")
        page_bytes = {mla: Engine(self.model, 1, size, mla, capture=False).cache.nbytes for mla in both}
        memory = self.size.expanded_pages * page_bytes["expanded"]
        pages = {mla: memory // num_bytes for mla, num_bytes in page_bytes.items()}
        prompts = [self.draw(prompt_tokens) for _ in range(pages["latent"] // -(-(prompt_tokens + new_tokens) // size))]
        most: dict[Storage, int] = {"latent": 0, "expanded": 0}
        seconds: dict[Storage, list[float]] = {"latent": [], "expanded": []}
        for _ in range(min(self.rounds, self.size.at_once_rounds)):
            written = {}
            for mla in most:
                engine = Engine(self.model, pages[mla], size, mla, self.size.max_batch_tokens)
                requests = [engine.submit(prompt, SamplingParams(max_new_tokens=new_tokens)) for prompt in prompts]
                start = time.perf_counter()
                while not engine.is_idle:
                    taking_part = sum(event.kind == "computed" for event in engine.step())
                    most[mla] = max(most[mla], taking_part)
                seconds[mla].append(time.perf_counter() - start)
                written[mla] = [request.output for request in requests]
            self.check(written["latent"], written["expanded"], "latents, beside keys and values")
        return AtOnce(
            page_size=size,
            tokens=prompt_tokens + new_tokens,
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
        engine = Engine(self.model, pages, PAGE_SIZE, max_batch_tokens=self.size.max_batch_tokens)
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
        engine = Engine(NoModel(self.device), pages, PAGE_SIZE, max_batch_tokens=sum(lengths))
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


def run(*, toy: bool, rounds: int = 5, device: torch.device | None = None) -> ServingResults:
    """Measure the engine, part after part.

    Args:
        toy: a tiny model and few tokens: the times mean nothing.
        rounds: of each part.
        device: where; None for the CPU. A GPU serves the whole of DeepSeek-V2-Lite in bf16.

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
    device = device or torch.device("cpu")
    on_gpu = device.type == "cuda"
    size = TOY if toy else GPU if on_gpu else FULL
    model = random_model(size, device)
    theirs = transformers_model(model)
    measuring = Bench(size, rounds, model)
    prompts = torch.tensor([measuring.draw(64) for _ in range(4)], device=device)
    error = logits_error(model, theirs, prompts)
    if not error < LARGEST_ERROR:
        raise RuntimeError(f"the logits are off from those of transformers by {error:.2g}; expected {LARGEST_ERROR}")
    verdict = "is not measured on a GPU" if on_gpu else "runs"
    if not on_gpu:
        try:
            continuous_batching(theirs, [measuring.draw(8)], 2)
        except Unsupported as reason:
            verdict = f"does not run: {reason}"
    texts = [measuring.texts(theirs, *each, continuous=verdict == "runs") for each in size.texts]
    del theirs
    return ServingResults(
        machine=bench.describe_gpu(device) if on_gpu else bench.describe_cpu(),
        versions=bench.versions() | {"transformers": version},
        date=bench.today(),
        toy=toy,
        load_average=load,
        model=size.model,
        dtype=size.dtype,
        weight_bytes=sum(each.nbytes for each in model.parameters()),
        logits_error=error,
        continuous_batching=verdict,
        texts=texts,
        first_token=measuring.first_token(),
        verification=measuring.verification(),
        own_cost=measuring.own_cost(),
        at_once=measuring.at_once(),
    )
