"""Layers whose heads, requests or tokens are dealt over ranks, beside the same layers in one process."""

from unittest import mock

import torch

from mla_edu.cache import KVCache, LatentCache, PagedKVCache, PagedLatentCache
from mla_edu.cache.pages import PageTable
from mla_edu.config import MoEConfig
from mla_edu.cost import all_reduce_bytes, context_bytes, gather_bytes
from mla_edu.distributed import (
    ContextLatentCache,
    ContextParallelAttention,
    DataParallelMLP,
    Meeting,
    TensorParallelAttention,
    TensorParallelMLP,
    context,
)
from mla_edu.kernels import reference
from mla_edu.layers.mlp import SwiGLU
from mla_edu.layers.moe import MixtureOfExperts
from mla_edu.testing import randomize, relative_error
from rank_case import HIDDEN, LENGTHS, PAGE, YARN, draw, fill, gqa_layer, mla_layer, poisoned

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
    replicated = PagedLatentCache(layer.config, PageTable(30, PAGE, len(LENGTHS)), torch.uint8)
    by_heads = TensorParallelAttention(layer, ranks)
    fill(by_heads, poisoned(replicated), texts, LENGTHS)
    alone = layer(new, whole, "absorbed").double()
    for found in (dealt(new, part), by_heads(new, replicated, "absorbed")):
        assert (error := relative_error(found.double(), alone)) < 2e-2, error
    exact = {"kv_lora_rank": 256, "sm_scale": layer.sm_scale}
    q = draw(len(LENGTHS), 3, ranks.size * dealt.config.num_attention_heads, 260)
    with mock.patch.object(context, "mla_decode", _decode_in_float64):
        out, lse = part.attend_part(q, layer.sm_scale)
    table = whole.table
    expected, _ = reference.decode(q, whole.pages, table.block_table, table.seq_lens, **exact)
    own = expected.unflatten(2, (ranks.size, -1))[:, :, ranks.rank]
    case.equal(dealt.merged(out, lse), own)


def _decode_in_float64(*tensors, backend, return_lse, **options):
    """As ``mla_decode``, which takes fp8 rows with queries in bf16 alone."""
    return reference.decode(*tensors, **options)


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
