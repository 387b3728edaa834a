"""The goals: which cases each is about, where its bound lies, what is said where nothing was measured."""

import pytest

from mla_edu.bench.results import Limits
from mla_edu.book.goals import GOALS, judge

BANDWIDTH, ARITHMETIC, SGLANG, SGLANG_128, FA3, LONG, READ, RAGGED, FLASH_MLA, FP8 = GOALS


def test_nothing_measured_is_no_goal_met(make_results, case):
    results = make_results({"ours": {case(16, 2**16): "out of time"}})
    for goal in GOALS:
        verdict = judge(goal, results)
        assert verdict.cases == 0 and verdict.text == "not measured"


def test_bandwidth_counts_large_16_bit_caches_with_few_rows(make_results, case):
    enough = case(16, 2**16, batch=4)  # 302 MB
    at_bound = enough.bytes / 0.8e12 * 1e6
    others = [case(64, 2**16, batch=4), case(16, 2**16, batch=3), case(16, 2**17, batch=4, dtype="fp8_mla")]
    results = make_results({"ours": {enough: at_bound * 0.999} | dict.fromkeys(others, 1e9)})
    verdict = judge(BANDWIDTH, results)
    assert (verdict.met, verdict.cases) == (1, 1)
    assert judge(BANDWIDTH, make_results({"ours": {enough: at_bound * 1.001}})).met == 0
    assert judge(BANDWIDTH, make_results({"ours": {case(16, 2**16, 4, s_q=2): 1.0}})).cases == 1
    assert judge(BANDWIDTH, make_results({"ours": {case(32, 2**16, 4, s_q=2): 1.0}})).cases == 0


@pytest.mark.parametrize(("context", "cases"), [(233_016, 0), (233_017, 1)])
def test_a_large_cache_has_256_mebibytes(make_results, case, context, cases):
    assert (case(16, context).cache_bytes >= 2**28) == (cases == 1)
    assert judge(BANDWIDTH, make_results({"ours": {case(16, context): 1.0}})).cases == cases


def test_arithmetic_counts_128_heads_and_long_16_bit_caches(make_results, case):
    enough = case(128, 4096, batch=8)
    at_bound = enough.flops / 0.45e14 * 1e6
    others = [case(64, 4096, batch=8), case(128, 1024, batch=8), case(128, 4096, batch=8, dtype="fp8_mla")]
    results = make_results({"ours": {enough: at_bound * 0.999} | dict.fromkeys(others, 1e9)})
    assert (judge(ARITHMETIC, results).met, judge(ARITHMETIC, results).cases) == (1, 1)
    assert judge(ARITHMETIC, make_results({"ours": {enough: at_bound * 1.001}})).met == 0
    assert judge(ARITHMETIC, make_results({"ours": {case(128, 4096, 8, s_q=2): 1.0}})).cases == 1
    assert judge(ARITHMETIC, make_results({"ours": {case(64, 4096, 8, s_q=2): 1.0}})).cases == 0


def test_peers_are_compared_where_both_were_measured(make_results, case):
    few, many, alone = case(16, 4096), case(128, 4096), case(32, 4096)
    times = {
        "ours": {few: 10.0, many: 10.0, alone: 10.0},
        "sglang": {few: 10.0, many: 14.0},
        "flashinfer-fa3": {few: 7.5, many: 7.4, alone: "out of memory"},
    }
    results = make_results(times)
    assert judge(SGLANG, results).met == judge(SGLANG, results).cases == 2
    assert (judge(SGLANG_128, results).met, judge(SGLANG_128, results).worst) == (0, (many, 1.4))
    assert (judge(FA3, results).met, judge(FA3, results).cases) == (1, 2)
    assert judge(FA3, results).worst == (many, pytest.approx(0.74))


def test_the_long_sequence_is_that_one_case(make_results, case):
    times = {case(16, 2**16): 44.0, case(16, 2**16, batch=8): 400.0, case(16, 2**16, dtype="fp8_mla"): 30.0}
    verdict = judge(LONG, make_results({"ours": times}))
    assert (verdict.met, verdict.cases, verdict.worst[1]) == (1, 1, 44.0)
    assert judge(LONG, make_results({"ours": {case(16, 2**16): 44.1}})).met == 0


def test_fp8_is_compared_with_the_same_case_in_bf16(make_results, case):
    times = {
        case(16, 4096): 10.0,
        case(16, 4096, dtype="fp8_mla"): 6.5,
        case(32, 4096): 10.0,
        case(32, 4096, dtype="fp8_mla"): 6.6,
        case(64, 4096): 10.0,
        case(64, 4096, dtype="fp8_mla"): 10.0,
        case(16, 1024, dtype="fp8_mla"): 1.0,
        case(32, 4096, s_q=2): 10.0,
        case(32, 4096, s_q=2, dtype="fp8_mla"): 10.0,
    }
    verdict = judge(FP8, make_results({"ours": times}))
    assert (verdict.met, verdict.cases) == (1, 2)
    assert verdict.text == "1 of 2, worst 0.66 (heads 32, s_q 1, context 4096, batch 1, dtype fp8_mla)"


def test_cases_that_take_long_enough_are_judged_apart(make_results, case):
    just_below, just_above = case(128, 2**14, batch=1), case(128, 2**15, batch=1)
    times = {"ours": {just_below: 10.0, just_above: 10.0}, "sglang": {just_below: 9.0, just_above: 11.0}}
    results = make_results(times, limits=Limits(copy_bytes_per_s=1e12, matmul_flop_per_s=1.7e14))
    assert results.limits.microseconds(just_below) < 50 < results.limits.microseconds(just_above)
    verdict = judge(SGLANG, results)
    assert (verdict.met, verdict.cases, verdict.large) == (1, 2, (1, 1))
    assert verdict.text.endswith("; from 50 µs on 1 of 1")


def test_the_sum_is_a_yardstick_of_its_own(make_results, case):
    each = case(16, 2**16, batch=4)
    time = each.bytes / 0.8e12 * 1e6 * 0.999
    limits = Limits(copy_bytes_per_s=1e12, matmul_flop_per_s=1e14, read_bytes_per_s=1.1e12)
    results = make_results({"ours": {each: time}}, limits=limits)
    assert (judge(BANDWIDTH, results).met, judge(READ, results).met, judge(READ, results).cases) == (1, 0, 1)
    assert judge(READ, make_results({"ours": {each: time}})).cases == 0
    ragged = each.model_copy(update={"lengths": "uniform"})
    assert judge(READ, make_results({"ours": {ragged: time}}, limits=limits)).cases == 0


def test_ragged_batches_are_held_to_the_rate_of_equal_ones(make_results, case):
    equal = case(128, 4096, batch=32)
    ragged = equal.model_copy(update={"lengths": "uniform"})
    time = 100.0 * ragged.bytes / equal.bytes
    results = make_results({"ours": {equal: 100.0, ragged: time / 0.91}})
    verdict = judge(RAGGED, results)
    assert (verdict.met, verdict.cases, verdict.worst) == (1, 1, (ragged, pytest.approx(0.91)))
    assert judge(RAGGED, make_results({"ours": {equal: 100.0, ragged: time / 0.89}})).met == 0
    assert judge(RAGGED, make_results({"ours": {ragged: time}})).cases == 0


def test_flash_mla_is_one_of_the_peers(make_results, case):
    results = make_results({"ours": {case(64, 4096): 10.0}, "flashmla": {case(64, 4096): 5.4}})
    assert (judge(FLASH_MLA, results).met, judge(FLASH_MLA, results).worst[1]) == (0, pytest.approx(0.54))
