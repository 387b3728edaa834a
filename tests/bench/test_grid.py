"""What a case must move and compute, against counts made in other ways; what the grid holds."""

import pytest
import torch

from mla_edu.bench.grid import GRID, PAGE_SIZE, TOY, WHOLE, Case, cases
from mla_edu.bench.kernel import make_problems
from mla_edu.cost import attention_cost
from mla_edu.kernels.ledger import ideal_bytes
from mla_edu.registry import get_model


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8_mla"])
@pytest.mark.parametrize(("heads", "s_q"), [(3, 1), (16, 2)])
@pytest.mark.parametrize("lengths", ["equal", "uniform", "one-long"])
def test_bytes_are_those_of_the_tensors(dtype, heads, s_q, lengths):
    each = Case(heads=heads, context=128, batch=3, s_q=s_q, dtype=dtype, lengths=lengths)
    assert each.flops == 2 * heads * s_q * sum(each.sequences) * (512 + 64 + 512)
    (problem,) = make_problems(each, torch.device("cpu"), 1)
    assert each.bytes == sum(ideal_bytes(*problem.tensors[:2], problem.seq_lens, 512).values())


@pytest.mark.parametrize(
    ("heads", "dtype", "intensity"), [(16, "bf16", 30.2), (128, "bf16", 241.8), (16, "fp8_mla", 53.1)]
)
def test_operations_per_byte_of_a_long_cache_are_known(case, heads, dtype, intensity):
    each = case(heads, 2**20, dtype=dtype)
    assert each.flops / each.bytes == pytest.approx(intensity, abs=0.1)


def test_operations_are_those_of_the_cost_model_without_absorption(case):
    config = get_model("deepseek-v3").config
    whole = attention_cost(config, 8191, 1, 3, mode="absorbed").flops
    absorption = 2 * 3 * 128 * 512 * (128 + 128)
    assert case(128, 8192, batch=3).flops == whole - absorption
    assert case(1, 1).flops == 2 * (512 + 64 + 512)


def test_grid_reaches_from_one_short_sequence_to_many_long_ones():
    found = list(cases(GRID))
    assert len(found) == len(set(found)) == 320
    for axis, least, most in (("context", 1024, 131_072), ("batch", 1, 128), ("s_q", 1, 2), ("heads", 16, 128)):
        values = {getattr(each, axis) for each in found}
        assert min(values) == least and max(values) == most
    assert {each.dtype for each in found} == {"bf16", "fp8_mla"}


def test_whole_grid_has_odd_and_ragged_batches_and_no_case_twice():
    found = [each for axes in WHOLE for each in cases(axes)]
    assert len(found) == len(set(found)) == 384 and set(cases(GRID)) < set(found)
    assert {7, 33, 100} < {each.batch for each in found}
    assert {each.lengths for each in found} == {"equal", "uniform", "one-long"}
    (long,) = {each.sequences for each in found if each.lengths == "one-long"}
    assert long == (131_072, *[2048] * 31)


def test_drawn_lengths_are_spread_from_1_to_twice_the_mean_and_always_the_same():
    case = Case(heads=16, s_q=1, context=4096, batch=1000, dtype="bf16", lengths="uniform")
    lengths = case.sequences
    assert min(lengths) < 50 and 8140 < max(lengths) <= 8192 and 3950 < sum(lengths) / 1000 < 4250
    assert lengths[:3] == (6312, 6891, 664)


@pytest.mark.parametrize("fields", [{"batch": 1}, {"context": 4100}])
def test_one_long_sequence_has_shorter_ones_beside_it(fields):
    with pytest.raises(ValueError, match="expected at least 2 sequences and a multiple of 64 tokens"):
        Case(**{"heads": 16, "s_q": 1, "context": 4096, "batch": 2, "dtype": "bf16", "lengths": "one-long"} | fields)


def test_toy_lengths_end_within_a_page():
    assert all(context % PAGE_SIZE for context in TOY["context"])


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="heads"):
        list(cases(TOY | {"heads": (0,)}))
