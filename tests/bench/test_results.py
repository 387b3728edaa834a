"""Files of results: whole or not at all, checked when read, and those that are committed."""

import ast
import shutil
from pathlib import Path

import pytest

import mla_edu.bench.results
import mla_edu.kernels
from mla_edu.bench.results import (
    LAYER_STEPS,
    MEASURED,
    Limits,
    Machine,
    Measurement,
    gpu_of,
    kernel_sources,
    layer_steps,
    measured_gpus,
    read_results,
)


def test_file_holds_all_that_was_found(make_results, case, tmp_path):
    results = make_results({"ours": {case(16, 70): 12.5, case(3, 70): "out of time"}}, {"sglang": "not installed"})
    path = results.write(tmp_path)
    assert path == tmp_path / "test-gpu.json"
    assert read_results(path) == results
    assert list(tmp_path.iterdir()) == [path]


def test_toy_run_has_a_name_of_its_own(make_results, case, tmp_path):
    assert make_results({"ours": {case(16, 70): 1.0}}, toy=True).write(tmp_path).name == "toy-test-gpu.json"


def test_a_write_that_fails_leaves_the_old_file(make_results, case, tmp_path, monkeypatch):
    old = make_results({"ours": {case(16, 70): 12.5}})
    path = old.write(tmp_path)

    def interrupted(path, text, **options):
        path.open("w").write(text[: len(text) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(OSError):
        make_results({"ours": {case(16, 70): 99.0}}).write(tmp_path)
    assert read_results(path) == old


def test_rates_and_shares_follow_from_time(make_results, case):
    each = case(16, 4096, batch=128)
    results = make_results({"ours": {each: 1000.0}})
    (found,) = results.times().values()
    assert found.gb_per_s == pytest.approx(608.436224) and found.tflop_per_s == pytest.approx(18.253611008)
    assert results.fraction(found) == pytest.approx(0.608436224)
    slow = make_results({"ours": {each: 1000.0}}, limits=Limits(copy_bytes_per_s=1e12, matmul_flop_per_s=2e13))
    assert slow.fraction(found) == pytest.approx(0.9126805504)


@pytest.mark.parametrize("fields", [{}, {"microseconds": 1.0, "error": 0.1, "why_not": "out of time"}])
def test_measurement_has_a_time_or_a_reason(case, fields):
    with pytest.raises(ValueError, match="expected one"):
        Measurement(case=case(3, 70), kernel="ours", **fields)


def test_time_of_an_answer_that_was_not_checked_is_refused(case):
    with pytest.raises(ValueError, match="error is None for ours"):
        Measurement(case=case(3, 70), kernel="ours", microseconds=1.0)


def test_bad_file_is_refused_with_its_name_and_place(make_results, case, tmp_path):
    path = make_results({"ours": {case(16, 70): 12.5}}).write(tmp_path)
    path.write_text(path.read_text().replace("12.5", "-1"))
    with pytest.raises(ValueError, match=r"test-gpu.json at measurements.0.microseconds: .* greater than 0"):
        read_results(path)


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("Tesla T4", "t4"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA H20", None),
    ],
)
def test_machine_is_found_in_the_registry(name, gpu):
    found = gpu_of(Machine(name=name, multiprocessors=1, memory_bytes=1, l2_bytes=1, driver="1"))
    assert (found and found.name) == gpu


def test_sources_cover_every_module_that_the_backend_runs_and_change_with_it(tmp_path, monkeypatch):
    kernels = Path(mla_edu.kernels.__file__).parent
    copy = tmp_path / "kernels"
    shutil.copytree(kernels, copy)
    monkeypatch.setattr(mla_edu.kernels, "__file__", str(copy / "__init__.py"))
    before = kernel_sources()
    reached, todo = set(), ["launch"]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            nodes = ast.walk(ast.parse((kernels / f"{name}.py").read_text()))
            modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
            todo += [module.rsplit(".", 1)[1] for module in modules if module.startswith("mla_edu.kernels.")]
    for name in reached:
        with (copy / f"{name}.py").open("a") as file:
            file.write("\n")
        after = kernel_sources()
        assert after != before, name
        before = after


def test_results_come_with_the_package():
    assert MEASURED.resolve() == Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    assert {"hardware", "versions", "steps"} <= layer_steps().keys()


def test_each_file_of_a_gpu_counts_once(make_results, case, tmp_path, monkeypatch):
    monkeypatch.setattr(mla_edu.bench.results, "MEASURED", tmp_path)
    (tmp_path / LAYER_STEPS).write_text("{}")
    assert measured_gpus() == []
    results = make_results({"ours": {case(16, 70): 12.5}})
    results.write(tmp_path)
    assert measured_gpus() == [results]


def test_committed_results_are_of_gpus_and_no_toys():
    for results in measured_gpus():
        assert not results.toy and (MEASURED / f"{results.machine.slug}.json").is_file()
        assert results.times(), "ours was not measured"
