"""The traffic ledger: exact bytes, so that a reader can trust what it says about each version of a kernel."""

import pytest

from mla_edu.kernels.ledger import ideal_bytes, traffic
from mla_edu.kernels.plan import GPU
from mla_edu.kernels.problems import random_problem
from mla_edu.kernels.tiles import Tiles

launch = pytest.importorskip("mla_edu.kernels.launch")
pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="needs the interpreter")
FP32, ROW = 4, 576


def count(problem, **options):
    q, kv_cache, block_table, _ = problem.tensors
    with traffic(q=q, kv_cache=kv_cache, block_table=block_table) as ledger:
        launch.decode(*problem.tensors, **problem.options, **options)
    return ledger


@pytest.mark.parametrize("num_chunks", [1, 4])
@pytest.mark.parametrize(("num_heads", "times"), [(16, 1), (17, 2), (48, 3)])
def test_a_block_of_rows_loads_each_cached_row_once_as_key_and_value(num_heads, times, num_chunks):
    problem = random_problem([70, 33], num_heads=num_heads, dtype="fp32")
    ledger = count(problem, num_splits=1, tiles=Tiles(16, 32, 4, 2, num_chunks))
    ideal = ideal_bytes(problem.q, problem.kv_cache, problem.seq_lens, 512)
    assert ideal["kv_cache"] == 103 * ROW * FP32
    assert ledger.loaded["kv_cache"] == times * ideal["kv_cache"]
    assert ledger.loaded["q"] == ideal["q"] == 2 * num_heads * ROW * FP32
    assert ledger.stored["other"] == ideal["out"] + 2 * num_heads * FP32  # and the log-sum-exp
    assert ledger.stored["kv_cache"] == ledger.stored["q"] == 0


def test_the_fp8_cache_moves_656_bytes_a_token():
    problem = random_problem([70, 33], num_heads=16, dtype="fp8_mla")
    assert count(problem, num_splits=1).loaded["kv_cache"] == 103 * 656


def test_partial_results_are_stored_and_loaded_in_fp32():
    problem = random_problem([128, 64], num_heads=3, dtype="fp32")
    one, two = (count(problem, num_splits=splits, tiles=Tiles(16, 64, 8, 2)) for splits in (1, 2))
    partial = 2 * 3 * (512 + 1) * FP32  # two splits of the first sequence; the second has one tile, hence one split
    where = 2 * 4  # of each sequence: which part is its first, and how many there are
    assert two.stored["other"] - one.stored["other"] == partial + 2 * where
    # The merge reads the partial results, and for each of the 6 rows where they are; a program reads a length.
    assert two.loaded["other"] - one.loaded["other"] == partial + 6 * where + 2 * 4
    assert two.loaded["kv_cache"] == one.loaded["kv_cache"]


def test_nothing_is_counted_once_the_block_ends():
    problem = random_problem([5], kv_lora_rank=64)
    ledger = count(problem)
    before = ledger.loaded.copy()
    launch.decode(*problem.tensors, **problem.options)
    assert ledger.loaded == before


def test_even_shares_load_each_cached_row_once(monkeypatch):
    monkeypatch.setattr(launch, "describe_gpu", lambda device: GPU("sm_90", 232_448, 7))
    problem = random_problem([700, 0, 333, 90], num_heads=16, dtype="fp32", page_size=16)
    ideal = ideal_bytes(problem.q, problem.kv_cache, problem.seq_lens, 512)
    assert count(problem).loaded["kv_cache"] == ideal["kv_cache"]
