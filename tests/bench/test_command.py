"""``mla-edu bench``: what it refuses, what it measures, what it writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mla_edu import cli
from mla_edu.bench import kernel, layer
from mla_edu.bench.grid import LAYER_GRID, LAYER_TOY, TOY, WHOLE, LayerCase, cases
from mla_edu.bench.peers import PEERS
from mla_edu.bench.results import LayerResults, read_results

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments):
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(cli.app, ["bench", *arguments])


class Asked:
    """What would be measured; ``answer`` is what a case of ours is found to take, or why it has no time."""

    answer: object = 10.0

    def take(self, chosen, device, options):
        self.cases, self.device, self.options = chosen, device, options


@pytest.fixture
def gpu(monkeypatch):
    """A machine with an H100, as far as the command can see."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.fixture
def asked(monkeypatch, make_results, gpu):
    found = Asked()

    def run(chosen, device, **options):
        found.take(chosen, device, options)
        return make_results({"ours": dict.fromkeys(chosen, found.answer)}, toy=options["toy"])

    monkeypatch.setattr(kernel, "run", run)
    return found


@pytest.fixture
def asked_layer(monkeypatch, make_layer_results):
    found = Asked()

    def run(chosen, device, **options):
        found.take(chosen, device, options)
        return make_layer_results(dict.fromkeys(layer.LAYERS, dict.fromkeys(chosen, found.answer)), toy=options["toy"])

    monkeypatch.setattr(layer, "run", run)
    return found


def test_whole_grid_is_measured_and_written(asked, tmp_path):
    result = command("kernel", "--results", str(tmp_path), "--seconds", "77")
    assert result.exit_code == 0, result.output
    assert asked.cases == [each for axes in WHOLE for each in cases(axes)]
    assert asked.options == {"toy": False, "seconds": 77}
    assert len(read_results(tmp_path / "kernel-test-gpu.json").measurements) == 384


