"""Engines whose model is dealt over ranks, beside an engine of one process; and ranks that do not agree."""

from functools import partial

import torch

from mla_edu.cost import all_reduce_bytes, context_bytes, gather_bytes
from mla_edu.distributed import (
    ContextParallelAttention,
    ContextParallelEngine,
    DataParallelEngine,
    TensorParallelAttention,
    TensorParallelEngine,
)
from mla_edu.serving import Engine, MTPDrafter, NGramDrafter, SamplingParams
from rank_case import PAGE, mla_layer, poisoned
from tiny_engines import MLA, MOE, SHAPES, Guesses, model_of

# Engines

PROMPTS = [(1, 2, 3, 4, 5, 6, 7), (3, 3), (1, 2, 3, 4, 9), (5,), (1, 2, 3, 4, 5, 6, 1, 2), (1, 2, 3, 4, 5, 6, 7, 8)]
COUNTS = (5, 3, 1, 4, 6, 2)
FIVE = {"layers": ["mla", "mla"], "mla": MLA | {"num_attention_heads": 5}}
SHAPES |= {
    "five": FIVE,
    "five-moe": FIVE | {"moe": MOE, "feed_forward": ["dense", "moe"]},
    "five-mtp": FIVE | {"num_mtp_layers": 1},
    "mqa": {
        "layers": ["gqa", "gqa"],
        "gqa": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 6, "sliding_window": 5},
    },
}
GUESSES = partial(Guesses, "five", num_drafts=4, share_right=0.6, seed=1)
DEAL = {"tensor": TensorParallelEngine, "context": ContextParallelEngine, "data": DataParallelEngine}


def watch(engine):
    """The hidden states of each step, as they are computed."""
    seen, inner = [], engine.model.hidden_states

    def hidden_states(*arguments):
        seen.append(inner(*arguments))
        return seen[-1]

    engine.model.hidden_states = hidden_states
    return seen


def serve(case, scheme, name, drafter=None, met=None, **options):
    """An engine of all ranks and one of a single process, step by step."""
    ranks, sizes = case.ranks, {"num_pages": 5, "page_size": PAGE, "max_batch_tokens": 16}
    engine = DEAL[scheme](model_of(name), ranks, drafter=drafter() if drafter else None, **sizes, **options)
    for cache in (*engine.cache.layers, engine.cache.mtp):
        if cache is not None and scheme != "data":
            poisoned(cache)
    if met is not None:
        agree = engine.meeting.agree
        engine.meeting.agree = lambda count: met.append(agree(count)) or met[-1]
    params = [SamplingParams(max_new_tokens=count) for count in COUNTS]
    ours, before = watch(engine), dict(ranks.received)
    try:
        outputs = engine.generate(PROMPTS, params)
    finally:
        del engine.model.hidden_states
    options.pop("before_absorption", None)
    own = slice(ranks.rank, None, ranks.size) if scheme == "data" else slice(None)
    alone = Engine(model_of(name), drafter=drafter() if drafter else None, **sizes, **options)
    theirs = watch(alone)
    try:
        case.exact(outputs[own], alone.generate(PROMPTS[own], params[own]))
    finally:
        del alone.model.hidden_states
    case.exact(len(ours), len(theirs))
    for one, other in zip(ours, theirs, strict=True):
        case.equal(one, other)
    case.exact(engine.table.allocator.num_free, 5)
    return engine, before


def serve_tensor(case):
    config = model_of("five").config
    engine, before = serve(case, "tensor", "five", GUESSES)
    per_token = all_reduce_bytes(config.mla, case.ranks.size) * 4 * len(config.layers)
    for what in ("attention", "mlp"):
        case.exact(case.ranks.received[what] - before.get(what, 0), engine.stats.computed * per_token)
    serve(case, "tensor", "five-moe", NGramDrafter, mla="expanded")
    serve(case, "tensor", "five-mtp", partial(MTPDrafter, 2))
    serve(case, "tensor", "mqa")


def serve_context(case):
    config = model_of("five").config
    engine, before = serve(case, "context", "five", GUESSES)
    traffic, sums = context_bytes(config.mla, case.ranks.size), 4 * all_reduce_bytes(config.mla, case.ranks.size)
    parts = {"queries": 4 * traffic.queries, "lse": 2 * traffic.lse, "outputs": 4 * traffic.outputs}
    for what, count in (parts | {"attention": sums, "mlp": sums}).items():
        passed = case.ranks.received[what] - before.get(what, 0)
        case.exact(passed, engine.stats.computed * count * len(config.layers))
    serve(case, "context", "five-mtp", partial(MTPDrafter, 2), before_absorption=True)


def serve_data(case):
    for name, drafter in (("five", GUESSES), ("hybrid", None), ("window", None), ("mla-moe", NGramDrafter)):
        met = []
        engine, before = serve(case, "data", name, drafter, met=met)
        passed = case.ranks.received["mlp"] - before.get("mlp", 0)
        per_token = 4 * gather_bytes(mla_layer(1).config, case.ranks.size) * len(engine.model.config.layers)
        case.exact(passed, sum(met) * per_token)
        case.exact([len(met) > 2, met[0] > 1, met[-1]], [True, True, 0])


def serve_sampled(case):
    """Drawn tokens, which all ranks must draw alike, are those of one process."""
    params = [SamplingParams(max_new_tokens=3, temperature=1.5, top_p=0.9, seed=seed) for seed in range(5)]
    prompts = PROMPTS[: len(params)]
    expected = Engine(model_of("five"), 5, PAGE).generate(prompts, params)
    for scheme in DEAL.values():
        case.exact(scheme(model_of("five"), case.ranks, 5, page_size=PAGE).generate(prompts, params), expected)


# Ranks that do not agree


def refused(call, *words):
    try:
        call()
    except ValueError as error:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{error} does not say {missing}"
    else:
        raise AssertionError(f"nothing was raised; expected {words}")


def disagreements(case):
    """Arguments that differ on the last rank are told by name, on every rank, and the ranks can go on."""
    ranks = case.ranks
    if ranks.size == 1:
        return
    last = ranks.size - 1
    odd, words = ranks.rank == last, f"on rank {last}"
    layer = mla_layer(12, rope_theta=100.0 if odd else 10000.0)
    for kind in (TensorParallelAttention, ContextParallelAttention):
        refused(lambda kind=kind: kind(layer, ranks), "rope_theta is 10000.0 on rank 0 and 100.0", words)
    refused(lambda: TensorParallelAttention(mla_layer(12 if odd else 8), ranks), "num_attention_heads", words)
    refused(lambda: TensorParallelAttention(mla_layer(8, torch.float32 if odd else torch.float64), ranks), "dtype")
    refused(lambda: ContextParallelAttention(mla_layer(8), ranks, before_absorption=odd), "before_absorption", words)
    for scheme in DEAL.values():
        refused(lambda scheme=scheme: scheme(model_of("five"), ranks, 5 + odd), "num_pages is 5 on rank 0 and 6", words)
        name = "mqa" if odd else "five"
        refused(lambda scheme=scheme, name=name: scheme(model_of(name), ranks, 5, page_size=PAGE), words)
    engine = TensorParallelEngine(model_of("five"), ranks, 5)
    engine.submit([1, 2] if odd else [1, 3])
    refused(engine.step, "requests", words)
    engine = DataParallelEngine(model_of("five"), ranks, 5)
    refused(lambda: engine.generate([[1, 2] if odd else [1, 3]]), "prompts", words)
    refused(lambda: ranks.check_same(**{"two": 2} if odd else {"one": 1}), "not given")
    ranks.check_same(one=1)
