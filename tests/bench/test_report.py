"""The printed report: every case that was measured, every reason where one was not, no verdict on a toy."""

import io

import pytest
from rich.console import Console

from mla_edu.bench.report import print_layer_report, print_report
from mla_edu.bench.results import Limits


def printed(results, verdicts=()):
    console = Console(width=160, file=io.StringIO())
    print_report(results, console, verdicts)
    return console.file.getvalue()


def printed_layer(results):
    console = Console(width=160, file=io.StringIO())
    print_layer_report(results, console)
    return console.file.getvalue()


@pytest.fixture
def results(make_results, case):
    few, many, large = case(16, 4096, batch=128), case(128, 4096, batch=128), case(128, 2**17, batch=128)
    times = {
        "ours": {many: 2000.0, few: 1000.0, large: "out of memory"},
        "sglang": {many: 5000.0, few: 900.0, large: "out of memory"},
        "eager": {many: 9000.0, few: "failed: RuntimeError: why", large: "failed: RuntimeError: why"},
    }
    limits = Limits(copy_bytes_per_s=1e12, matmul_flop_per_s=1e14, read_bytes_per_s=2e12)
    return make_results(times, {"flashinfer-fa3": "not installed: pip install flashinfer-python"}, limits=limits)


def test_each_case_has_a_line_with_rates_and_ratios(results):
    lines = [line.split() for line in printed(results).splitlines() if line.startswith("bf16")]
    assert lines == [
        ["bf16", "16", "1", "4,096", "128", "1,000.0", "608", "61%", "30%", "18.3", "18%", "0.90×", "-"],
        ["bf16", "128", "1", "4,096", "128", "2,000.0", "320", "32%", "16%", "73.0", "73%", "2.50×", "4.50×"],
    ]


def test_a_ragged_batch_is_told_from_an_equal_one_and_a_missing_sum_is_left_out(make_results, case):
    equal = case(16, 4096, batch=32)
    ragged = equal.model_copy(update={"lengths": "uniform"})
    text = printed(make_results({"ours": {ragged: 900.0, equal: 1000.0}}))
    lines = [line.split() for line in text.splitlines() if line.startswith("bf16")]
    assert [line[3:5] for line in lines] == [["4,096", "32"], ["4,096", "uniform"]]
    assert lines[0][8] == "-" and "copy 1,000 GB/s, product" in text


def test_what_did_not_run_is_named_with_its_reason(results):
    text = printed(results)
    assert "flashinfer-fa3: not installed: pip install flashinfer-python" in text
    assert "eager: failed: RuntimeError: why (2 cases, first: heads 16, s_q 1, context 4096, batch 128" in text
    assert "ours: out of memory (1 cases" in text


def test_verdicts_come_last(results):
    last = printed(results, ["at least 1 times as fast", "at most 2 times as slow"]).splitlines()[-2:]
    assert last == ["at least 1 times as fast", "at most 2 times as slow"]


def test_toy_run_is_held_to_nothing(make_results, case):
    text = printed(make_results({"ours": {case(16, 70): 5.0}}, toy=True), ["a verdict"])
    assert text.rstrip().endswith("the times mean nothing.") and "a verdict" not in text


def test_each_case_of_a_layer_has_a_line_with_speed_up_share_and_pace(make_layer_results, layer_case):
    one, other = layer_case(1024), layer_case(4096, "bf16")
    times = {
        "absorbed": {one: 10_000.0, other: "out of memory"},
        "expanded": {one: 20_000.0, other: "out of memory"},
        "transformers": {one: 25_000.0, other: "out of memory"},
    }
    text = printed_layer(make_layer_results(times))
    (line,) = [line.split() for line in text.splitlines() if line.startswith("fp32")]
    share = one.bytes / 1e10 / 0.01
    assert line == ["fp32", "1,024", "10.00", "20.00", "25.00", "2.5×", f"{share:.0%}", "memory"]
    assert "expanded: out of memory (1 cases, first: heads 16, s_q 1, context 4096, batch 1, dtype bf16)" in text
    assert "Test CPU; 2026-01-02; torch 2.13.0, transformers 5.23.0" in text and "toy" not in text


def test_a_toy_of_a_layer_says_so(make_layer_results, layer_case):
    text = printed_layer(make_layer_results({"absorbed": {layer_case(70): "out of time"}}, toy=True))
    assert text.rstrip().endswith("the times mean nothing.")
