"""The printed report: every case that was measured, every reason where one was not, no goal for a toy."""

import io

import pytest
from rich.console import Console

from mla_edu.bench.report import print_report
from mla_edu.book.goals import GOALS


def printed(results):
    console = Console(width=160, file=io.StringIO())
    print_report(results, console)
    return console.file.getvalue()


@pytest.fixture
def results(make_results, case):
    few, many, large = case(16, 4096, batch=128), case(128, 4096, batch=128), case(128, 2**17, batch=128)
    times = {
        "ours": {many: 2000.0, few: 1000.0, large: "out of memory"},
        "sglang": {many: 5000.0, few: 900.0, large: "out of memory"},
        "eager": {many: 9000.0, few: "failed: RuntimeError: why", large: "failed: RuntimeError: why"},
    }
    return make_results(times, {"flashinfer-fa3": "not installed: pip install flashinfer-python"})


def test_each_case_has_a_line_with_rates_and_ratios(results):
    lines = [line.split() for line in printed(results).splitlines() if line.startswith("bf16")]
    assert lines == [
        ["bf16", "16", "1", "4,096", "128", "1,000.0", "608", "61%", "18.3", "18%", "0.90x", "-"],
        ["bf16", "128", "1", "4,096", "128", "2,000.0", "320", "32%", "73.0", "73%", "2.50x", "4.50x"],
    ]


def test_what_did_not_run_is_named_with_its_reason(results):
    text = printed(results)
    assert "flashinfer-fa3: not installed: pip install flashinfer-python" in text
    assert "eager: failed: RuntimeError: why (2 cases, first: heads 16, s_q 1, context 4096, batch 128" in text
    assert "ours: out of memory (1 cases" in text


def test_goals_come_last(results):
    last = printed(results).splitlines()[-len(GOALS) :]
    for goal, line in zip(GOALS, last, strict=True):
        assert line.strip().startswith(f"{goal.text} {goal.title}: ")
    assert "1 of 2, worst 0.90 (heads 16, s_q 1" in last[2] and last[4].endswith("not measured")


def test_toy_run_is_held_to_no_goal(make_results, case):
    text = printed(make_results({"ours": {case(16, 70): 5.0}}, toy=True))
    assert text.rstrip().endswith("the times mean nothing.") and GOALS[0].title not in text
