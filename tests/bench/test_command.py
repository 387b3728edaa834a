"""``mla-edu bench``: what it refuses, what it measures, what it writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mla_edu import cli
from mla_edu.bench import run as bench
from mla_edu.bench.grid import GRID, TOY, cases
from mla_edu.bench.results import read_results

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments):
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(cli.app, ["bench", *arguments])


@pytest.fixture
def asked(monkeypatch, make_results):
    """What would be measured; ``asked.answer`` is what a case of ours is found to take."""

    class Asked:
        answer: object = 10.0

    found = Asked()

    def run(chosen, device, **options):
        found.cases, found.options = chosen, options
        return make_results({"ours": dict.fromkeys(chosen, found.answer)}, toy=options["toy"])

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    return found


def test_whole_grid_is_measured_and_written(asked, tmp_path):
    result = command("--results", str(tmp_path), "--seconds", "77")
    assert result.exit_code == 0, result.output
    assert asked.cases == list(cases(GRID)) and asked.options == {"toy": False, "seconds": 77}
    assert len(read_results(tmp_path / "test-gpu.json").measurements) == 320


def test_a_part_is_measured_and_leaves_the_file_alone(asked, tmp_path):
    result = command("heads=16,128", "context=3k", "dtype=fp8", "--results", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert {(each.heads, each.context, each.dtype) for each in asked.cases} == {(16, 3072, "fp8"), (128, 3072, "fp8")}
    assert len(asked.cases) == 2 * 2 * 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", ["wrong: out is off by 3", "failed: RuntimeError: CUDA error"])
def test_wrong_answers_fail_the_command_after_all_is_written(asked, tmp_path, answer):
    asked.answer = answer
    result = command("--results", str(tmp_path))
    assert result.exit_code == 2 and "ours is wrong or fails in 320 cases, first heads 16" in result.stderr
    assert answer in result.stderr
    assert {each.why_not for each in read_results(tmp_path / "test-gpu.json").measurements} == {answer}


def test_cases_without_memory_or_time_are_no_fault(asked, tmp_path):
    asked.answer = "out of memory"
    assert command("--results", str(tmp_path)).exit_code == 0
    assert not read_results(tmp_path / "test-gpu.json").times()


def test_gpu_without_bf16_is_measured_in_fp16(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    command("heads=16")
    assert {each.dtype for each in asked.cases} == {"fp16"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["head=16"], "the part is 'head=16'; expected one like heads=16,128 of s_q, dtype, heads, batch, context"),
        (["heads"], "the part is 'heads'"),
        (["heads=0"], "heads is '0'; expected a positive number"),
        (["dtype=fp4"], "dtype is 'fp4'; expected bf16, fp16 or fp8"),
        (["--results", "/no/such"], "--results is /no/such; expected a folder that exists"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(asked, arguments, message):
    result = command(*arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert not hasattr(asked, "cases")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    result = command()
    assert result.exit_code == 2
    assert result.stderr == "mla-edu: no GPU; expected one, or --toy for the same steps at toy size on the CPU\n"


def test_script_runs_a_toy_end_to_end(tmp_path):
    script = ROOT / "benchmarks" / "decode_kernel.py"
    command = [sys.executable, script, "--toy", "--results", tmp_path]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # a user's
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = read_results(tmp_path / "toy-cpu.json")
    assert set(results.times()) == set(cases(TOY))
    assert "flashinfer-fa3: " in run.stdout and "the times mean nothing" in run.stdout
