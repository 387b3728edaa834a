"""Files of results: whole or not at all, checked when read, and those that are committed."""

import ast
import os
import shutil
from pathlib import Path

import pytest

import mla_edu
import mla_edu.bench.results
from mla_edu.bench.results import (
    LAYERS,
    MEASURED,
    LayerResults,
    Limits,
    Measurement,
    kernel_sources,
    layer_steps,
    measured,
    measured_gpus,
    read_results,
    write_whole,
)


def test_file_holds_all_that_was_found(make_results, case, tmp_path):
    results = make_results({"ours": {case(16, 70): 12.5, case(3, 70): "out of time"}}, {"sglang": "not installed"})
    path = results.write(tmp_path)
    assert path == tmp_path / "kernel-test-gpu.json"
    assert read_results(path) == results
    assert list(tmp_path.iterdir()) == [path]


def test_toy_run_has_a_name_of_its_own(make_results, case, tmp_path):
    assert make_results({"ours": {case(16, 70): 1.0}}, toy=True).write(tmp_path).name == "toy-kernel-test-gpu.json"


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


def test_memory_is_as_fast_as_its_faster_yardstick(make_results, case):
    each = case(16, 4096, batch=128)
    limits = Limits(copy_bytes_per_s=1e12, matmul_flop_per_s=1e14, read_bytes_per_s=2e12)
    results = make_results({"ours": {each: 1000.0}}, limits=limits)
    (found,) = results.times().values()
    assert results.of_copy(found) == pytest.approx(0.608436224)
    assert results.of_read(found) == pytest.approx(0.304218112)
    assert results.fraction(found) == pytest.approx(0.304218112)
    assert limits.rates.bytes_per_s == 2e12
    assert make_results({"ours": {each: 1000.0}}).of_read(found) is None


def test_of_each_yardstick_the_better_counts():
    one = Limits(copy_bytes_per_s=3.0, matmul_flop_per_s=5.0, read_bytes_per_s=7.0)
    other = Limits(copy_bytes_per_s=4.0, matmul_flop_per_s=2.0)
    assert one.better(other) == other.better(one)
    assert one.better(other) == Limits(copy_bytes_per_s=4.0, matmul_flop_per_s=5.0, read_bytes_per_s=7.0)
    assert other.better(other) == other


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
    with pytest.raises(ValueError, match=r"kernel-test-gpu.json at measurements.0.microseconds: .* greater than 0"):
        read_results(path)


def test_sources_cover_every_module_that_the_backend_runs_and_change_with_it(tmp_path, monkeypatch):
    kernels = Path(mla_edu.__file__).parent / "kernels"
    copy = tmp_path / "kernels"
    shutil.copytree(kernels, copy)
    monkeypatch.setattr(mla_edu, "__file__", str(tmp_path / "__init__.py"))
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


def test_a_layer_has_a_file_of_its_own(make_layer_results, layer_case, tmp_path):
    results = make_layer_results({"absorbed": {layer_case(100): 12.5, layer_case(200): "out of memory"}})
    path = results.write(tmp_path)
    assert path == tmp_path / "layer-cpu.json" and read_results(path, LayerResults) == results
    with pytest.raises(ValueError, match=r"layer-cpu.json at "):
        read_results(path)


def test_a_kernels_case_is_no_layers(make_results, case, tmp_path):
    path = make_results({"ours": {case(16, 70): 12.5}}).write(tmp_path)
    with pytest.raises(ValueError, match=r"kernel-test-gpu.json at "):
        read_results(path, LayerResults)


def test_a_layers_limit_is_that_of_its_case(make_layer_results, layer_case):
    one, other = layer_case(100), layer_case(200)
    results = make_layer_results({"absorbed": {one: 20_000.0, other: 20_000.0}})
    first, second = results.limits
    faster = second.model_copy(update={"copy_bytes_per_s": 2e10})
    results = results.model_copy(update={"limits": [first, faster]})
    times = results.times("absorbed")
    assert results.fraction(times[one]) == pytest.approx(one.bytes / 1e10 / 0.02)
    assert results.fraction(times[other]) == pytest.approx(other.bytes / 2e10 / 0.02)
    with pytest.raises(ValueError, match="case is .*context 300.*; expected one that was measured"):
        results.limits_of(layer_case(300))


