"""What only a GPU can show: pools past 2**31 numbers, captured graphs, checks that wait for the device."""

import math

import pytest
import torch

from mla_edu.kernels import mla_decode, workspace_bytes
from mla_edu.kernels.problems import check_answer, random_problem

launch = pytest.importorskip("mla_edu.kernels.launch")
pytestmark = pytest.mark.skipif(launch.INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU")


def test_pages_past_2_to_the_31_numbers_are_found():
    problem = random_problem([130, 77], num_heads=16, dtype="fp16", device="cuda")
    num_pages, page_size, width = problem.kv_cache.shape
    first = 2**31 // (page_size * width) + 1
    if torch.cuda.mem_get_info()[0] < 2.5 * (first + num_pages) * page_size * width:
        pytest.skip("needs 6 GB of free memory")
    pool = torch.empty(first + num_pages, page_size, width, dtype=torch.float16, device="cuda")
    pool[first:] = problem.kv_cache
    q, _, table, lens = problem.tensors
    for num_splits in (1, 3):
        answer = mla_decode(
            q, pool, table + first, lens, **problem.options, num_splits=num_splits, backend="triton", return_lse=True
        )
        check_answer(answer, problem.expected())


@pytest.mark.parametrize("base_on_e", [True, False])
@pytest.mark.parametrize("num_splits", [None, 4])
def test_a_captured_graph_stays_right_as_lengths_grow(num_splits, base_on_e):
    problem = random_problem([500, 430], num_heads=16, s_q=2, dtype="fp16", device="cuda")
    lens = problem.seq_lens.clone()
    options = {**problem.options, "return_lse": True, "return_lse_base_on_e": base_on_e}

    def step():
        return mla_decode(*problem.tensors[:3], lens, **options, num_splits=num_splits, backend="triton")

    lens.copy_(torch.tensor([3, 0]))
    step()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = step()
    for lengths in ([3, 0], [70, 129], [500, 430]):
        lens.copy_(torch.tensor(lengths))
        graph.replay()
        expected = mla_decode(*problem.tensors[:3], lens, **options, backend="reference")
        check_answer(answer, (expected[0].double(), expected[1].double()))


def test_what_lies_on_the_gpu_is_checked_when_asked():
    problem = random_problem([5], num_heads=3, dtype="fp16", device="cuda")
    q, kv_cache, table, lens = problem.tensors
    with pytest.raises(ValueError, match=r"seq_lens\[0\] is 1005; expected 0 to 192"):
        mla_decode(q, kv_cache, table, lens + 1000, **problem.options, validate=True)


@pytest.mark.parametrize("backend", ["triton", "gluon"])
@pytest.mark.parametrize(
    ("num_heads", "s_q", "dtype"),
    [(16, 1, "bf16"), (128, 1, "bf16"), (40, 3, "bf16"), (16, 1, "fp8_mla"), (6, 5, "fp8_mla")],
)
def test_each_kernel_meets_the_specification_on_ragged_batches(backend, num_heads, s_q, dtype):
    if backend == "gluon" and launch.why_no_gluon(torch.device("cuda", 0)):
        pytest.skip("needs a Hopper GPU and Triton 3.6")
    lengths = [0, 1, 5000, 63, 64, 65, 127, 128, 129, 0, 777, 2048] * 3
    problem = random_problem(lengths, num_heads=num_heads, s_q=s_q, dtype=dtype, device="cuda")
    for num_splits in (None, 1, 3):
        options = {**problem.options, "num_splits": num_splits, "return_lse": True}
        check_answer(mla_decode(*problem.tensors, **options, backend=backend), problem.expected())


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_a_step_with_buffers_of_ones_own_can_be_captured_and_allocates_nothing(backend):
    problem = random_problem([500, 0, 3000], num_heads=64, device="cuda")
    options = {**problem.options, "backend": backend, "return_lse": True, "return_lse_base_on_e": False}
    size = workspace_bytes(*problem.tensors[:3], kv_lora_rank=512, backend=backend)
    out, lse = problem.q.new_empty(3, 1, 64, 512), torch.empty(3, 64, 1, device="cuda")
    buffers = {"out": out, "lse": lse, "workspace": torch.empty(size, dtype=torch.uint8, device="cuda")}
    mla_decode(*problem.tensors, **options, **buffers)  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    answer = mla_decode(*problem.tensors, **options, **buffers)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    assert answer[0] is out and answer[1] is lse
    expected = problem.expected()
    check_answer(answer, (expected[0], expected[1] / math.log(2)))
