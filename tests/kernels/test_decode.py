"""The Triton kernels against the float64 specification, on the terms of FlashMLA's tests.

Interpreted where there is no GPU; on a GPU the same tests run there.
"""

import dataclasses
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_edu.kernels import mla_decode, plan, workspace_bytes
from mla_edu.kernels.problems import check_answer, random_problem
from mla_edu.kernels.tiles import CHUNKED, FP8, FP32, WHOLE, Tiles

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
launch = pytest.importorskip("mla_edu.kernels.launch")
choose_share = pytest.importorskip("mla_edu.kernels.rows").choose_share
DEVICE = "cpu" if launch.INTERPRETED else "cuda"

CASES = {
    "one head, one token": {"seq_lens": [1], "num_heads": 1},
    "lengths from zero": {"seq_lens": [0, 1, 63, 64, 65, 200], "num_heads": 3},
    "no sequence has a token": {"seq_lens": [0, 0], "num_heads": 9, "s_q": 2},
    "9 heads in fp32": {"seq_lens": [100, 37], "num_heads": 9, "dtype": "fp32"},
    "16 heads, pages of 16": {"seq_lens": [111, 17], "num_heads": 16, "page_size": 16, "dtype": "fp16"},
    "63 heads": {"seq_lens": [140], "num_heads": 63},
    "126 heads, pages of 128": {"seq_lens": [20, 140], "num_heads": 126, "page_size": 128, "dtype": "fp16"},
    "128 heads": {"seq_lens": [129], "num_heads": 128, "kv_lora_rank": 128, "qk_rope_head_dim": 32},
    "two tokens": {"seq_lens": [140, 2, 65], "num_heads": 9, "s_q": 2},
    "four tokens, fp16": {"seq_lens": [20, 140], "num_heads": 16, "s_q": 4, "dtype": "fp16"},
    "eight tokens, fp32": {"seq_lens": [111], "num_heads": 5, "s_q": 8, "dtype": "fp32", "kv_lora_rank": 256},
    "four tokens that all see all": {"seq_lens": [20, 140], "num_heads": 3, "s_q": 4, "causal": False},
    "more new tokens than tokens": {"seq_lens": [1, 3, 0], "num_heads": 3, "s_q": 4},
    "views of wider tensors": {"seq_lens": [70, 133], "num_heads": 9, "s_q": 2, "strided": True},
    "narrowest": {"seq_lens": [90, 5], "num_heads": 3, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "page_size": 16},
    "no powers of two": {
        "seq_lens": [77],
        "num_heads": 7,
        "kv_lora_rank": 192,
        "qk_rope_head_dim": 24,
        "page_size": 48,
    },
    "no rotary part": {"seq_lens": [77, 31], "num_heads": 7, "kv_lora_rank": 320, "qk_rope_head_dim": 0},
    "fp8": {"seq_lens": [140, 0, 65], "num_heads": 16, "dtype": "fp8_mla"},
    "fp8, four tokens": {"seq_lens": [111, 20], "num_heads": 9, "s_q": 4, "dtype": "fp8_mla", "page_size": 16},
    "fp8, narrow, views": {
        "seq_lens": [70, 20],
        "num_heads": 3,
        "dtype": "fp8_mla",
        "kv_lora_rank": 128,
        "strided": True,
    },
    "fp8, three groups, no rotary part": {
        "seq_lens": [70],
        "num_heads": 3,
        "dtype": "fp8_mla",
        "kv_lora_rank": 384,
        "qk_rope_head_dim": 0,
    },
}


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_kernel_meets_the_specification(case, num_splits):
    problem = random_problem(**CASES[case], device=DEVICE)
    answer = mla_decode(*problem.tensors, **problem.options, num_splits=num_splits, backend="triton", return_lse=True)
    assert answer[0].dtype == problem.q.dtype and answer[1].dtype == torch.float32
    check_answer(answer, problem.expected())


