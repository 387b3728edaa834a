"""The printed report: every case that was measured, every reason where one was not, no goal for a toy."""

import io

import matplotlib.pyplot as plt
import pytest
from rich.console import Console

from mla_edu.bench.report import draw_roofline, measured_table, print_report
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


def test_measured_table_quotes_each_gpu_beside_its_peers(make_results, case):
    quoted, other = case(16, 2**16, batch=32), case(16, 4096, batch=128)
    times = {
        "ours": {quoted: 3000.0, other: 1.0},
        "sglang": {quoted: 6000.0},
        "eager": {quoted: "out of memory"},
        "transformers": {quoted: 9000.0},
    }
    steps = {"hardware": {"cpu": "CPU", "threads": 2}, "steps": [{"dtype": "bfloat16"}]}
    (line,) = measured_table([make_results(times)], steps).splitlines()[2:]
    assert line == (
        "| the decode kernel | Test GPU | 16 heads, 32 x 65,536 tokens, bf16 | 3,000.0 µs | 81% "
        "| 2.00x as fast as sglang |"
    )


def test_measured_table_says_that_no_gpu_was_measured():
    step = {"dtype": "float32", "cached_tokens": 1024, "absorbed_ms": 2.04, "fraction_of_limit": 0.061}
    steps = {"hardware": {"cpu": "CPU", "threads": 2}, "steps": [step | {"absorbed_speedup": 5.49}]}
    assert measured_table([], steps).splitlines()[2:] == [
        "| a layer's decode step, absorbed | CPU, 2 threads | 16 heads, 1,024 tokens, float32 | 2.0 ms | 6% "
        "| 5.5x as fast as transformers |",
        "| the decode kernel | no GPU yet | | not measured yet | | |",
    ]


def test_roofline_has_a_point_for_each_measured_case(results):
    _, ax = plt.subplots()
    draw_roofline(ax, 1e12, 1e14, results)
    roof, points = ax.lines
    assert list(roof.get_ydata()) == pytest.approx([4.0, 100.0, 100.0])
    assert list(roof.get_xdata()) == pytest.approx([4, 100, 1024])
    assert sorted(points.get_ydata()) == pytest.approx([18.25, 73.01], abs=0.01)
    plt.close()


def test_roofline_without_results_has_no_points():
    _, ax = plt.subplots()
    draw_roofline(ax, 1e12, 1e14)
    assert len(ax.lines) == 1
    plt.close()
