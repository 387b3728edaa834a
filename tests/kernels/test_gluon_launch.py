"""What Gluon's kernels say they need; and that they are taken unasked only where committed times show them faster."""

import pytest
import torch

from mla_edu.bench.first_look import read_first_look
from mla_edu.bench.results import measured_gpus
from mla_edu.kernels.problems import random_problem

pytest.importorskip("triton.experimental.gluon")
from mla_edu.kernels import gluon_launch
from mla_edu.kernels.gluon_launch import FASTER_ON, MANY_ROWS


def looks_at(gpu):
    return [look for look in [read_first_look()] if look.machine.name == gpu]


def best_times(look, kernels):
    """The least microseconds on each step of any form of a kernel."""
    best = {}
    for each in look.timings:
        if each.kernel.split(" ")[0] in kernels:
            best[each.step] = min(each.microseconds, best.get(each.step, each.microseconds))
    return best


@pytest.mark.parametrize("gpu", FASTER_ON)
def test_gluon_was_faster_on_every_common_step_with_many_rows(gpu):
    common = []
    for look in looks_at(gpu):
        triton, gluon = best_times(look, ("triton-0.1", "triton-even", "triton")), {}
        for kernel in ("gluon-first", "gluon"):
            gluon |= look.times(kernel)
        common += [
            (step, gluon[step].microseconds, triton[step])
            for step in gluon
            if step in triton and step.heads > MANY_ROWS
        ]
    for results in measured_gpus():
        if results.machine.name == gpu:
            ours, gluon = results.times(), results.times("ours-gluon")
            common += [
                (case, gluon[case].time, ours[case].time) for case in gluon if case in ours and case.rows > MANY_ROWS
            ]
    assert len(common) >= 2
    assert all(gluon_time < triton_time for _, gluon_time, triton_time in common), common


@pytest.mark.parametrize("gpu", FASTER_ON)
def test_with_64_rows_gluon_reads_faster_on_both_sides_of_what_triton_was_timed_on(gpu):
    """At 64 rows no step is common: Triton has 32 sequences of 8k tokens, Gluon 32 of 4k and of 16k."""
    (look,) = looks_at(gpu)
    triton = [each for each in look.timings if each.kernel.startswith("triton") and each.step.heads == 64]
    gluon = [each for each in look.times("gluon-first").values() if (each.step.heads, each.step.batch) == (64, 32)]
    assert {each.step.context for each in triton} == {8192}
    assert sorted(each.step.context for each in gluon) == [4096, 16_384]
    assert min(each.gb_per_s for each in gluon) > max(each.gb_per_s for each in triton)


@pytest.mark.parametrize("gpu", FASTER_ON)
def test_with_few_rows_gluon_was_slower(gpu):
    (look,) = looks_at(gpu)
    triton, gluon = look.times("triton"), look.times("gluon")
    few = [step for step in gluon if step in triton and step.heads <= MANY_ROWS]
    assert few and all(triton[step].microseconds < gluon[step].microseconds for step in few)


def why_not(problem, **changed):
    tensors = {"q": problem.q, "kv_cache": problem.kv_cache, "block_table": problem.block_table}
    return gluon_launch.why_not(**{**tensors, "kv_lora_rank": problem.kv_lora_rank, **changed})


@pytest.mark.parametrize("dtype", ["bf16", "fp8_mla"])
def test_each_kernel_says_what_it_needs(dtype):
    problem = random_problem([70, 3], num_heads=4, s_q=2, dtype=dtype)
    q, cache = problem.q, problem.kv_cache
    assert why_not(problem) is None
    narrow = random_problem([70], kv_lora_rank=256, dtype=dtype)
    assert why_not(narrow).endswith("a latent of 512 and a rotary part of 64; got 256 and 64")
    pages = random_problem([70], dtype=dtype, page_size=96)
    assert why_not(pages).endswith("pages of a multiple of 64 tokens; got 96")
    huge = problem.block_table[:, :1].expand(2, 2**25)
    assert why_not(problem, block_table=huge).endswith("counts to 1073741824 tokens; block_table has room for more")
    assert "rows of kv_cache in one piece" in why_not(problem, kv_cache=cache.mT.contiguous().mT)
    wide = cache.repeat(1, 1, 2)[..., : cache.shape[2]]
    found = why_not(problem, kv_cache=wide)
    assert found is None if dtype == "bf16" else "rows of fp8 side by side" in found
    moved = torch.cat((cache.flatten(), cache.flatten()))[4:][: cache.numel()].view(cache.shape)
    assert "begin at multiples of 16 bytes" in why_not(problem, kv_cache=moved)
    for other in (q.transpose(1, 2).contiguous().transpose(1, 2), q.repeat(1, 2, 1, 1)[:, ::2], q.mT.contiguous().mT):
        assert "needs rows of q in one piece, evenly spaced" in why_not(problem, q=other)


def test_neither_kernel_takes_other_dtypes():
    problem = random_problem([70], dtype="fp16")
    assert "needs bf16, or the fp8 cache; q is torch.float16, kv_cache torch.float16" in why_not(problem)


@pytest.mark.parametrize(("num_heads", "s_q"), [(33, 1), (11, 3), (128, 1)])
def test_more_rows_than_32_are_too_many_for_the_fp8_kernel(num_heads, s_q):
    problem = random_problem([70], num_heads=num_heads, s_q=s_q, dtype="fp8_mla")
    assert f"needs 32 rows of queries or fewer with the fp8 cache; got {s_q} tokens of {num_heads} heads" in why_not(
        problem
    )


def test_the_fp8_kernel_is_never_taken_unasked(monkeypatch):
    """No committed time is of it."""
    monkeypatch.setattr(gluon_launch, "is_measured", lambda device: True)
    for num_heads in (1, 16, 32, 33, 64, 128):
        problem = random_problem([70], num_heads=num_heads, dtype="fp8_mla")
        assert why_not(problem) or not gluon_launch.is_faster(problem.q)
    assert gluon_launch.is_faster(problem.q) and why_not(random_problem([70], num_heads=128)) is None
