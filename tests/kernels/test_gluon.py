"""The Gluon kernel: its own source, emulated on a CPU where there is no Hopper GPU, against a plain loop; and mistakes,
made on purpose in a copy, that must show."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_edu.kernels.gluon_machine import Deadlock
from mla_edu.kernels.problems import random_problem

pytest.importorskip("triton.experimental.gluon")
from tests.kernels.gluon_cases import DEVICE, EMULATED, NEEDS_IT, check, decode

NAN = math.nan
pytestmark = NEEDS_IT


def with_nan(problem, places):
    """A copy with NaN in one number of some tokens: (sequence, token, number)."""
    cache = problem.kv_cache.clone()
    for sequence, token, number in places:
        size = cache.shape[1]
        cache[problem.block_table[sequence, token // size], token % size, number] = NAN
    return dataclasses.replace(problem, kv_cache=cache)


LENGTHS = st.one_of(st.integers(0, 400), st.sampled_from([0, 1, 63, 64, 65, 127, 128, 129, 192, 256, 257]))
SHAPES = st.fixed_dictionaries(
    {
        "seq_lens": st.lists(LENGTHS, min_size=1, max_size=4),
        "num_heads": st.integers(1, 30),
        "s_q": st.integers(1, 5),
        "page_size": st.sampled_from([64, 128, 192]),
        "causal": st.booleans(),
        "seed": st.integers(0, 99),
    }
)
RUNS = st.fixed_dictionaries(
    {
        "num_splits": st.none() | st.integers(1, 4),
        "seed": st.integers(0, 99),
        "multiprocessors": st.integers(1, 9),
    }
)


@settings(max_examples=9)
@given(SHAPES, RUNS)
def test_a_loop_gives_the_same(shape, run):
    check(random_problem(**shape, device=DEVICE), **run)


@settings(max_examples=7)
@given(SHAPES, RUNS, st.data())
def test_a_nan_shows_where_it_is_seen(shape, run, data):
    problem = random_problem(**shape, device=DEVICE)
    places = []
    for _ in range(data.draw(st.integers(1, 2))):
        sequence = data.draw(st.integers(0, len(shape["seq_lens"]) - 1))
        length = shape["seq_lens"][sequence]
        if length:
            newest = st.integers(max(0, length - shape["s_q"] - 1), length - 1)
            places.append((sequence, data.draw(newest | st.integers(0, length - 1)), data.draw(st.integers(0, 575))))
    check(problem, [place[:2] for place in places], with_nan(problem, places), **run)


@pytest.mark.parametrize("num_heads", [64, 128])
def test_many_rows_over_many_pairs(num_heads):
    check(random_problem([900, 0, 130], num_heads=num_heads, device=DEVICE), num_splits=2)


def test_pools_of_several_layers_and_spaced_queries():
    problem = random_problem([200, 70], num_heads=16, strided=True, device=DEVICE)
    q = torch.full((2, 1, 16, 640), NAN, dtype=torch.bfloat16, device=DEVICE)[..., :576].copy_(problem.q)
    problem = dataclasses.replace(problem, q=q)
    assert problem.kv_cache.stride(0) == 2 * 64 * 576 and problem.block_table.stride(0) > problem.block_table.shape[1]
    check(problem, num_splits=2)


def test_the_order_in_which_things_come_about_changes_nothing():
    problem = random_problem([500, 130], num_heads=16, device=DEVICE)
    first = decode(problem, 1)
    for seed in range(1, 9):
        assert all(map(torch.equal, first, decode(problem, 1, seed=seed)))


def test_with_a_number_of_splits_a_sequence_is_by_itself():
    problem = random_problem([500, 130, 0, 70], num_heads=16, device=DEVICE)
    alone = dataclasses.replace(
        problem, q=problem.q[1:2], block_table=problem.block_table[1:2], seq_lens=problem.seq_lens[1:2]
    )
    for together, by_itself in zip(decode(problem, 2), decode(alone, 2), strict=True):
        assert torch.equal(together[1:2], by_itself)


SWAP = (
    "            b_acc = warpgroup_mma_wait(0, deps=(b_acc,))\n",
    "            mbarrier.arrive(freed.index({}), count=1)\n",
)


def too_early(quarter):
    """The quarter is said to be free before the product that reads it was waited for."""
    wait, arrive = SWAP[0], SWAP[1].format(quarter)
    return wait + arrive, arrive + wait


# what is right, what is put there instead
MISTAKES = {
    "a wait for the turn before": ("done = (turn + i) & 1", "done = (turn + i + 1) & 1"),
    "turns begin anew with each piece": ("turn += gl.maximum((end - start + 127) // 128, 0)", "turn += 0"),
    "the loader waits for the wrong turn": ("free = (turn + i + 1) & 1", "free = (turn + i) & 1"),
    "the loader does not wait for left halves": ("if j == 0 or j == 4:", "if j == 4:"),
    "the loader does not wait for right halves": ("if j == 0 or j == 4:", "if j == 0:"),
    **{
        f"part {part} of a tile is not waited for": ("   if j < 4:\n", f"   if j < 4 and j != {part}:\n")
        for part in range(4)
    },
    "queries are not waited for": ("mbarrier.wait(asked, piece & 1)", "pass"),
    "queries are waited for once": ("mbarrier.wait(asked, piece & 1)", "mbarrier.wait(asked, 0)"),
    "the first weights are not waited for": ("mbarrier.wait(weights_0, done)", "pass"),
    "the second weights are not waited for": ("mbarrier.wait(weights_1, done)", "pass"),
    "nobody says that the weights are there": ("mbarrier.arrive(weights_1, count=1)", "pass"),
    "sums are not waited for": ("mbarrier.wait(sum_0, piece & 1)", "pass"),
    "sums lie where maxima do": ("s_sum1", "s_max1"),
    "scores are not waited for": ("warpgroup_mma_wait(0, deps=(b_s,))", "warpgroup_mma_wait(3, deps=(b_s,))"),
    **{f"quarter {quarter} is given back too early": too_early(quarter) for quarter in range(4)},
    "a quarter is never given back": ("mbarrier.arrive(freed.index(2), count=1)", "pass"),
    "no fence after the first weights": (
        "s_max0.store(b_max)\n            fence_async_shared()", "s_max0.store(b_max)"
    ),
    "no fence after the second weights": (
        "s_max1.store(b_max)\n            fence_async_shared()", "s_max1.store(b_max)"
    ),
    "fewer bytes are expected than come": ("64 * 192 * 2", "64 * 128 * 2"),
    "more bytes are expected than come": ("64 * 128 * 2", "64 * 192 * 2"),
    "the tail is left as it is": ("            zero_rows(s_left, end - n)\n", ""),
    "the tail of the right half is left as it is": ("            zero_rows(s_right, end - n)\n", "            pass\n"),
    "the tail begins one late": ("SliceLayout(1, SPREAD)) < first", "SliceLayout(1, SPREAD)) <= first"),
    "both groups write the left half": ("o_c = SIDE * 256 + ", "o_c = "),
    "a group multiplies the other half": ("s_p.index(1), s_l.index(1)", "s_p.index(1), s_r.index(1)"),
    "a group multiplies its own weights twice": ("s_p.index(0), s_r.index(0)", "s_p.index(1), s_r.index(0)"),
    "the rotary part is left out": ("for j in gl.static_range(5)", "for j in gl.static_range(4)"),
    "the second tile is the first again": ("gl.minimum(n0 + 64, (end - 1) // 64 * 64)", "n0"),
    "keys past the end are seen": ("gl.expand_dims(n + o_n, 0) <", "gl.expand_dims(n + o_n, 0) <="),
    "the mask is one token early": ("first_sees + (o_row + o_h) // NUM", "first_sees - 1 + (o_row + o_h) // NUM"),
    "the scores are not scaled": ("b_s * scale", "b_s"),
    "the other's maximum is not heeded": ("b_new = s_max0.load(ROW)", "b_new = b_max"),
    "what was summed is not rescaled": ("b_sum = b_sum * b_shrink + gl.sum(b_p, 1)", "b_sum = b_sum + gl.sum(b_p, 1)"),
    "the other's sum is forgotten": ("b_sum += s_sum1.load(ROW)", "pass"),
    "lse in base 2": ("b_lse * 0.6931471805599453", "b_lse"),
    "the place in the page is lost": ("page0 * page_rows + n0 % PAGE_SIZE", "page0 * page_rows"),
    "pages lie side by side": ("page1 * page_rows", "page1 * PAGE_SIZE"),
    "queries of the first sequence": ("o_query = sequence * NUM_ROWS + o_row", "o_query = o_row"),
    "parts lie on top of each other": ("share + sequence if EVEN else share", "share"),
    "the merge is told of one part less": ("per_share - offset // per_share", "per_share - offset // per_share - 1"),
    "a part is taken for the whole": ("((pair == offset) & (stop == offset + pairs)) == 0", "(pair == offset) == 0"),
    "a NaN reaches rows that do not see it": ("end = gl.minimum(end, unseen)", "pass"),
    "a NaN spares the rows that see it": ("// NUM_HEADS > unseen", "// NUM_HEADS > unseen + 9"),
    "a NaN in the first of the new tokens": ("(o_n > seq_len - S_Q)", "(o_n > seq_len - S_Q + 1)"),
    "a NaN is lost where nothing was seen": ("gl.where(b_sum == 0.0, 1.0, b_sum)", "gl.where(b_sum > 0.0, b_sum, 1.0)"),
}  # fmt: skip


def battery(changes=()):
    """Few problems, small ones, in several orders, that a right kernel answers."""
    ragged = random_problem([130, 0, 64, 400, 129, 3], num_heads=2, s_q=3, strided=True)
    ragged = dataclasses.replace(ragged, q=ragged.q.contiguous())
    check(ragged, changes=changes)
    check(ragged, num_splits=3, changes=changes)
    problem = random_problem([200, 129], num_heads=2, s_q=4)
    for places in ([(0, 199, 3)], [(0, 198, 570)], [(0, 197, 511)], [(1, 60, 0)]):
        check(problem, [place[:2] for place in places], with_nan(problem, places), num_splits=1, changes=changes)
    few = random_problem([600], num_heads=2, page_size=192)
    for seed in range(24):
        check(few, num_splits=1, changes=changes, seed=seed)


@EMULATED
def test_the_kernel_as_it_is_passes():
    battery()


@EMULATED
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_caught(mistake):
    with pytest.raises((AssertionError, Deadlock)):
        battery([MISTAKES[mistake]])