def every_tile() -> list[tuple[str, Tiles]]:
    kinds = {"bf16": [*WHOLE.values(), *CHUNKED.values()], "fp8_mla": FP8.values(), "fp32": [FP32]}
    found = {(dtype, tiles) for dtype, lists in kinds.items() for each in lists for tiles in each}
    # Warps and stages mean nothing to the interpreter.
    shapes = {(dtype, tiles.block_h, tiles.block_n, tiles.num_chunks): tiles for dtype, tiles in sorted(found, key=str)}
    return [(dtype, tiles) for (dtype, *_), tiles in shapes.items()]


@pytest.mark.skipif(DEVICE != "cpu", reason="not every tile fits every GPU")
@pytest.mark.parametrize(("dtype", "tiles"), every_tile(), ids=str)
def test_every_tile_of_every_gpu_meets_the_specification(dtype, tiles):
    problem = random_problem([70, 0, 33], num_heads=tiles.block_h // 2 + 2, s_q=2, dtype=dtype)
    for num_splits in (1, 2):
        answer = launch.decode(*problem.tensors, **problem.options, num_splits=num_splits, tiles=tiles)
        check_answer(answer, problem.expected())


@settings(max_examples=12)
@given(
    seq_lens=st.lists(st.integers(0, 90), min_size=1, max_size=3),
    num_heads=st.integers(1, 20),
    s_q=st.integers(1, 5),
    rank=st.integers(17, 140),
    rope=st.integers(0, 20),
    page_size=st.integers(1, 70),
    causal=st.booleans(),
    num_splits=st.none() | st.integers(1, 7),
    dtype=st.sampled_from(["bf16", "fp16", "fp32"]),
    seed=st.integers(0, 99),
)
def test_any_shape_meets_the_specification(num_splits, rank, rope, **shape):
    problem = random_problem(kv_lora_rank=rank, qk_rope_head_dim=rope, device=DEVICE, **shape)
    answer = mla_decode(*problem.tensors, **problem.options, num_splits=num_splits, backend="triton", return_lse=True)
    check_answer(answer, problem.expected())


def take(problem, sequences):
    q, _kv_cache, block_table, seq_lens = problem.tensors
    return dataclasses.replace(
        problem, q=q[sequences], block_table=block_table[sequences], seq_lens=seq_lens[sequences]
    )


@pytest.mark.parametrize("num_splits", [1, 4])
def test_with_fixed_splits_a_sequence_does_not_depend_on_its_batch(num_splits):
    batch = random_problem([130, 0, 300, 64], num_heads=5, s_q=2, kv_lora_rank=64, qk_rope_head_dim=16, device=DEVICE)
    options = {**batch.options, "num_splits": num_splits, "backend": "triton", "return_lse": True}
    together = mla_decode(*batch.tensors, **options)
    for b in range(4):
        alone = mla_decode(*take(batch, [b]).tensors, **options)
        assert all(torch.equal(a[0], t[b]) for a, t in zip(alone, together, strict=True))


def test_more_splits_than_tokens_change_nothing_but_rounding():
    problem = random_problem([5, 100], dtype="fp32", kv_lora_rank=64, device=DEVICE)
    for num_splits in (2, 50):
        answer = mla_decode(
            *problem.tensors, **problem.options, num_splits=num_splits, backend="triton", return_lse=True
        )
        check_answer(answer, problem.expected())


@contextmanager
def on_a_gpu_of(multiprocessors, min_share=16):
    gpu = dataclasses.replace(launch.describe_gpu(torch.device(DEVICE)), multiprocessors=multiprocessors)
    with patch.object(launch, "describe_gpu", lambda device: gpu), patch.object(plan, "MIN_SHARE", min_share):
        plan.make_plan.cache_clear()
        yield
    plan.make_plan.cache_clear()


@settings(max_examples=12)
@given(
    seq_lens=st.lists(st.integers(0, 150), min_size=1, max_size=7),
    multiprocessors=st.integers(1, 12),
    s_q=st.integers(1, 3),
    page_size=st.sampled_from([1, 16, 48, 64]),
    dtype=st.sampled_from(["fp16", "fp32"]),
)
def test_even_shares_of_any_batch_meet_the_specification(multiprocessors, **shape):
    """Shares that end in a sequence, where one ends, and over several, some of them empty."""
    problem = random_problem(kv_lora_rank=32, qk_rope_head_dim=8, device=DEVICE, **shape)
    with on_a_gpu_of(multiprocessors):
        check_answer(launch.decode(*problem.tensors, **problem.options), problem.expected())


@settings(max_examples=6)
@given(
    seq_lens=st.lists(st.integers(0, 300), min_size=1, max_size=5),
    num_heads=st.sampled_from([3, 35]),
    multiprocessors=st.integers(1, 5),
    s_q=st.integers(1, 2),
    dtype=st.sampled_from(["fp16", "fp32"]),
)
def test_parts_by_the_lengths_of_any_batch_meet_the_specification(multiprocessors, **shape):
    problem = random_problem(kv_lora_rank=32, qk_rope_head_dim=8, page_size=16, device=DEVICE, **shape)
    with on_a_gpu_of(multiprocessors):
        answer = launch.decode(*problem.tensors, **problem.options, tiles=Tiles(64, 16, 8, 2))
        check_answer(answer, problem.expected())


@settings(max_examples=8)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=6), st.integers(1, 5))
def test_the_device_cuts_a_batch_as_the_plan_says(seq_lens, multiprocessors):
    problem = random_problem(seq_lens, kv_lora_rank=16, qk_rope_head_dim=0, page_size=16, device=DEVICE)
    tiles, batch = Tiles(64, 16, 8, 2), len(seq_lens)
    with on_a_gpu_of(multiprocessors):
        chosen = launch.plan_call(*problem.tensors[:3], 16, tiles=tiles)
        workspace = torch.zeros(launch.bytes_of_parts(chosen, problem.q, 16), dtype=torch.uint8, device=DEVICE)
        launch.decode(*problem.tensors, **problem.options, tiles=tiles, workspace=workspace if len(workspace) else None)
    many = [max(1, -(-length // 16)) for length in seq_lens]

    def counts(share):
        return [-(-each // -(-each // -(-each // share))) for each in many]

    def end(parts):
        longest = max(-(-each // count) for each, count in zip(many, parts, strict=True))
        rounds = -(-sum(parts) // chosen.num_slots) * (longest + 2)
        return min(rounds, (sum(many) + 2 * sum(parts)) / chosen.num_slots + longest)

    expected = counts(plan.choose_share(many, chosen.num_parts, chosen.min_tiles, chosen.num_slots))
    if len(workspace) == 0:
        assert expected == [1] * batch
        return
    first, parts = workspace[-8 * batch :].view(torch.int32).view(batch, 2).T.tolist()
    assert first == [sum(parts[:b]) for b in range(batch)] and sum(parts) <= chosen.num_parts
    assert end(parts) == pytest.approx(end(expected), rel=1e-6)


@triton.jit
def store_share(p_lens, p_share, num_parts, batch, NUM_SLOTS: tl.constexpr):
    tl.store(p_share, choose_share(p_lens, num_parts, 2, batch, 1, NUM_SLOTS, 16, 128))


@pytest.mark.parametrize("tiles", [[100_000] * 7 + [1] * 93, [64] * 128, [1] * 5])
def test_the_device_leaves_room_for_every_part(tiles):
    """Of the first, no share but the whole leaves few enough parts."""
    lens, share = (torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in ([16 * each for each in tiles], [0]))
    num_parts = 4 + len(tiles)
    store_share[(1,)](lens, share, num_parts, len(tiles), NUM_SLOTS=1)
    assert sum(-(-each // share.item()) for each in tiles) <= num_parts


@pytest.mark.parametrize("tiles", [None, pytest.param(Tiles(64, 64, 8, 2), marks=pytest.mark.long)])
def test_more_sequences_than_one_look_at_the_lengths_takes(tiles):
    problem = random_problem([5, 0] * 64 + [70, 140], kv_lora_rank=16, qk_rope_head_dim=8, page_size=16, device=DEVICE)
    with on_a_gpu_of(11):
        check_answer(launch.decode(*problem.tensors, **problem.options, tiles=tiles), problem.expected())


def test_a_step_writes_into_buffers_of_ones_own():
    problem = random_problem([700, 0, 90], kv_lora_rank=64, qk_rope_head_dim=16, dtype="fp32", device=DEVICE)
    with on_a_gpu_of(9):
        size = workspace_bytes(*problem.tensors[:3], kv_lora_rank=64, backend="triton")
        out = torch.full((3, 1, 3, 64), float("nan"), device=DEVICE)
        lse = torch.full((3, 3, 1), float("nan"), device=DEVICE)
        workspace = torch.full((size,), 0xFF, dtype=torch.uint8, device=DEVICE)
        buffers = {"out": out, "lse": lse, "workspace": workspace}
        options = {**problem.options, "backend": "triton", "return_lse": True}
        answer = mla_decode(*problem.tensors, **options, **buffers)
        assert size and answer[0] is out and answer[1] is lse
        check_answer(answer, problem.expected())
        with pytest.raises(ValueError, match=f"workspace has {size - 1} bytes; expected at least {size}"):
            mla_decode(*problem.tensors, **options, **buffers | {"workspace": workspace[1:].clone()})


@pytest.mark.parametrize("num_splits", [None, 2])
def test_tables_and_lengths_in_64_bits_give_the_same_to_the_bit(num_splits):
    problem = random_problem([70, 0, 133], kv_lora_rank=64, qk_rope_head_dim=16, device=DEVICE)
    q, kv_cache, table, lens = problem.tensors
    options = {**problem.options, "num_splits": num_splits, "backend": "triton", "return_lse": True}
    narrow, wide = (mla_decode(q, kv_cache, t, n, **options) for t, n in [(table, lens), (table.long(), lens.long())])
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


@pytest.mark.parametrize(
    ("s_q", "dtype", "rows"), [(1, "bf16", 64), (3, "bf16", 64), (2, "fp8_mla", 64), (1, "bf16", 32)]
)
def test_keeping_less_from_tile_to_tile_changes_nothing(s_q, dtype, rows, monkeypatch):
    """As from 32 rows on with newer versions of Triton; the interpreter runs all loops with any."""
    problem = random_problem([70, 0, 133], num_heads=40, s_q=s_q, dtype=dtype, device=DEVICE)
    tiles = Tiles(rows, 64, 8, 2) if dtype == "bf16" else Tiles(rows, 16, 8, 2, 4)
    answers = []
    for version in ((99, 0), (3, 0)):
        monkeypatch.setattr(launch, "KEEPS_ADDRESSES", version)
        answers.append(launch.decode(*problem.tensors, **problem.options, num_splits=2, tiles=tiles))
    check_answer(answers[1], problem.expected())
    assert all(map(torch.equal, *answers))


def test_an_empty_batch_is_an_empty_answer():
    problem = take(random_problem([4], device=DEVICE), [])
    out, lse = mla_decode(*problem.tensors, **problem.options, backend="triton", return_lse=True)
    assert out.shape == (0, 1, 3, 512) and lse.shape == (0, 3, 1)


def test_scores_far_apart_stay_finite():
    problem = random_problem([130], num_heads=3, dtype="fp32", kv_lora_rank=64, device=DEVICE)
    problem = dataclasses.replace(problem, sm_scale=3000.0)
    for num_splits in (1, 3):
        answer = mla_decode(
            *problem.tensors, **problem.options, num_splits=num_splits, backend="triton", return_lse=True
        )
        check_answer(answer, problem.expected())


@pytest.mark.skipif(DEVICE != "cpu", reason="test_gpu.py has the same for a GPU")
def test_pages_past_2_to_the_31_numbers_are_found(monkeypatch):
    """The pool is 4 GiB of addresses, of which only the last pages are ever touched."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *args: None)  # it copies all onto itself
    problem = random_problem([70, 33], dtype="fp16")
    q, pages, table, lens = problem.tensors
    first = 2**31 // pages[0].numel() + 1
    pool = torch.empty(first + len(pages), *pages.shape[1:], dtype=torch.float16)
    pool[first:] = pages
    table = torch.where(table < len(pages), table + first, table)
    for tiles in (Tiles(16, 64, 8, 2), Tiles(16, 32, 8, 2, 4)):
        answer = launch.decode(q, pool, table, lens, **problem.options, num_splits=1, tiles=tiles)
        check_answer(answer, problem.expected())
