"""What each rank of a launch runs: all cases, in one process group; rank 0 writes down what every rank found.

A case gives pairs of what ranks made together and what one process makes alone, and pairs of bytes: counted where they
passed, and as the cost model has them. ``torchrun worker.py FILE``.
"""

import json
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import torch

from mla_edu import GQAConfig, GroupedQueryAttention, MLAConfig, MultiHeadLatentAttention
from mla_edu.cache import KVCache, LatentCache, PagedKVCache, PagedLatentCache
from mla_edu.cache.pages import PageTable
from mla_edu.config import MoEConfig
from mla_edu.cost import all_reduce_bytes, context_bytes, gather_bytes
from mla_edu.distributed import (
    ContextLatentCache,
    ContextParallelAttention,
    ContextParallelEngine,
    DataParallelEngine,
    DataParallelMLP,
    Meeting,
    TensorParallelAttention,
    TensorParallelEngine,
    TensorParallelMLP,
    connect,
)
from mla_edu.kernels import reference
from mla_edu.layers.mlp import SwiGLU
from mla_edu.layers.moe import MixtureOfExperts
from mla_edu.serving import Engine, MTPDrafter, NGramDrafter, SamplingParams
from mla_edu.testing import randomize, relative_error
from tiny_engines import MLA, MOE, SHAPES, Guesses, model_of

