"""What the tests of other MLA decode kernels ask for, small enough for the interpreter.

| Property | asked by the tests of | where |
|---|---|---|
| lengths of zero, ragged lengths, fp16, shuffled pages | FlashMLA, vLLM, FlashInfer | here: drawn shapes |
| head counts from 1 to 128, up to 32 new tokens, more of them than keys | FlashMLA, trtllm-gen | here: drawn shapes |
| 512 + 64, 256 + 64, 512 + 0 numbers | trtllm-gen, FlashInfer | here: drawn shapes |
| pages of 1 to 128 tokens | FlashInfer, TileLang, FlagGems | here: drawn shapes |
| NaN in pages that nobody owns, which unused entries of the table name | FlashInfer | here: drawn shapes |
| 2, 3 and 8 key-value heads | FlashMLA, SGLang | here: one strided call for each |
| queries times 100 | FlashInfer's CUTLASS | here |
| fp8: beside bf16; scales; of each group; zero; a rotary part that stands out | FlashInfer | here |
| fp8 with queries in fp16 is refused | FlashInfer | test_api |
| pages of 1 and of 16 tokens give the same | vLLM | here, to the bit |
| a layer's pages within a pool of all layers | vLLM | here, to the bit |
| tables and lengths of int64 | vLLM, SGLang | test_decode, to the bit |
| pages past 2**31 and past 2**32 numbers | FlashInfer, SGLang | test_decode, test_offsets; here |
| log-sum-exp to base 2, into the caller's buffer too | FlashInfer | here |
| buffers of the caller's, large enough or refused | FlashInfer | test_decode |

Right values come from plain loops in float64 over the bits that are stored.
"""

import dataclasses
import math
import mmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_edu.kernels import mla_decode
from mla_edu.kernels.problems import NO_PAGE, check_answer, random_problem
from tests.kernels.conftest import NORESERVE

launch = pytest.importorskip("mla_edu.kernels.launch")
DEVICE = "cpu" if launch.INTERPRETED else "cuda"
BACKENDS = ("reference", "triton")


