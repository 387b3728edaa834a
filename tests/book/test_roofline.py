"""The drawn roofline: what the machine allows, and a point for each measured case."""

import matplotlib.pyplot as plt
import pytest

from mla_edu.book.roofline import draw_roofline
from mla_edu.cost import Rates


@pytest.fixture
def results(make_results, case):
    few, many, large = case(16, 4096, batch=128), case(128, 4096, batch=128), case(128, 2**17, batch=128)
    return make_results({"ours": {many: 2000.0, few: 1000.0, large: "out of memory"}, "sglang": {many: 5000.0}})


def test_roofline_has_a_point_for_each_measured_case(results):
    _, ax = plt.subplots()
    draw_roofline(ax, Rates(1e14, 1e12), results)
    roof, points = ax.lines
    assert list(roof.get_ydata()) == pytest.approx([4.0, 100.0, 100.0])
    assert list(roof.get_xdata()) == pytest.approx([4, 100, 1024])
    assert sorted(points.get_ydata()) == pytest.approx([18.25, 73.01], abs=0.01)
    plt.close()


def test_roofline_without_results_has_no_points():
    _, ax = plt.subplots()
    draw_roofline(ax, Rates(1e14, 1e12))
    assert len(ax.lines) == 1
    plt.close()
