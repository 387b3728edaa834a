"""Layers on several ranks, measured at toy size: what passes, what is checked before, and what is written."""

import io
import os
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from mla_edu import cli
from mla_edu.bench import distributed
from mla_edu.bench.distributed_results import DistributedResults
from mla_edu.bench.report import print_distributed_report
from mla_edu.bench.results import MEASURED, LayerResults, read_results


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        yield distributed.run([2], toy=True, rounds=2)
    assert list(folder.iterdir()) == []  # torchrun leaves folders of logs


def test_what_passes_is_what_the_formulas_say(found):
    """A token of 96 numbers, all-reduced by two ranks, is received once, in 16 bits; the MLP's twice."""
    by_case = {(each.scheme, each.tokens): each for each in found.exchanges}
    assert by_case["tensor", 1].received == {"attention": 96 * 2} and by_case["data", 8].received == {"mlp": 8 * 96 * 4}
    assert by_case["context", 1].received["outputs"] == 2 * 16 * 2
    assert len(by_case) == 8 and all(each.received == each.formula for each in found.exchanges)


def test_tokens_that_are_dealt_take_half_the_memory(found):
    held = {each.scheme: each.cache_bytes for each in found.exchanges if each.tokens == 8}
    assert held["tensor"] == 8 * 48 * (16 + 64) * 2 == 2 * held["context"] == 2 * held["before absorption"]
    assert held["data"] is None


def test_every_step_has_its_rounds(found):
    assert found.toy and found.network == "gloo" and found.threads == 1 and found.cached == 24
    for each in found.exchanges:
        assert len(each.seconds) == len(each.exchanging) == len(each.one_process) == 2
        assert all(0 < inside < whole for inside, whole in zip(each.exchanging, each.seconds, strict=True))
        assert 0 <= each.error < 0.05
    assert found.link(2).latency_seconds > 0
    with pytest.raises(ValueError, match=r"ranks is 3; expected one of \[2\]"):
        found.link(3)


def test_results_survive_their_file(found, tmp_path):
    path = found.write(tmp_path)
    assert path.name == "toy-distributed-cpu.json" and read_results(path, DistributedResults) == found
    with pytest.raises(ValueError, match="toy-distributed-cpu.json at "):
        read_results(path, LayerResults)


def test_the_report_shows_every_part(found):
    console = Console(width=160, file=io.StringIO())
    print_distributed_report(found, console)
    shown = console.file.getvalue()
    for words in ("before absorption", "3,072 B", "2 ranks over gloo", "the times mean nothing"):
        assert words in shown


def test_what_was_measured_passed_as_the_formulas_say():
    for each in read_results(MEASURED / "distributed-cpu.json", DistributedResults).exchanges:
        assert each.received == each.formula


# The command


def command(*arguments):
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(cli.app, ["bench", "distributed", *arguments])


def test_the_command_prints_and_writes(monkeypatch, found, tmp_path):
    asked = []
    monkeypatch.setattr(distributed, "run", lambda sizes, **options: asked.append((sizes, options)) or found)
    result = command("--ranks", "2,3", "--toy", "--rounds", "4", "--results", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert asked == [([2, 3], {"toy": True, "rounds": 4})]
    assert (tmp_path / "toy-distributed-cpu.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "0"], "--ranks is '0'; expected a positive integer"),
        (["--ranks", "2,some"], "--ranks is 'some'"),
        (["--ranks", "17"], "mla-edu: --ranks is 17; expected an integer from 1 to 16"),
        (["--toy", "--ranks", "2,5"], "mla-edu: --ranks is 5; expected an integer from 1 to 4"),
        (["--rounds", "0"], "mla-edu: --rounds is 0; expected a positive integer"),
        (["--results", "/no/such"], "--results is /no/such; expected a folder that exists"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(monkeypatch, arguments, message):
    monkeypatch.setattr(distributed, "_launch", lambda *arguments: pytest.fail("it runs"))
    result = command(*arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_a_rank_that_fails_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(distributed, "TORCHRUN", [*distributed.TORCHRUN, "--no-such-option"])
    result = command("--toy", "--ranks", "2")
    *waits, last = result.stderr.splitlines()
    assert result.exit_code == 2 and all(line.startswith("measuring on ") for line in waits)
    assert "2 ranks failed: " in last and "--no-such-option" in last


def ranks_in(folder):
    """The processes whose results go to a folder."""
    named = (each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"]))
    return [line for line in named if any(word.startswith(f"{folder}{os.sep}") for word in line)]


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    assert true()


@pytest.mark.long
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_no_rank_outlives_the_run_that_is_interrupted(tmp_path, sent):
    """By Ctrl-C, or by a scheduler, which may tell the command alone."""
    command = [sys.executable, "-m", "mla_edu.cli", "bench", "distributed", "--ranks", "2", "--toy"]
    run = subprocess.Popen(
        [*command, "--rounds", str(10**9)], env=os.environ | {"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE
    )
    wait_until(lambda: sum("mla_edu.bench.distributed" in line for line in ranks_in(tmp_path)) >= 2)
    time.sleep(2)  # the ranks have met
    run.send_signal(sent)
    assert run.communicate(timeout=60)[1].endswith(b"mla-edu: interrupted\n")
    assert run.returncode == 130
    assert ranks_in(tmp_path) == []
