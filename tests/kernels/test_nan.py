"""A NaN in a token makes NaN of the rows that see it, and of no others: in every backend, and through every merge.

Where NaN is expected follows from the causal mask, written out here; all other numbers are those of the same problem
without the NaN.
"""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_edu.kernels import mla_decode
from mla_edu.kernels.problems import check_answer, random_problem
from mla_edu.kernels.tiles import Tiles

launch = pytest.importorskip("mla_edu.kernels.launch")
DEVICE = "cpu" if launch.INTERPRETED else "cuda"
NAN = float("nan")


def row_of(problem, sequence, token):
    """A token's row in the cache, as a view."""
    page = problem.block_table[sequence, token // problem.kv_cache.shape[1]]
    return problem.kv_cache[page, token % problem.kv_cache.shape[1]]


def seen_by(problem, sequence, token):
    """[batch, s_q]: which new tokens see it."""
    batch, s_q = problem.q.shape[:2]
    seen = torch.zeros(batch, s_q, dtype=torch.bool)
    last = int(problem.seq_lens[sequence]) - s_q + torch.arange(s_q)
    seen[sequence] = last >= token if problem.causal else True
    return seen


def check_nan(problem, broken, nan, **options):
    """``broken`` is ``problem`` with NaN, which shows in ``nan`` [batch, s_q, heads] and nowhere else."""
    out, lse = problem.expected()
    nan = nan.to(DEVICE)
    expected = out.masked_fill(nan[..., None], NAN), lse.masked_fill(nan.transpose(1, 2), NAN)
    for backend in ("reference", "triton"):
        answer = mla_decode(*broken.tensors, **broken.options, backend=backend, return_lse=True, **options)
        check_answer(answer, expected)


SHAPES = {
    "seq_lens": st.lists(st.integers(1, 70), min_size=1, max_size=3),
    "num_heads": st.integers(1, 6),
    "s_q": st.integers(1, 6),
    "page_size": st.sampled_from([1, 7, 16, 64]),
    "causal": st.booleans(),
    "seed": st.integers(0, 99),
}


@st.composite
def problems_with_places(draw, **more):
    """A problem, up to three of its tokens, and a number for each of them."""
    problem = random_problem(**draw(st.fixed_dictionaries(SHAPES | more)), device=DEVICE)
    lengths = problem.seq_lens.tolist()
    places = []
    for _ in range(draw(st.integers(1, 3))):
        sequence = draw(st.integers(0, len(lengths) - 1))
        newest = st.integers(max(0, lengths[sequence] - problem.q.shape[1] - 1), lengths[sequence] - 1)
        token = draw(newest | st.integers(0, lengths[sequence] - 1))
        places.append((sequence, token, draw(st.integers(0, 10**6))))
    return problem, places


def copy_of(problem):
    return dataclasses.replace(problem, q=problem.q.clone(), kv_cache=problem.kv_cache.clone())


def all_who_see(problem, places):
    seen = torch.stack([seen_by(problem, sequence, token) for sequence, token, _ in places]).any(dim=0)
    return seen[..., None].expand(-1, -1, problem.q.shape[2])


@settings(max_examples=15)
@given(
    problems_with_places(
        dtype=st.sampled_from(["fp32", "fp16", "bf16"]),
        kv_lora_rank=st.integers(17, 70),
        qk_rope_head_dim=st.integers(0, 20),
    ),
    st.none() | st.integers(1, 4),
)
def test_a_nan_in_a_token_shows_where_it_is_seen(drawn, num_splits):
    problem, places = drawn
    broken = copy_of(problem)
    for sequence, token, number in places:
        row = row_of(broken, sequence, token)
        row[number % len(row)] = NAN
    check_nan(problem, broken, all_who_see(problem, places), num_splits=num_splits)


@settings(max_examples=15)
@given(
    problems_with_places(
        dtype=st.just("fp8_mla"), kv_lora_rank=st.sampled_from([128, 256]), qk_rope_head_dim=st.sampled_from([0, 8])
    ),
    st.sampled_from(["0x7F", "0xFF", "scale", "rotary"]),
    st.none() | st.integers(1, 4),
)
def test_a_nan_in_an_fp8_row_shows_where_it_is_seen(drawn, kind, num_splits):
    problem, places = drawn
    rank, broken = problem.kv_lora_rank, copy_of(problem)
    for sequence, token, number in places:
        row = row_of(broken, sequence, token)
        if kind == "scale":
            row[rank : rank + rank // 32].view(torch.float32)[number % (rank // 128)] = NAN
        elif kind == "rotary" and problem.q.shape[3] > rank:
            row[rank + rank // 32 :].view(torch.bfloat16)[number % 8] = NAN
        else:
            row[number % rank] = 0x7F if kind == "0x7F" else 0xFF
    check_nan(problem, broken, all_who_see(problem, places), num_splits=num_splits)


@settings(max_examples=15)
@given(
    problems_with_places(dtype=st.sampled_from(["fp32", "fp16"]), kv_lora_rank=st.just(20)),
    st.none() | st.integers(1, 4),
)
def test_a_nan_in_a_query_shows_in_its_row_if_that_sees_a_key(drawn, num_splits):
    problem, places = drawn
    broken, (batch, s_q, heads, width) = copy_of(problem), problem.q.shape
    nan = torch.zeros(batch, s_q, heads, dtype=torch.bool)
    for sequence, _, number in places:
        token, head = number % s_q, number % heads
        broken.q[sequence, token, head, number % width] = NAN
        nan[sequence, token, head] = seen_by(problem, sequence, 0)[sequence, token]
    check_nan(problem, broken, nan, num_splits=num_splits)


@pytest.mark.skipif(DEVICE != "cpu", reason="not every tile fits every GPU")
@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("maximum", ["of NaN is NaN", "passes over NaN"])
@pytest.mark.parametrize(
    ("dtype", "tiles"),
    [
        ("bf16", Tiles(64, 64, 8, 2)),
        ("bf16", Tiles(64, 32, 8, 2, 4)),
        ("fp32", Tiles(16, 16, 8, 1, 4)),
        ("fp8_mla", Tiles(32, 32, 8, 2, 4)),
    ],
    ids=str,
)
def test_tiles_of_every_kind_keep_a_nan_where_it_is_seen(dtype, tiles, maximum, num_splits, request):
    if maximum == "passes over NaN":  # as a GPU's does, and the interpreter's does not
        request.getfixturevalue("gpu_maximum")
    problem = random_problem([100, 3], num_heads=5, s_q=4, dtype=dtype)
    for token in (0, 97, 99):
        broken = copy_of(problem)
        row_of(broken, 0, token)[10] = 0x7F if dtype == "fp8_mla" else NAN
        answer = launch.decode(*broken.tensors, **broken.options, num_splits=num_splits, tiles=tiles)
        nan = all_who_see(problem, [(0, token, 0)])
        out, lse = problem.expected()
        check_answer(answer, (out.masked_fill(nan[..., None], NAN), lse.masked_fill(nan.transpose(1, 2), NAN)))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_an_infinity_in_a_new_token_has_no_effect_on_the_tokens_before_it(backend):
    problem = random_problem([40], num_heads=3, s_q=3, dtype="fp32", kv_lora_rank=20, device=DEVICE)
    broken = copy_of(problem)
    row_of(broken, 0, 38)[3] = float("inf")
    out, lse = mla_decode(*broken.tensors, **broken.options, backend=backend, return_lse=True)
    expected = problem.expected()
    check_answer((out[:, :1], lse[..., :1]), (expected[0][:, :1], expected[1][..., :1]))
    assert out[:, 1:].isnan().all() and lse[..., 1:].isnan().all()


def test_finite_rows_whose_sum_overflows_are_no_nan_in_the_reference():
    problem = random_problem([70], num_heads=2, s_q=2, page_size=16, dtype="fp32", seed=1, device="cpu")
    rows = problem.kv_cache.nan_to_num(0).abs()
    larger = 2.0**120  # a power of two: products with it are exact
    assert (rows * larger).sum().isinf()
    assert (rows * larger).isfinite().all()
    options = {**problem.options, "backend": "reference", "return_lse": True}
    out, lse = mla_decode(problem.q, rows, *problem.tensors[2:], **options)
    large, same = mla_decode(problem.q / larger, rows * larger, *problem.tensors[2:], **options)
    assert torch.equal(large, out * larger)
    assert torch.equal(same, lse)


@pytest.mark.parametrize("values", [(float("inf"),), (float("inf"), -float("inf"))])
def test_an_infinite_number_in_a_token_is_as_a_nan_in_the_reference(values):
    problem = random_problem([70, 40], num_heads=2, s_q=3, page_size=16, dtype="fp32", seed=2, device="cpu")
    broken = copy_of(problem)
    for place, value in enumerate(values):
        row_of(broken, 0, 68)[place] = value
    nan = all_who_see(problem, [(0, 68, 0)])
    out, lse = mla_decode(*problem.tensors, **problem.options, backend="reference", return_lse=True)
    expected = out.masked_fill(nan[..., None], NAN), lse.masked_fill(nan.transpose(1, 2), NAN)
    answer = mla_decode(*broken.tensors, **problem.options, backend="reference", return_lse=True)
    assert all(torch.equal(got.nan_to_num(7), want.nan_to_num(7)) for got, want in zip(answer, expected, strict=True))
    assert 0 < nan.sum() < nan.numel()