def test_a_part_is_measured_and_joined_to_the_others(asked, tmp_path):
    result = command("kernel", "heads=16,128", "context=3k", "dtype=fp8_mla", "--results", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert {(each.heads, each.context, each.dtype, each.lengths) for each in asked.cases} == {
        (16, 3072, "fp8_mla", "equal"),
        (128, 3072, "fp8_mla", "equal"),
    }
    assert len(asked.cases) == 2 * 2 * 4
    assert asked.options == {"toy": False, "seconds": None, "folder": tmp_path}
    assert len(read_results(tmp_path / "kernel-test-gpu.json").measurements) == 16


def test_a_part_can_be_ragged_batches_and_some_of_the_kernels(asked):
    part = ["s_q=1", "dtype=bf16", "heads=16", "batch=7,33", "context=4k", "lengths=equal,uniform,one-long"]
    assert command("kernel", *part, "kernels=eager,ours").exit_code == 0
    assert [(each.batch, each.lengths) for each in asked.cases] == [
        (batch, lengths) for batch in (7, 33) for lengths in ("equal", "uniform", "one-long")
    ]
    assert asked.options == {"toy": False, "seconds": None, "names": ["ours", "eager"], "folder": None}


def test_the_whole_grid_can_be_measured_with_one_kernel(asked):
    assert command("kernel", "kernels=ours").exit_code == 0
    assert len(asked.cases) == 384 and asked.options["names"] == ["ours"]


@pytest.mark.parametrize("answer", ["wrong: out is off by 3", "failed: RuntimeError: CUDA error"])
def test_wrong_answers_fail_the_command_after_all_is_written(asked, tmp_path, answer):
    asked.answer = answer
    result = command("kernel", "--results", str(tmp_path))
    assert result.exit_code == 2 and "ours is wrong or fails in 384 cases, first heads 16" in result.stderr
    assert answer in result.stderr and result.stderr.count("\n") == 1
    assert {each.why_not for each in read_results(tmp_path / "kernel-test-gpu.json").measurements} == {answer}


def test_cases_without_memory_or_time_are_no_fault(asked, tmp_path):
    asked.answer = "out of memory"
    assert command("kernel", "--results", str(tmp_path)).exit_code == 0
    assert not read_results(tmp_path / "kernel-test-gpu.json").times()


def test_the_goals_are_judged_at_the_end(asked):
    last = command("kernel").stdout.splitlines()[-1]
    assert last.strip().startswith("at most 0.65 of the bf16 time in fp8: up to 32 rows: ")


def test_gpu_without_bf16_is_measured_in_fp16(asked, asked_layer, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert command("kernel", "heads=16").exit_code == 0
    assert {each.dtype for each in asked.cases} == {"fp16"}
    assert command("layer").exit_code == 0
    assert {each.dtype for each in asked_layer.cases} == {"fp32", "fp16"}


def test_a_layer_is_measured_on_the_cpu_where_there_is_no_gpu_and_written(asked_layer, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = command("layer", "--results", str(tmp_path), "--seconds", "7")
    assert result.exit_code == 0, result.output
    assert asked_layer.cases == list(cases(LAYER_GRID, LayerCase)) and asked_layer.device.type == "cpu"
    assert asked_layer.options == {"toy": False, "seconds": 7}
    assert len(read_results(tmp_path / "layer-cpu.json", LayerResults).measurements) == 18


def test_a_part_of_the_layers_is_only_printed(asked_layer, tmp_path, gpu):
    assert command("layer", "context=4k,5k", "dtype=fp16", "--results", str(tmp_path)).exit_code == 0
    assert [(each.context, each.dtype) for each in asked_layer.cases] == [(4096, "fp16"), (5120, "fp16")]
    assert asked_layer.device.type == "cuda" and not list(tmp_path.iterdir())


def test_layers_that_disagree_fail_the_command(asked_layer):
    asked_layer.answer = "wrong: the layers disagree by 3"
    result = command("layer")
    assert result.exit_code == 2
    assert "absorbed is wrong or fails in 18 cases, first heads 16, s_q 1, context 1024" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernel", "head=16"], "the part is 'head=16'; expected one like context=4k,64k of s_q, dtype, heads, batch,"),
        (["kernel", "heads"], "the part is 'heads'"),
        (["kernel", "heads=0"], "heads is '0'; expected a positive integer"),
        (["kernel", "heads=16,"], "heads is ''; expected a positive integer"),
        (["kernel", "dtype=fp4"], "dtype is 'fp4'; expected bf16, fp16 or fp8_mla"),
        (["kernel", "dtype=fp8"], "dtype is 'fp8'; expected bf16, fp16 or fp8_mla"),
        (["kernel", "lengths=odd"], "lengths is 'odd'; expected equal, uniform or one-long"),
        (["kernel", "kernels=ours,theirs"], "kernels is 'theirs'; expected some of ours, ours-gluon, flashinfer-fa3,"),
        (["kernel", "kernels="], "kernels is ''; expected some of ours"),
        (
            ["kernel", "lengths=one-long", "context=100"],
            "context 100; expected at least 2 sequences and a multiple of 64",
        ),
        (["kernel", "--results", "/no/such"], "--results is /no/such; expected a folder that exists"),
        (["kernel", "--seconds", "nan"], "--seconds is nan; expected a finite number of at least 0"),
        (["kernel", "--seconds", "-1"], "--seconds is -1.0; expected a finite number of at least 0"),
        (["layer", "heads=16"], "the part is 'heads=16'; expected one like context=4k,64k of dtype, context"),
        (["layer", "dtype=fp8_mla"], "dtype is 'fp8_mla'; expected fp32, bf16 or fp16"),
        (["layer", "context=1.5k"], "context is '1.5k'; expected a positive integer"),
        (["layer", "--results", "/no/such"], "--results is /no/such; expected a folder that exists"),
        (["layer", "--seconds", "soon"], "--seconds is 'soon'; expected a valid number"),
        (["everything"], "No such command 'everything'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(asked, asked_layer, arguments, message):
    result = command(*arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.startswith("mla-edu: ") and result.stderr.count("\n") == 1
    assert not hasattr(asked, "cases") and not hasattr(asked_layer, "cases")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    result = command("kernel")
    assert result.exit_code == 2
    assert result.stderr == "mla-edu: no GPU; expected one, or --toy for the same steps at toy size on the CPU\n"


def run_as_a_user(*arguments, folder):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "mla_edu.cli", "bench", *arguments, "--results", folder]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "the times mean nothing" in run.stdout
    return run.stdout


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_toy_goes_all_the_way_with_the_real_kernels(tmp_path):
    shown = run_as_a_user("kernel", "--toy", folder=tmp_path)
    results = read_results(tmp_path / "toy-kernel-cpu.json")
    assert list(results.kernels) == list(PEERS)
    assert set(results.times("ours")) == set(cases(TOY))
    assert set(results.times("eager")) == {
        case for case in cases(TOY) if case.dtype != "fp8_mla" and case.lengths == "equal"
    }
    assert all(each.error < 0.01 for each in results.times("ours").values())
    assert results.toy and {"torch", "triton", "python", "mla-edu"} <= results.versions.keys()
    for name in ("flashinfer-fa3", "flashinfer-fa2"):
        assert name not in {each.kernel for each in results.measurements} and results.kernels[name]
        assert f"{name}: " in shown


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_toy_layer_goes_all_the_way(tmp_path):
    run_as_a_user("layer", "--toy", folder=tmp_path)
    results = read_results(tmp_path / "toy-layer-cpu.json", LayerResults)
    for name in layer.LAYERS:
        assert set(results.times(name)) == set(cases(LAYER_TOY, LayerCase))
    assert results.machine.threads >= 1 and {"torch", "transformers"} <= results.versions.keys()
