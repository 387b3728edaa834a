"""The Gluon kernel of the fp8 cache: its own source, emulated on a CPU where there is no Hopper GPU, against a plain
loop; and mistakes, made on purpose in a copy, that must show."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_edu.kernels.problems import random_problem

pytest.importorskip("triton.experimental.gluon")
from tests.kernels.gluon_cases import DEVICE, EMULATED, NEEDS_IT, check, decode

pytestmark = NEEDS_IT
LENGTHS = st.one_of(st.integers(0, 500), st.sampled_from([0, 1, 63, 64, 65, 127, 128, 129, 192, 256, 257]))
ROWS = st.tuples(st.integers(1, 32), st.integers(1, 5)).filter(lambda each: each[0] * each[1] <= 32)
SHAPES = st.fixed_dictionaries(
    {
        "seq_lens": st.lists(LENGTHS, min_size=1, max_size=4),
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
SPOILT = {"code": (300, 301), "scale": (516, 520), "rotary": (528, 530), "last number": (654, 656)}  # bytes of a token


def fp8_problem(seq_lens, num_heads, **shape):
    return random_problem(seq_lens, num_heads=num_heads, dtype="fp8_mla", device=DEVICE, **shape)


def spoil(problem, places):
    """A copy with NaN in some tokens: (sequence, token, one of SPOILT)."""
    cache = problem.kv_cache.clone()
    for sequence, token, what in places:
        size = cache.shape[1]
        first, end = SPOILT[what]
        cache[problem.block_table[sequence, token // size], token % size, first:end] = 0xFF
    return dataclasses.replace(problem, kv_cache=cache)


def with_scales(problem, scales, tokens=slice(None)):
    """A copy with other scales in tokens of its first sequence, which lies in one page."""
    cache = problem.kv_cache.clone()
    cache[problem.block_table[0, 0], tokens, 512:528] = torch.tensor(scales).view(torch.uint8).to(DEVICE)
    return dataclasses.replace(problem, kv_cache=cache)


@settings(max_examples=9)
@given(ROWS, SHAPES, RUNS)
def test_a_loop_gives_the_same(rows, shape, run):
    check(fp8_problem(num_heads=rows[0], s_q=rows[1], **shape), **run)


@settings(max_examples=7)
@given(ROWS, SHAPES, RUNS, st.data())
def test_a_nan_shows_where_it_is_seen(rows, shape, run, data):
    problem = fp8_problem(num_heads=rows[0], s_q=rows[1], **shape)
    places = []
    for _ in range(data.draw(st.integers(1, 2))):
        sequence = data.draw(st.integers(0, len(shape["seq_lens"]) - 1))
        length = shape["seq_lens"][sequence]
        if length:
            newest = st.integers(max(0, length - rows[1] - 1), length - 1)
            token = data.draw(newest | st.integers(0, length - 1))
            places.append((sequence, token, data.draw(st.sampled_from(list(SPOILT)))))
    check(problem, [place[:2] for place in places], spoil(problem, places), **run)


def test_layers_of_one_pool_and_spaced_queries():
    problem = fp8_problem([200, 70], num_heads=16)
    pool = torch.full((problem.kv_cache.shape[0], 3, 64, 656), 0xFF, dtype=torch.uint8, device=DEVICE)
    q = torch.full((2, 1, 16, 640), math.nan, dtype=torch.bfloat16, device=DEVICE)
    pool[:, 1], q[..., :576] = problem.kv_cache, problem.q
    check(dataclasses.replace(problem, q=q[..., :576], kv_cache=pool[:, 1]), num_splits=2)


def test_the_order_in_which_things_come_about_changes_nothing():
    problem = fp8_problem([500, 130], num_heads=16)
    first = decode(problem, 1)
    for seed in range(1, 9):
        assert all(map(torch.equal, first, decode(problem, 1, seed=seed)))


def test_with_a_number_of_splits_a_sequence_is_by_itself():
    problem = fp8_problem([500, 130, 0, 70], num_heads=16)
    alone = dataclasses.replace(
        problem, q=problem.q[1:2], block_table=problem.block_table[1:2], seq_lens=problem.seq_lens[1:2]
    )
    for together, by_itself in zip(decode(problem, 2), decode(alone, 2), strict=True):
        assert torch.equal(together[1:2], by_itself)


def test_every_code_of_e4m3_comes_out_exactly(changes=()):
    """One token of weight 1, so the output is its row; with each of its four scales at least once, 0 among them."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[127, 255]] = 0  # NaN
    problem = fp8_problem([1], num_heads=1)
    scales = [2.0**-40, 0.0, 2.0**20, -3.0]
    problem = with_scales(dataclasses.replace(problem, q=torch.zeros_like(problem.q)), scales, 0)
    problem.kv_cache[problem.block_table[0, 0], 0, :512] = codes.repeat(2).to(DEVICE)
    out, _ = decode(problem, changes=changes)
    want = codes.repeat(2).view(torch.float8_e4m3fn).float().view(4, 128) * torch.tensor(scales)[:, None]
    assert torch.equal(out.flatten().float().cpu(), want.flatten())


