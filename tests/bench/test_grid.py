"""What a case must move and compute, against counts made in other ways; what the grid holds."""

import pytest
import torch

from mla_edu.bench.grid import GRID, PAGE_SIZE, TOY, cases
from mla_edu.bench.kernel import make_problems
from mla_edu.cost import attention_cost
from mla_edu.kernels.ledger import ideal_bytes
from mla_edu.registry import get_model


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8_mla"])
@pytest.mark.parametrize(("heads", "s_q"), [(3, 1), (16, 2)])
def test_bytes_are_those_of_the_tensors(case, dtype, heads, s_q):
    each = case(heads, 70, batch=2, s_q=s_q, dtype=dtype)
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


def test_toy_lengths_end_within_a_page():
    assert all(context % PAGE_SIZE for context in TOY["context"])


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="heads"):
        list(cases(TOY | {"heads": (0,)}))
