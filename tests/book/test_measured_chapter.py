"""The chapter is made from what lies in bench/measured: a GPU with a file is shown, and none where there is none."""

import ast
import shutil
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

import mla_edu.bench.kernel
import mla_edu.bench.results
from mla_edu.bench.grid import GRID, cases
from mla_edu.bench.results import MEASURED, Limits, Machine, Measurement, Results, kernel_sources

CHAPTER = Path(__file__).resolve().parents[2] / "book" / "measured.ipynb"


def synthetic_results(grid, toy=False) -> Results:
    """Ours reaches half of the limit everywhere, SGLang a quarter, eager is out of memory."""
    limits = Limits(copy_bytes_per_s=4e12, matmul_flop_per_s=8e14)
    measurements = []
    for case in grid:
        least = limits.microseconds(case)
        for kernel, factor in {"ours": 2, "sglang": 4}.items():
            measurements.append(Measurement(case=case, kernel=kernel, microseconds=factor * least, spread=0, error=0))
        measurements.append(Measurement(case=case, kernel="eager", why_not="out of memory"))
    return Results(
        machine=Machine(name="Test GPU", multiprocessors=9, memory_bytes=10**9, l2_bytes=10**6, driver="1.2"),
        versions={"torch": "2.13.0"},
        date="2026-01-02",
        sources=kernel_sources(),
        toy=toy,
        limits=limits,
        floor_microseconds=2.5,
        kernels={"ours": "1", "flashinfer-fa3": "not installed", "sglang": "1", "eager": "1"},
        measurements=measurements,
    )


def cells_without_compiling():
    """The chapter's code, but for the cells that compile kernels and those that use what these define."""
    missing, kept = {"compile_reports"}, []
    for cell in nbformat.read(CHAPTER, as_version=4).cells:
        if cell.cell_type != "code" or "%pip" in cell.source:
            continue
        names = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)]
        made = {name.id for name in names if isinstance(name.ctx, ast.Store)}
        if missing & ({name.id for name in names} - made):
            missing |= made
        else:
            missing -= made
            kept.append(cell.source)
    return kept


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What each code cell prints and shows, run with the results of a GPU that does not exist.

    No kernel is interpreted or compiled: the chapter as it is committed does that.
    """
    folder = tmp_path_factory.mktemp("measured")
    for name in ("layer-cpu.json", "first-look-h100.json"):
        shutil.copy(MEASURED / name, folder)
    synthetic_results(cases(GRID)).write(folder)
    outputs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mla_edu.bench.results, "MEASURED", folder)
        patch.setattr(mla_edu.bench.kernel, "run", lambda grid, device, toy: synthetic_results(grid, toy))
        shell = InteractiveShell()
        for source in cells_without_compiling():
            with capture_output() as captured:
                result = shell.run_cell(source)
            result.raise_error()
            outputs.append(captured.stdout)
    return outputs


def test_the_page_names_the_gpu_and_its_kernel(shown):
    assert shown[0].startswith("Test GPU: kernel, 320 cases\n")
    assert not any("not measured yet" in output for output in shown if "a whole layer" not in output)


def test_the_table_has_each_case_with_share_and_ratios(shown):
    (table,) = [output for output in shown if "of the limit" in output and "eager" in output]
    rows = [line.split() for line in table.splitlines() if line.startswith("Test GPU")]
    assert len(rows) == 8
    assert all("50%" in row and "2.00" in row for row in rows)


def test_the_goals_are_judged(shown):
    (table,) = [output for output in shown if "of the copy's bandwidth: up to 32 rows" in output]
    assert "worst" in table and "0 of " in table


def test_the_figure_has_its_points(shown):
    assert any("320 points, one for each measured case" in output for output in shown)