HIDDEN = 24  # any number of tokens' states divides by 1, 2, 3 and 4 ranks: nothing is padded
YARN = {"rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 8, "mscale": 0.9, "mscale_all_dim": 1.3}
PAGE = 12  # divides likewise
LENGTHS = (0, 1, 3, 8, 12, 23, 24)  # none, fewer than ranks, multiples of any number of ranks, full pages


def mla_layer(heads, dtype=torch.float64, **options):
    widths = {"q_lora_rank": 9, "kv_lora_rank": 10, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 7}
    config = MLAConfig(hidden_size=HIDDEN, num_attention_heads=heads, **widths | options)
    return randomize(MultiHeadLatentAttention(config, dtype=dtype), seed=heads).requires_grad_(False)


def gqa_layer(heads, kv_heads, **options):
    config = GQAConfig(
        hidden_size=HIDDEN, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=6, **options
    )
    layer = GroupedQueryAttention(config, dtype=torch.float64)
    return randomize(layer, seed=heads).requires_grad_(False)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def poisoned(cache):
    for memory in cache.memory:
        memory.fill_(0xFF if memory.dtype == torch.uint8 else torch.nan)
    return cache


def fill(layer, cache, texts, lengths):
    """Every sequence with as many tokens as it should have, in chunks of sequences that take turns for pages."""
    for start in range(0, max(lengths), 12):
        for sequence, length in enumerate(lengths):
            chunk = texts[sequence : sequence + 1, start : min(start + 12, length)]
            if chunk.shape[1]:
                with cache.table.step(chunk.shape[1], [sequence]):
                    layer(chunk, cache)


class Case:
    """What one case has found on this rank."""

    def __init__(self, ranks):
        self.ranks, self.error, self.bytes = ranks, 0.0, []
        ranks.received.clear()

    def equal(self, actual, expected):
        self.error = max(self.error, relative_error(actual, expected))

    def exact(self, actual, expected):
        assert actual == expected, f"{actual} instead of {expected}"

    def counted(self, expected, width=2):
        """What passed since the last call, beside what the formulas say, in numbers of ``width`` bytes."""
        counted = {name: count for name, count in self.ranks.received.items() if name != "control" and count}
        expected = {name: count * width // 2 for name, count in expected.items() if count}
        if width == 8 and "lse" in expected:
            expected["lse"] //= 2  # float64 for fp32
        self.bytes.append((counted, expected))
        self.ranks.received.clear()


# Tensor parallelism


def tensor_latents(case):
    """Every mode and cache, heads that divide and heads that do not, one new token to four behind ragged lengths."""
    ranks, most = case.ranks, len(LENGTHS)
    for heads, options in ((12, {}), (5, {"q_lora_rank": None}), (7, {"attention_bias": True, "rope_scaling": YARN})):
        layer = mla_layer(heads, **options)
        dealt = TensorParallelAttention(layer, ranks)
        case.exact(dealt.config.num_attention_heads, -(-heads // ranks.size))
        x = draw(2, 9, HIDDEN)
        for mode in ("expanded", "absorbed"):
            ranks.received.clear()
            case.equal(dealt(x, mode=mode), layer(x, mode=mode))
            case.counted({"attention": all_reduce_bytes(layer.config, ranks.size, 18)}, width=8)
        for kind, mode in (((LatentCache, "absorbed"),), ((LatentCache, "expanded"), (KVCache, "auto")), ())[heads % 3]:
            _decode(case, layer, dealt, [kind(each.config, most, 28, torch.float64) for each in (layer, dealt)], mode)
        if heads == 5:
            for kind in (PagedLatentCache, PagedKVCache):
                tables = [PageTable(20, PAGE, most) for _ in range(2)]
                caches = [kind(layer.config, tables[0], torch.float64), kind(dealt.config, tables[1], torch.float64)]
                _decode(case, layer, dealt, caches, "auto")


def _decode(case, layer, dealt, caches, mode):
    texts = draw(len(LENGTHS), 24, HIDDEN, seed=1)
    for each, cache in zip((layer, dealt), caches, strict=True):
        fill(each, poisoned(cache), texts, LENGTHS)
    for num_new in (1, 2, 3, 4):
        new = draw(len(LENGTHS), num_new, HIDDEN, seed=num_new)
        case.equal(dealt(new, caches[1], mode), layer(new, caches[0], mode))
        for cache in caches:
            for sequence, length in enumerate(LENGTHS):
                cache.truncate(length, [sequence])


def tensor_groups(case):
    """Key/value heads that divide by the ranks, and those that several ranks hold, with padded query heads."""
    for heads, kv_heads, options in (
        (24, 12, {"o_bias": True, "qkv_bias": True}),
        (5, 1, {"o_bias": True}),
        (12, 12, {}),
        (4, 1, {"qkv_bias": True, "sliding_window": 6}),
        *(((10, 2, {"qkv_bias": True}),) if case.ranks.size != 3 else ()),
    ):
        layer = gqa_layer(heads, kv_heads, **options)
        dealt = TensorParallelAttention(layer, case.ranks)
        case.exact(dealt.config.num_key_value_heads, max(kv_heads // case.ranks.size, 1))
        x = draw(2, 9, HIDDEN)
        case.ranks.received.clear()
        case.equal(dealt(x), layer(x))
        case.counted({"attention": all_reduce_bytes(layer.config, case.ranks.size, 18)}, width=8)
        caches = [KVCache(each.config, 2, 9, torch.float64) for each in (layer, dealt)]
        for start, end in ((0, 1), (1, 5), (5, 6), (6, 9)):
            parts = (each(x[:, start:end], cache) for each, cache in zip((layer, dealt), caches, strict=True))
            case.equal(*reversed(list(parts)))


def mlps():
    dense = randomize(SwiGLU(HIDDEN, 10, dtype=torch.float64), seed=1)
    config = MoEConfig(
        hidden_size=HIDDEN, n_routed_experts=5, num_experts_per_tok=2, moe_intermediate_size=7, n_shared_experts=3
    )
    experts = randomize(MixtureOfExperts(config, dtype=torch.float64), seed=2)
    narrow = randomize(SwiGLU(HIDDEN, 2, dtype=torch.float64), seed=3)  # less than ranks
    return [each.requires_grad_(False) for each in (dense, experts, narrow)]


def tensor_mlps(case):
    for mlp in mlps():
        x = draw(2, 5, HIDDEN)
        case.equal(TensorParallelMLP(mlp, case.ranks)(x), mlp(x))
        case.counted({"mlp": all_reduce_bytes(mla_layer(1).config, case.ranks.size, 10)}, width=8)


def padded_sums(case):
    """Sums of numbers that do not divide by the ranks; every rank has the same bits."""
    for count in (1, 2, 5, 7, 23):
        parts = draw(case.ranks.size, count)
        total = case.ranks.all_reduce(parts[case.ranks.rank].view(1, count), "sum")
        case.equal(total, parts.sum(0).view(1, count))
        case.exact(len({str(each) for each in case.ranks.gather_values(total.tolist())}), 1)
        received = 2 * (case.ranks.size - 1) * -(-count // case.ranks.size) * 8
        case.exact(case.ranks.received.pop("sum"), received)


# Data-parallel attention


def data_layer(case):
    """A layer of attention and what follows it; ranks with different numbers of tokens, the last one with none."""
    ranks, layer = case.ranks, mla_layer(5)
    own = 3 + ranks.rank if ranks.rank < ranks.size - 1 or ranks.size == 1 else 0
    most = 3 + max(ranks.size - 2, 0)
    for mlp in mlps():
        meeting = Meeting(ranks)
        dealt = DataParallelMLP(mlp, meeting)
        mixed = layer(draw(1, own, HIDDEN, seed=ranks.rank)) if own else draw(1, 0, HIDDEN)
        case.exact(meeting.agree(own), most)
        out = dealt(mixed)
        if own:
            case.equal(out, mlp(mixed))
        case.exact(list(out.shape), [1, own, HIDDEN])
        case.counted({"mlp": gather_bytes(layer.config, ranks.size, most)}, width=8)


# Tokens dealt over ranks


def context_layers(layer, ranks, **options):
    dealt = ContextParallelAttention(layer, ranks, **options)
    caches = [
        poisoned(PagedLatentCache(layer.config, PageTable(30, PAGE, len(LENGTHS)), torch.float64)),
        poisoned(ContextLatentCache(dealt.config, PageTable(30, PAGE, len(LENGTHS)), ranks, torch.float64)),
    ]
    texts = draw(len(LENGTHS), 24, HIDDEN, seed=1)
    for each, cache in zip((layer, dealt), caches, strict=True):
        fill(each, cache, texts, LENGTHS)
    ranks.received.clear()
    return dealt, caches


def context_decode(case):
    """One new token to four behind ragged lengths; some ranks have no token of a short sequence."""
    ranks = case.ranks
    for heads, before, options in (
        (12, False, {}),
        (5, True, {"q_lora_rank": None}),
        (5, False, {"attention_bias": True, "rope_scaling": YARN}),
        (7, True, {}),
    ):
        layer = mla_layer(heads, **options)
        dealt, caches = context_layers(layer, ranks, before_absorption=before)
        for num_new in (1, 2, 3, 4):
            new = draw(len(LENGTHS), num_new, HIDDEN, seed=num_new)
            case.equal(dealt(new, caches[1]), layer(new, caches[0], "absorbed"))
            tokens = num_new * len(LENGTHS)
            traffic = context_bytes(layer.config, ranks.size, tokens, before_absorption=before)
            expected = {"queries": traffic.queries, "lse": traffic.lse, "outputs": traffic.outputs}
            case.counted(expected | {"attention": all_reduce_bytes(layer.config, ranks.size, tokens)}, width=8)
            for cache in caches:
                for sequence, length in enumerate(LENGTHS):
                    cache.truncate(length, [sequence])


def context_rejected(case):
    """Four guesses, of which some stay, again and again: lengths grow and shrink past what a rank has of them."""
    layer = mla_layer(5)
    dealt, caches = context_layers(layer, case.ranks)
    lengths = list(LENGTHS)
    for turn in range(7):
        new = draw(len(LENGTHS), 4, HIDDEN, seed=turn)
        case.equal(dealt(new, caches[1]), layer(new, caches[0], "absorbed"))
        for sequence in range(len(LENGTHS)):
            lengths[sequence] += (turn + sequence) % 4
            for cache in caches:
                cache.truncate(lengths[sequence], [sequence])
        one = draw(len(LENGTHS), 1, HIDDEN, seed=10 + turn)
        case.equal(dealt(one, caches[1]), layer(one, caches[0], "absorbed"))
        lengths = [length + 1 for length in lengths]
        case.exact(caches[0].lengths, lengths)
        case.exact(caches[1].lengths, lengths)


def context_fp8(case):
    """Rows in fp8: the bytes that lie on the ranks are those of one process, and what attends to them is as exact.

    A layer computes in bf16 there; to see errors smaller than its own, queries in float64 attend too.
    """
    ranks = case.ranks
    layer = mla_layer(5, torch.bfloat16, kv_lora_rank=256)
    dealt = ContextParallelAttention(layer, ranks)
    whole = poisoned(PagedLatentCache(layer.config, PageTable(30, PAGE, len(LENGTHS)), torch.uint8))
    part = poisoned(ContextLatentCache(dealt.config, PageTable(30, PAGE, len(LENGTHS)), ranks, torch.uint8))
    texts = draw(len(LENGTHS), 24, HIDDEN, dtype=torch.bfloat16, seed=1)
    c_kv, k_pe = layer.latents(texts, torch.arange(24)[None])
    for cache in (whole, part):
        for sequence, length in enumerate(LENGTHS):
            if length:
                with cache.table.step(length, [sequence]):
                    cache.append(c_kv[sequence : sequence + 1, :length], k_pe[sequence : sequence + 1, :length])
    stored = ranks.all_gather(part.pages, "rows").movedim(0, 2).flatten(1, 2)
    case.exact(bool((stored == whole.pages).all()), True)
    new = draw(len(LENGTHS), 3, HIDDEN, dtype=torch.bfloat16, seed=2)
    error = relative_error(dealt(new, part).double(), layer(new, whole, "absorbed").double())
    assert error < 2e-2, error
    decode = sys.modules["mla_edu.distributed.context"].mla_decode
    exact = {"kv_lora_rank": 256, "sm_scale": layer.sm_scale}
    q = draw(len(LENGTHS), 3, 5 if ranks.size == 1 else ranks.size * dealt.config.num_attention_heads, 260)
    try:
        sys.modules["mla_edu.distributed.context"].mla_decode = lambda *tensors, backend, return_lse, **options: (
            reference.decode(*tensors, **options)
        )
        out, lse = part.attend_part(q, layer.sm_scale)
    finally:
        sys.modules["mla_edu.distributed.context"].mla_decode = decode
    table = whole.table
    expected, _ = reference.decode(q, whole.pages, table.block_table, table.seq_lens, **exact)
    own = expected.unflatten(2, (ranks.size, -1))[:, :, ranks.rank]
    case.equal(dealt.merged(out, lse), own)


def context_bf16(case):
    """The bytes of 16-bit numbers and of fp32 log-sum-exps, as the formulas count them."""
    ranks = case.ranks
    for before in (False, True):
        layer = mla_layer(7, torch.bfloat16)
        dealt = ContextParallelAttention(layer, ranks, before_absorption=before)
        cache = ContextLatentCache(dealt.config, PageTable(4, PAGE, 2), ranks, torch.bfloat16)
        ranks.received.clear()
        dealt(draw(2, 3, HIDDEN, dtype=torch.bfloat16), cache)
        traffic = context_bytes(layer.config, ranks.size, 6, before_absorption=before)
        expected = {"queries": traffic.queries, "lse": traffic.lse, "outputs": traffic.outputs}
        case.counted(expected | {"attention": all_reduce_bytes(layer.config, ranks.size, 6)})


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


CASES = [
    tensor_latents,
    tensor_groups,
    tensor_mlps,
    padded_sums,
    data_layer,
    context_decode,
    context_rejected,
    context_fp8,
    context_bf16,
    serve_tensor,
    serve_context,
    serve_data,
    serve_sampled,
    disagreements,
]


def main(path, names):
    torch.set_num_threads(1)
    found, start = {}, time.perf_counter()
    with connect(timeout=40, network="gloo") as ranks, torch.no_grad():
        for run in CASES:
            if names and run.__name__ not in names:
                continue
            case, failed = Case(ranks), None
            try:
                run(case)
            except Exception:
                failed = traceback.format_exc()
            took, start = time.perf_counter() - start, time.perf_counter()
            own = {"took": took, "error": case.error, "bytes": case.bytes, "failed": failed}
            found[run.__name__] = ranks.gather_values(own)
    if ranks.rank == 0:
        Path(path).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
