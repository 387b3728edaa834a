"""What one rank holds, seen from a single process: shares of weights, tokens and pages, and layouts that cannot be."""

import itertools

import pytest
import torch

from mla_edu import GQAConfig, GroupedQueryAttention, MLAConfig, MultiHeadLatentAttention
from mla_edu.cache import LatentCache, PagedLatentCache
from mla_edu.cache.pages import PageTable
from mla_edu.distributed import (
    ContextLatentCache,
    ContextModelCache,
    ContextParallelAttention,
    ContextParallelEngine,
    DataParallelEngine,
    DataParallelMLP,
    Meeting,
    Ranks,
    TensorParallelAttention,
    TensorParallelEngine,
    TensorParallelMLP,
    context_parallel,
    data_parallel,
    num_local,
    tensor_parallel,
)
from mla_edu.distributed.heads import local_config, local_layer, local_mlp, share_of
from mla_edu.layers.mlp import SwiGLU
from mla_edu.ops.softmax import merge
from mla_edu.serving import MTPDrafter, SamplingParams
from mla_edu.testing import randomize, relative_error
from tiny_engines import MLA, model_of

CONFIG = MLAConfig(hidden_size=24, **MLA)
GQA = GQAConfig(hidden_size=24, num_attention_heads=6, num_key_value_heads=2, head_dim=4)


class Alone(Ranks):
    """One of several ranks, whose others are not there: what it exchanges comes from itself."""

    def __init__(self, rank=0, size=2):
        super().__init__(rank, size, 1.0, torch.device("cpu"))

    def all_gather(self, x, what):
        return x[None].expand(self.size, *x.shape)

    def all_to_all(self, x, what):
        return x


# Tokens


def test_limits_are_those_of_the_whole_sequence():
    """Two ranks, three drafts behind seven tokens: the second one sees 4, 4 and 5 of its own, and not 3, 4 and 5."""
    assert num_local(torch.tensor([8, 9, 10]), 1, 2).tolist() == [4, 4, 5]
    assert num_local(torch.tensor([8, 9, 10]), 0, 2).tolist() == [4, 5, 5]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_every_token_lies_on_one_rank(size):
    for length in range(30):
        held = [num_local(length, rank, size) for rank in range(size)]
        assert held == [sum(token % size == rank for token in range(length)) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8])
def test_the_parts_of_all_ranks_merge_into_the_whole(size, dtype):
    """Stored and attended in one process: no token is lost or kept twice, and a rank without any adds nothing."""
    config = CONFIG.model_copy(update={"kv_lora_rank": 128}) if dtype == torch.uint8 else CONFIG
    inner, lengths = torch.bfloat16 if dtype == torch.uint8 else torch.float64, (0, 1, 12, 17)
    generator = torch.Generator().manual_seed(0)
    c_kv = torch.randn(4, 20, config.kv_lora_rank, generator=generator, dtype=torch.float64).to(inner)
    k_pe = torch.randn(4, 20, 4, generator=generator, dtype=torch.float64).to(inner)
    parts = [ContextLatentCache(config, PageTable(12, 12, 4), Alone(rank, size), dtype) for rank in range(size)]
    whole = PagedLatentCache(config, PageTable(12, 12, 4), dtype)
    for cache in (whole, *parts):
        cache.pages.fill_(0xFF if dtype == torch.uint8 else torch.nan)
        for sequence, length in enumerate(lengths):
            if length:
                with cache.step(length, [sequence]):
                    cache.append(c_kv[sequence, None, :length], k_pe[sequence, None, :length])
        new = [torch.stack([x[b, n : n + 3] for b, n in enumerate(lengths)]) for x in (c_kv, k_pe)]
        cache.append(*new)
    assert sum(part.nbytes for part in parts) == whole.nbytes
    assert all(part.table.lengths == whole.table.lengths == [3, 4, 15, 20] for part in parts)
    stored = torch.stack([part.pages for part in parts], dim=2).flatten(1, 2)
    assert torch.equal(stored.view(torch.uint8), whole.pages.view(torch.uint8))
    q = torch.randn(4, 3, 5, config.elements_per_token, generator=generator, dtype=torch.float64).to(inner)
    found = [part.attend_part(q, 0.3) for part in parts]
    merged, _ = merge(found)
    bound = 1e-12 if dtype == torch.float64 else 2e-2
    assert relative_error(merged.to(inner).double(), whole.attend(q, 0.3).double()) < bound
    for rank, (out, lse) in enumerate(found):
        sees = num_local(torch.tensor([1, 2, 3]), rank, size) > 0  # of the sequence that began empty
        assert torch.equal(lse[0].isfinite(), sees[:, None].expand(-1, 5))
        assert not out[0][~sees].any()


def test_a_shorter_text_takes_back_what_each_rank_has_of_it():
    ranks = [Alone(rank, 3) for rank in range(3)]
    caches = [ContextLatentCache(CONFIG, PageTable(3, 6, 1), each, torch.float64) for each in ranks]
    for cache in caches:
        for length, keep in ((7, 7), (4, 8), (4, 12), (1, 12)):
            cache.append(torch.zeros(1, length, 12).double(), torch.zeros(1, length, 4).double())
            cache.truncate(keep)
        assert cache.lengths == [12] and len(cache.table.pages_of[0]) == 2