def stored_numbers(row, rank):
    """A row of the cache in float64; of fp8, bytes of e4m3, a scale for each 128 of them, and a rotary part in bf16."""
    if row.dtype != torch.uint8:
        return row.double()
    latent = row[:rank].view(torch.float8_e4m3fn).double()
    scales = row[rank : rank + rank // 32].clone().view(torch.float32).double()
    rotary = row[rank + rank // 32 :].clone().view(torch.bfloat16).double()
    return torch.cat([*(latent[128 * i : 128 * (i + 1)] * scale for i, scale in enumerate(scales)), rotary])


def by_loops(problem):
    """Out and log-sum-exp, token by token and query by query."""
    q, pages, table, lens = (tensor.cpu() for tensor in problem.tensors)
    batch, s_q, heads, _ = q.shape
    out = torch.zeros(batch, s_q, heads, problem.kv_lora_rank, dtype=torch.float64)
    lse = torch.full((batch, heads, s_q), -math.inf, dtype=torch.float64)
    for b, length in enumerate(lens.tolist()):
        rows = [
            stored_numbers(pages[table[b, token // pages.shape[1]], token % pages.shape[1]], problem.kv_lora_rank)
            for token in range(length)
        ]
        for s in range(s_q):
            seen = rows[: max(0, length - s_q + s + 1)] if problem.causal else rows
            if seen:
                keys = torch.stack(seen)
                scores = q[b, s].double() @ keys.T * problem.sm_scale
                largest = scores.max(-1, keepdim=True).values
                weights = (scores - largest).exp()
                total = weights.sum(-1, keepdim=True)
                out[b, s] = weights / total @ keys[:, : problem.kv_lora_rank]
                lse[b, :, s] = (largest + total.log())[:, 0]
    return out.to(DEVICE), lse.to(DEVICE)


def decode(problem, backend="triton", **options):
    return mla_decode(*problem.tensors, **problem.options, backend=backend, return_lse=True, **options)


def check(problem, **options):
    expected = by_loops(problem)
    for backend in BACKENDS:
        check_answer(decode(problem, backend, **options), expected)


HEADS = [(1, 1), (3, 2), (6, 1), (9, 4), (12, 3), (16, 32), (24, 1), (48, 1), (63, 2), (126, 1), (128, 1), (128, 2)]


@settings(max_examples=9)
@given(
    seq_lens=st.lists(st.integers(0, 20) | st.integers(0, 140), min_size=1, max_size=3),
    heads=st.sampled_from(HEADS),
    dims=st.sampled_from([(512, 64), (256, 64), (512, 0)]),
    dtype=st.sampled_from(["bf16", "fp16"]),
    page_size=st.sampled_from([1, 16, 32, 64, 128]),
    num_splits=st.none() | st.integers(1, 3),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_drawn_shapes(heads, dims, num_splits, **shape):
    (num_heads, s_q), (rank, rope) = heads, dims
    sizes = {"num_heads": num_heads, "s_q": s_q, "kv_lora_rank": rank, "qk_rope_head_dim": rope}
    problem = random_problem(**sizes, **shape, device=DEVICE)
    nobodys = next(i for i in range(len(problem.kv_cache)) if i not in problem.block_table)
    assert problem.kv_cache[nobodys].isnan().all()
    table = problem.block_table.masked_fill(problem.block_table == NO_PAGE, nobodys)
    check(dataclasses.replace(problem, block_table=table), num_splits=num_splits)


@pytest.mark.parametrize("kv_heads", [2, 3, 8])
def test_each_key_value_head_is_a_call_on_a_strided_view(kv_heads):
    """Pages [num_pages, page_size, kv_heads, row], and queries of all heads side by side."""
    size, per_head = 16, 4
    one = random_problem([40, 0, 17], num_heads=kv_heads * per_head, s_q=2, page_size=size, device=DEVICE)
    generator = torch.Generator().manual_seed(kv_heads)
    pages = torch.randn(len(one.kv_cache), size, kv_heads, 576, generator=generator).to(torch.bfloat16).to(DEVICE) / 10
    for head, queries in enumerate(one.q.chunk(kv_heads, dim=2)):
        problem = dataclasses.replace(one, q=queries, kv_cache=pages[:, :, head])
        assert not problem.kv_cache.is_contiguous() and problem.q.shape[2] == per_head
        check(problem)


def test_queries_times_100():
    problem = random_problem([130, 3], num_heads=9, s_q=2, dtype="bf16", device=DEVICE)
    large = dataclasses.replace(problem, q=problem.q * 100)
    assert by_loops(large)[1].max() > 64
    for num_splits in (1, 3):
        check(large, num_splits=num_splits)


@pytest.mark.parametrize("num_splits", [None, 1, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8_mla"])
def test_log_sum_exp_to_base_2(dtype, num_splits):
    """With parts and without, of sequences and of rows without keys, returned and in the caller's buffer."""
    problem = random_problem([100, 0, 1], num_heads=5, s_q=2, dtype=dtype, page_size=16, device=DEVICE)
    out, lse = by_loops(problem)
    assert (lse[1] == -math.inf).all() and (lse[2, :, 0] == -math.inf).all() and lse[2, :, 1].isfinite().all()
    expected = out, lse / math.log(2)
    for backend in BACKENDS:
        answer = decode(problem, backend, num_splits=num_splits, return_lse_base_on_e=False)
        check_answer(answer, expected)
        buffer = torch.full_like(answer[1], math.nan)
        into = decode(problem, backend, num_splits=num_splits, return_lse_base_on_e=False, lse=buffer)
        assert into[1] is buffer
        check_answer(into, expected)
        buffer.fill_(math.nan)  # without return_lse the caller's buffer is written to as well
        options = {**problem.options, "backend": backend, "num_splits": num_splits, "lse": buffer}
        mla_decode(*problem.tensors, **options, return_lse_base_on_e=False)
        check_answer((out, buffer), expected)


FP8 = {"num_heads": 5, "s_q": 2, "dtype": "fp8_mla", "page_size": 16}


def scales_of(cache, rank=512):
    """The scales of all rows as numbers that can be written to: [num_pages, page_size, groups]."""
    return cache[..., rank : rank + rank // 32].view(torch.float32)


def test_fp8_is_near_the_bf16_that_it_was_made_of():
    """e4m3 has three bits of fraction, so each number is off by 1/16 of it at most."""
    plain = random_problem([100, 33], **FP8 | {"dtype": "bf16"}, device=DEVICE)
    packed = random_problem([100, 33], **FP8, device=DEVICE)
    assert torch.equal(plain.q, packed.q) and torch.equal(plain.block_table, packed.block_table)
    check(packed)
    exact, near = by_loops(plain)[0], decode(packed)[0].double()
    assert 0 < (near - exact).norm() / exact.norm() < 1 / 16


@pytest.mark.parametrize("factor", [0.25, 1.0, 8.0])
def test_fp8_scales_scale_keys_and_values(factor):
    problem = random_problem([75, 20], **FP8, device=DEVICE)
    before = by_loops(problem)[0]
    scales_of(problem.kv_cache).mul_(factor)
    check(problem, num_splits=2)
    assert (factor == 1.0) == torch.equal(by_loops(problem)[0], before)


def test_fp8_scales_are_of_each_group_and_each_token():
    problem = random_problem([75, 20], **FP8, device=DEVICE)
    pages, size, groups = scales_of(problem.kv_cache).shape
    factors = 2.0 ** (torch.arange(pages * size * groups) % 5 - 2).view(pages, size, groups)
    scales_of(problem.kv_cache).mul_(factors.to(DEVICE))
    check(problem)


def test_fp8_rows_of_zeros_weigh_alike_and_give_zero():
    problem = random_problem([48], **FP8 | {"s_q": 1}, device=DEVICE)
    problem.kv_cache[problem.block_table[0, :3].long()] = 0
    for backend in BACKENDS:
        out, lse = decode(problem, backend)
        assert (out == 0).all() and torch.allclose(lse, torch.full_like(lse, math.log(48)))


def test_a_rotary_part_that_stands_out_is_no_value():
    """A rotary part of 100s beside a latent of small numbers: were one read for the other, it would show."""
    for dtype, at, width in [("bf16", 512, 64), ("fp8_mla", 528, 128)]:
        problem = random_problem([40, 65], **FP8 | {"dtype": dtype}, device=DEVICE)
        problem.kv_cache[..., at : at + width].view(torch.bfloat16).fill_(100.0)
        problem.q[..., 512:] = 0.01
        check(problem)
        assert decode(problem)[0].abs().max() < 2


def laid_out_anew(problem, page_size, seed=1):
    """The same tokens in pages of another size, shuffled."""
    lens, old = problem.seq_lens.tolist(), problem.kv_cache.shape[1]
    counts = [-(-length // page_size) for length in lens]
    free = torch.randperm(sum(counts) + 1, generator=torch.Generator().manual_seed(seed)).tolist()
    cache = problem.kv_cache.new_full((len(free), page_size, problem.kv_cache.shape[2]), math.nan)
    table = torch.full((len(lens), problem.block_table.shape[1] * old // page_size), NO_PAGE, dtype=torch.int32)
    for b, (length, count) in enumerate(zip(lens, counts, strict=True)):
        mine, free = free[:count], free[count:]
        table[b, :count] = torch.tensor(mine, dtype=torch.int32)
        for token in range(length):
            row = problem.kv_cache[problem.block_table[b, token // old], token % old]
            cache[mine[token // page_size], token % page_size] = row
    return dataclasses.replace(problem, kv_cache=cache, block_table=table.to(DEVICE))


@pytest.mark.parametrize("num_splits", [None, 2])
def test_pages_of_1_and_of_16_tokens_give_the_same_to_the_bit(num_splits):
    of_16 = random_problem([70, 0, 33], num_heads=9, s_q=2, page_size=16, dtype="fp16", device=DEVICE)
    of_1 = laid_out_anew(of_16, 1)
    check(of_16, num_splits=num_splits)
    assert all(map(torch.equal, decode(of_16, num_splits=num_splits), decode(of_1, num_splits=num_splits)))


@pytest.mark.parametrize("dtype", ["bf16", "fp8_mla"])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_one_layer_of_a_pool_of_all_layers_gives_the_same_to_the_bit(dim, dtype):
    """The layers first, between pages and tokens, or between tokens and numbers."""
    alone = random_problem([70, 33], num_heads=9, dtype=dtype, page_size=16, device=DEVICE)
    others = torch.full_like(alone.kv_cache, 0xFF if dtype == "fp8_mla" else math.nan)
    pool = torch.stack((others, alone.kv_cache, others), dim=dim)
    within = dataclasses.replace(alone, kv_cache=pool.select(dim, 1))
    check(alone)
    assert all(map(torch.equal, decode(alone), decode(within)))


@pytest.mark.skipif(DEVICE != "cpu", reason="test_gpu.py has a pool of a GPU's memory")
@pytest.mark.parametrize("power", [31, 32])
def test_pages_past_2_to_the_32_numbers_are_found(power, monkeypatch):
    """A pool of addresses, of which only the pages of the step are ever touched."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *args: None)  # it copies all onto itself
    problem = random_problem([40, 20], dtype="fp16", page_size=16)
    count, size, width = problem.kv_cache.shape
    first = 2**power // (size * width) + 1
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    memory = mmap.mmap(-1, (first + count) * size * width * 2, flags=flags)
    pool = torch.frombuffer(memory, dtype=torch.float16).view(first + count, size, width)
    pool[first:] = problem.kv_cache
    table = torch.where(problem.block_table < count, problem.block_table + first, problem.block_table)
    check_answer(launch.decode(problem.q, pool, table, problem.seq_lens, **problem.options), by_loops(problem))