def test_scales_of_zero_and_other_than_powers_of_two(changes=()):
    """A number times such a scale is rounded to bf16, by 1/512 of it at most."""
    problem = fp8_problem([60], num_heads=3)
    zero = with_scales(problem, [0.0, 0.0, 0.0, 0.0])
    check(zero, changes=changes)
    assert decode(zero, changes=changes)[0].eq(0).all()
    check(with_scales(problem, [0.003, 0.0, 0.0017, 0.0005]), changes=changes)


SEES = "seq_len - S_Q + 1 + o_h // NUM_HEADS"
# what is right, what is put there instead
MISTAKES = {
    "no fence after half of a tile": ("if k == 3:\n                        fence_async_shared()", "if k == 3:"),
    "no fence after a tile": ("ahead = loaded\n                fence_async_shared()", "ahead = loaded"),
    "no fence after the weights": ("bfloat16))\n                fence_async_shared()", "bfloat16))"),
    "the product begins a group early": ("if k == 3:", "if k == 2:"),
    "scores are not waited for": ("warpgroup_mma_wait(0, deps=(b_s,))", "warpgroup_mma_wait(1, deps=(b_s,))"),
    "sums are not waited for": ("warpgroup_mma_wait(0, deps=(b_acc,))", "warpgroup_mma_wait(1, deps=(b_acc,))"),
    "the next tile is this one": ("find_tile(p_pages, start + 128", "find_tile(p_pages, start"),
    "the tile after next is the next": ("find_tile(p_pages, n + 256", "find_tile(p_pages, n + 128"),
    "what was loaded is not used": ("ahead = loaded", "ahead = ahead"),
    "the rotary part is that of the first tile": (
        "                        b_rotary0, b_rotary1 = load_words", "                        _, _ = load_words"
    ),
    "the rotary part is left out": ("b_s = warpgroup_mma(s_rotary", "_ = warpgroup_mma(s_rotary"),
    "both halves are the first": ("find_half(p_pages, n + 64", "find_half(p_pages, n"),
    "a half past the end is looked for": ("gl.minimum(n, (end - 1) // 64 * 64)", "n"),
    "tokens past the end are read": ("half[1])\n    o_word", "63)\n    o_word"),
    "scales past the end are read": ("half[1])\n    b_scales", "63)\n    b_scales"),
    "the place in the page is lost": (" + first % PAGE_SIZE * 164", ""),
    "scales begin a word late": ("(128 + GROUP)", "(129 + GROUP)"),
    "all groups have the first scale": ("(128 + GROUP)", "128"),
    "the rotary part begins a word early": ("load_words(p_kv, tile[1], 132, 4)", "load_words(p_kv, tile[1], 131, 4)"),
    "two numbers change places": ("$0, q, p", "$0, p, q"),
    "two pairs change places": ("mov.b32 {l, h}", "mov.b32 {h, l}"),
    "a number is not scaled": ("mul.f32 r, r, $3;", ""),
    "a number is scaled twice": ("mul.f32 s, s, $3;", "mul.f32 s, s, $3;mul.f32 s, s, $3;"),
    "keys past the end are seen": ("gl.expand_dims(n + o_n, 1) <", "gl.expand_dims(n + o_n, 1) <="),
    "all see the newest token": (SEES + ")", "seq_len + o_h * 0)"),
    "the mask is one token early": (SEES + ")", SEES.replace("+ 1 ", "") + ")"),
    "the scores are not scaled": ("b_s * scale", "b_s"),
    "what was added up is not rescaled": ("b_sums * b_shrink + b_p", "b_sums + b_p"),
    "the output is not rescaled": ("b_acc * b_shrink", "b_acc"),
    "queries of the first sequence": ("(b * NUM_ROWS + o_q)", "o_q"),
    "lse in base 2": ("b_lse * 0.6931471805599453", "b_lse"),
    "parts lie on top of each other": ("share + sequence if EVEN else share", "share"),
    "a NaN reaches rows that do not see it": ("end = gl.minimum(end, unseen)", "pass"),
    "a NaN spares the rows that see it": (SEES + " > unseen", SEES + " > unseen + 9"),
    "codes of NaN are numbers": ("(b_words & 0x7F7F7F7F) + 0x01010101", "b_words & 0"),
    "scales are never NaN": ("(b_words & 0x7F800000) == 0x7F800000", "(b_words & 0) != 0"),
}  # fmt: skip


def battery(changes=()):
    """Few problems, small ones, in several orders, that a right kernel answers."""
    ragged = fp8_problem([130, 0, 64, 400, 129, 3], num_heads=2, s_q=3)
    check(ragged, changes=changes)
    check(ragged, num_splits=3, changes=changes)
    test_every_code_of_e4m3_comes_out_exactly(changes)
    test_scales_of_zero_and_other_than_powers_of_two(changes)
    problem = fp8_problem([200, 129], num_heads=2, s_q=4)
    for what in SPOILT:
        for sequence, token in ((0, 199), (0, 197), (1, 127)):
            places = [(sequence, token, what)]
            check(problem, [(sequence, token)], spoil(problem, places), num_splits=1, changes=changes)
    few = fp8_problem([600], num_heads=2, page_size=192)
    for seed in range(8):
        check(few, num_splits=1, changes=changes, seed=seed)


@EMULATED
def test_the_kernel_as_it_is_passes():
    battery()


@EMULATED
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_caught(mistake):
    with pytest.raises(AssertionError):
        battery([MISTAKES[mistake]])