def test_results_come_with_the_package():
    (results,) = measured(LayerResults)
    assert Path(mla_edu.bench.results.__file__).parent / "measured" == MEASURED and not MEASURED.is_symlink()
    assert not [path for path in MEASURED.iterdir() if path.is_symlink()]
    assert results.times("absorbed") and not results.toy


def test_each_file_of_a_gpu_counts_once(make_results, make_layer_results, layer_case, case, tmp_path, monkeypatch):
    monkeypatch.setattr(mla_edu.bench.results, "MEASURED", tmp_path)
    make_layer_results({"absorbed": {layer_case(70): 1.0}}).write(tmp_path)
    assert measured_gpus() == []
    results = make_results({"ours": {case(16, 70): 12.5}})
    results.write(tmp_path)
    make_results({"ours": {case(16, 70): 1.0}}, toy=True).write(tmp_path)
    assert measured_gpus() == [results]


# The layer that was measured


@pytest.fixture
def steps():
    return layer_steps()["steps"]


def test_the_committed_results_say_where_they_were_measured():
    table = layer_steps()
    assert table["hardware"] == {"cpu": "Intel(R) Xeon(R) Processor", "threads": 2, "instructions": "AVX512"}
    assert table["versions"] == {"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0"}
    assert [row["cached_tokens"] for row in table["steps"]] == 2 * [1024, 4096, 16384]
    assert [row["dtype"] for row in table["steps"]] == 3 * ["float32"] + 3 * ["bfloat16"]


def test_the_committed_figures_are_those_that_were_measured(steps):
    """Two rows of the file as it was written on that machine, number for number."""
    first, last = steps[0], steps[-1]
    assert first["absorbed_ms"] == 3.442998999162228 and first["transformers_ms"] == 18.418686999211786
    assert first["copy_gb_per_s"] == 27.629131437885025 and first["matmul_gmac_per_s"] == 173.9728754543224
    assert first["largest_relative_error"] == 1.7945992567547364e-06
    assert first["fraction_of_limit"] == pytest.approx(0.6035494088095174, rel=1e-12)
    assert first["limit_ms"] == pytest.approx(2.0780200104761226, rel=1e-12)
    assert (first["cache_bytes"], first["weight_bytes"]) == (2_361_600, 55_052_288)
    assert last["absorbed_ms"] == 6.496182002592832 and last["expanded_ms"] == 174.03053700036253
    assert (last["scores_ms"], last["softmax_ms"]) == (1.7128129984484985, 0.33667499883449636)
    assert last["weighted_sum_ms"] == 1.2585650001710746


def test_speed_ups_limit_and_pace_follow_from_the_figures(steps):
    for row in steps:
        assert row["absorbed_speedup"] == pytest.approx(row["transformers_ms"] / row["absorbed_ms"])
        assert row["expanded_speedup"] == pytest.approx(row["transformers_ms"] / row["expanded_ms"])
        memory = (row["cache_bytes"] + row["weight_bytes"]) / row["copy_gb_per_s"] / 1e6
        assert row["limit_ms"] == pytest.approx(memory) and row["pace_set_by"] == "memory"
        assert row["fraction_of_limit"] == pytest.approx(row["limit_ms"] / row["absorbed_ms"])


def test_parts_take_no_longer_than_the_step_that_they_belong_to(steps):
    for row in steps:
        assert sum(row[f"{part}_ms"] for part in ("scores", "softmax", "weighted_sum")) < row["absorbed_ms"]


def test_every_layer_was_measured_on_every_case():
    (results,) = measured(LayerResults)
    assert all(len(results.times(layer)) == 6 for layer in LAYERS) and len(results.measurements) == 18


def test_committed_results_are_of_gpus_and_no_toys():
    for results in measured_gpus():
        assert not results.toy and (MEASURED / f"kernel-{results.machine.slug}.json").is_file()
        assert results.times(), "ours was not measured"


def test_two_processes_write_one_file_at_the_same_time(tmp_path, monkeypatch):
    """Each has a draft of its own, so that neither takes the other's away or leaves half of it."""
    path, replace = tmp_path / "a.json", Path.replace

    def other_first(draft, target):
        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(os, "getpid", lambda: 2)
        write_whole(path, "theirs")
        return replace(draft, target)

    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(Path, "replace", other_first)
    write_whole(path, "ours")
    assert path.read_text() == "ours" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, "old")
    monkeypatch.setattr(Path, "replace", lambda *paths: (_ for _ in ()).throw(OSError("no space left on device")))
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