def test_one_rank_alone_does_not_attend():
    cache = ContextLatentCache(CONFIG, PageTable(2, 4, 1), Alone())
    with pytest.raises(TypeError, match="expected a ContextParallelAttention to attend over it"):
        cache.attend(torch.zeros(1, 1, 3, 16), 1.0)


# Weights


@pytest.mark.parametrize(("count", "size"), list(itertools.product((1, 2, 5, 7, 8), (1, 2, 3, 4))))
def test_shares_are_equally_large_and_lose_nothing(count, size):
    weight = torch.arange(1.0, count + 1)
    shares = [share_of(weight, rank, size) for rank in range(size)]
    assert {len(share) for share in shares} == {-(-count // size)}
    assert [x for share in shares for x in share.tolist() if x] == weight.tolist()


@pytest.mark.parametrize("size", [2, 3])
def test_padded_heads_add_exactly_nothing(size):
    layer = randomize(MultiHeadLatentAttention(CONFIG.model_copy(update={"num_attention_heads": 2 * size + 1})))
    last = local_layer(layer, Alone(size - 1, size))
    x = torch.randn(2, 5, 24)
    heads, width = last.config.num_attention_heads, CONFIG.v_head_dim
    padding = torch.arange(heads) >= 2
    assert heads == 3
    own = last.o_proj.weight.unflatten(1, (heads, width))
    assert not own[:, padding].any()
    before = last(x)
    with torch.no_grad():
        last.q_b_proj.weight.unflatten(0, (heads, -1))[padding] = 1e3
    assert torch.equal(last(x), before)


def test_what_all_ranks_return_adds_up():
    layer = randomize(MultiHeadLatentAttention(CONFIG.model_copy(update={"attention_bias": True}), dtype=torch.float64))
    mlp = randomize(SwiGLU(24, 7, dtype=torch.float64))
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    for whole, dealt in ((layer, local_layer), (mlp, local_mlp)):
        assert relative_error(sum(dealt(whole, Alone(rank, 3))(x) for rank in range(3)), whole(x)) < 1e-14


def test_a_rank_holds_its_share_and_no_more():
    model = model_of("mla")
    dealt = tensor_parallel(model, Alone(size=3))
    assert dealt.config.mla.num_attention_heads == 1 and model.config.mla.num_attention_heads == 3
    ours, theirs = (
        sum(weight.numel() for name, weight in each.named_parameters() if "q_b_proj" in name or "mlp" in name)
        for each in (dealt, model)
    )
    assert ours == 2 * (9 * 9 + 3 * 24 * 11) and theirs == 2 * (27 * 9 + 3 * 24 * 32)
    assert dealt.embed_tokens is model.embed_tokens


@pytest.mark.parametrize(
    ("kv_heads", "size", "heads"), [(6, 2, (3, 3)), (6, 6, (1, 1)), (1, 4, (2, 1)), (2, 4, (2, 1)), (2, 2, (3, 1))]
)
def test_key_value_heads_are_dealt_or_kept_on_several_ranks(kv_heads, size, heads):
    config = local_config(GQA.model_copy(update={"num_key_value_heads": kv_heads}), Alone(size=size))
    assert (config.num_attention_heads, config.num_key_value_heads) == heads


# Bad input


@pytest.mark.parametrize(
    "make",
    [
        lambda ranks: ContextParallelEngine(model_of("mla"), ranks, 4),
        lambda ranks: TensorParallelEngine(model_of("mla"), ranks, 4),
        lambda ranks: DataParallelEngine(model_of("mla"), ranks, 4),
        lambda ranks: context_parallel(model_of("mla"), ranks),
        lambda ranks: tensor_parallel(model_of("mla"), ranks),
        lambda ranks: TensorParallelAttention(MultiHeadLatentAttention(CONFIG), ranks),
        lambda ranks: ContextParallelAttention(MultiHeadLatentAttention(CONFIG), ranks),
        lambda ranks: TensorParallelMLP(SwiGLU(4, 6), ranks),
        lambda ranks: ContextLatentCache(CONFIG, PageTable(2, 4, 1), ranks),
        lambda ranks: ContextModelCache(model_of("mla").config, PageTable(2, 4, 1), ranks),
        Meeting,
    ],
)
@pytest.mark.parametrize(("ranks", "kind"), [(None, "NoneType"), (2, "int"), (Alone, "type")])
def test_what_are_no_ranks_is_refused_by_name(make, ranks, kind):
    with pytest.raises(TypeError, match=f"^ranks is a {kind}; expected a Ranks, as connect\\(\\) gives it$"):
        make(ranks)


@pytest.mark.parametrize(
    "make", [lambda it: DataParallelMLP(SwiGLU(4, 6), it), lambda it: data_parallel(model_of("mla"), it)]
)
def test_what_is_no_meeting_is_refused_by_name(make):
    for meeting, kind in ((None, "NoneType"), (Alone(), "Alone")):
        with pytest.raises(TypeError, match=f"^meeting is a {kind}; expected a Meeting$"):
            make(meeting)


@pytest.mark.parametrize(
    ("length", "found"),
    [(None, "None"), ("8", "'8'"), (8.0, "8.0"), (True, "True"), ([8], r"\[8\]")]
    + [(torch.ones(2, dtype=dtype), f"a tensor of {dtype}") for dtype in (torch.float32, torch.bool)],
)
def test_what_is_no_number_of_tokens_is_refused_by_name(length, found):
    with pytest.raises(TypeError, match=f"^length is {found}; expected an integer, or a tensor of integers$"):
        num_local(length, 0, 2)


@pytest.mark.parametrize(
    ("rank", "size", "message"),
    [
        (0, None, "size is None; expected a positive integer"),
        (0, 0, "size is 0; expected a positive integer"),
        (0.0, 2, "rank is 0.0; expected an integer from 0 to 1"),
        (2, 2, "rank is 2; expected an integer from 0 to 1"),
    ],
)
def test_what_is_no_rank_is_refused_by_name(rank, size, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        num_local(8, rank, size)


def test_ranks_without_a_head_are_refused():
    layer = MultiHeadLatentAttention(CONFIG)
    for kind in (TensorParallelAttention, ContextParallelAttention):
        with pytest.raises(ValueError, match="ranks is 4; expected an integer from 1 to 3"):
            kind(layer, Alone(size=4))
    with pytest.raises(ValueError, match="ranks is 7; expected an integer from 1 to 6"):
        TensorParallelAttention(GroupedQueryAttention(GQA), Alone(size=7))
    with pytest.raises(ValueError, match="num_key_value_heads is 2; expected a multiple or a divisor of the 3 ranks"):
        TensorParallelAttention(GroupedQueryAttention(GQA), Alone(size=3))


def test_other_layers_are_refused():
    with pytest.raises(TypeError, match="layer is a Linear; expected a MultiHeadLatentAttention or a Grouped"):
        TensorParallelAttention(torch.nn.Linear(2, 2), Alone())
    with pytest.raises(TypeError, match="layer is a GroupedQueryAttention; expected a MultiHeadLatentAttention"):
        ContextParallelAttention(GroupedQueryAttention(GQA), Alone())
    with pytest.raises(TypeError, match="mlp is a Linear; expected a SwiGLU or a MixtureOfExperts"):
        TensorParallelMLP(torch.nn.Linear(2, 2), Alone())
    with pytest.raises(TypeError, match="model is a Linear; expected a Decoder"):
        TensorParallelEngine(torch.nn.Linear(2, 2), Alone(), 4)
    with pytest.raises(TypeError, match="layer is a Mamba2; expected"):
        TensorParallelEngine(model_of("hybrid"), Alone(), 4)


def test_a_mode_is_of_latents_alone():
    dealt = TensorParallelAttention(GroupedQueryAttention(GQA), Alone())
    with pytest.raises(ValueError, match="mode is 'absorbed'; expected 'auto' for a GroupedQueryAttention"):
        dealt(torch.zeros(1, 1, 24), mode="absorbed")


def test_other_caches_are_refused():
    dealt = ContextParallelAttention(MultiHeadLatentAttention(CONFIG), Alone())
    with pytest.raises(TypeError, match="cache is a LatentCache; expected a ContextLatentCache"):
        dealt(torch.zeros(1, 1, 24), LatentCache(CONFIG, 1, 4, torch.float32))
    with pytest.raises(ValueError, match="page_size is 5; expected a multiple of the 2 ranks"):
        ContextLatentCache(CONFIG, PageTable(2, 5, 1), Alone())
    with pytest.raises(TypeError, match="table is a list; expected a PageTable"):
        ContextLatentCache(CONFIG, [], Alone())


def test_what_ranks_cannot_agree_on_is_refused():
    with pytest.raises(ValueError, match="drafter is an MTPDrafter; expected one without a layer"):
        DataParallelEngine(model_of("mtp"), Alone(), 4, drafter=MTPDrafter())
    engine = TensorParallelEngine(model_of("mla"), Alone(), 4)
    with pytest.raises(ValueError, match="seed is None; expected a number, since all ranks"):
        engine.submit([1], SamplingParams(temperature=1.0))
    assert engine.is_idle


def test_more_tokens_than_were_agreed_on_are_refused():
    meeting = Meeting(Alone())
    mlp = DataParallelMLP(SwiGLU(4, 6), meeting)
    with pytest.raises(ValueError, match="x has 1 tokens; expected at most the 0 agreed on"):
        mlp(torch.zeros(1, 4))
    meeting.agree(3)
    with pytest.raises(ValueError, match="x has 4 tokens; expected at most the 3 agreed on"):
        mlp(torch.zeros(2, 2, 4))
