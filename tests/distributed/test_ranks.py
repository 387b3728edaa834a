"""Several processes do what one does, to the last bits of float64, and send what the formulas say; or they say why not.

One launch for each number of ranks runs all cases of ``worker.py``.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import worker
from mla_edu.distributed import connect

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "common")]),
    "OMP_NUM_THREADS": "1",
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
SIZES = [
    pytest.param(1, marks=pytest.mark.long),
    pytest.param(2, marks=pytest.mark.long),
    3,
    pytest.param(4, marks=pytest.mark.long),
]


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size} ranks")
def found(request, tmp_path_factory):
    """What every rank found in every case."""
    path = tmp_path_factory.mktemp("ranks") / "found.json"
    command = [*TORCHRUN, "--nproc-per-node", str(request.param), str(HERE / "worker.py"), str(path)]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return request.param, json.loads(path.read_text())


@pytest.mark.parametrize("name", [case.__name__ for case in worker.CASES])
def test_all_ranks_do_what_one_process_does(found, name):
    size, cases = found
    assert len(cases[name]) == size
    for rank, each in enumerate(cases[name]):
        assert not each["failed"], f"rank {rank}: {each['failed']}"
        assert each["error"] < 1e-12, f"rank {rank}"
        for counted, expected in each["bytes"]:
            assert counted == expected, f"rank {rank}"


def test_the_cases_compare_something(found):
    size, cases = found
    exact = {"padded_sums", "serve_sampled", "disagreements", "context_bf16"}
    for name in cases.keys() - exact if size > 1 else ():
        assert max(each["error"] for each in cases[name]) > 0, f"{name} compares nothing, or a process with itself"
    passed = [counted for each in cases["context_decode"] for counted, _ in each["bytes"]]
    kinds = {"queries", "lse", "outputs", "attention"} if size > 1 else set()
    assert len(passed) == size * 16 and all(each.keys() == kinds for each in passed)


# Ranks that are lost


def start(rank, size, port, *arguments):
    """One rank, as torchrun starts it."""
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(HERE / "loser.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT | own | meet, stderr=subprocess.PIPE, text=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ids_of(path, size):
    """The processes of all ranks, once they work together."""
    names = [Path(f"{path}.{rank}") for rank in range(size)]
    end = time.monotonic() + 60
    while not all(name.exists() and name.read_text() for name in names):
        assert time.monotonic() < end, "the ranks did not meet"
        time.sleep(0.05)
    return [int(name.read_text()) for name in names]


@pytest.mark.parametrize(
    ("how", "timeout", "size"),
    [
        pytest.param(signal.SIGKILL, 100, 3, id="killed"),
        pytest.param(signal.SIGSTOP, 6, 2, id="stopped", marks=pytest.mark.long),
    ],
)
def test_the_others_end_when_a_rank_is_lost(tmp_path, how, timeout, size):
    """A killed process is noticed at once, one that hangs after the set time."""
    port = free_port()
    ranks = [start(rank, size, port, tmp_path / "ids", timeout, size) for rank in range(size)]
    try:
        lost = ids_of(tmp_path / "ids", size)[-1]
        os.kill(lost, how)
        for process in ranks[:-1]:
            _, errors = process.communicate(timeout=60)
            assert process.returncode > 0
            told = [line for line in errors.splitlines() if "RankLost:" in line]
            assert len(told) == 1 and f"or did not come within {timeout} s" in told[0], errors
    finally:
        for process in ranks:
            process.kill()
            process.wait()


@pytest.mark.long
def test_torchrun_ends_all_when_one_is_killed(tmp_path):
    command = [*TORCHRUN, "--nproc-per-node", "2", str(HERE / "loser.py"), str(tmp_path / "ids"), "100", "2"]
    launched = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        ids = ids_of(tmp_path / "ids", 2)
        os.kill(ids[1], signal.SIGKILL)
        _, errors = launched.communicate(timeout=60)
    finally:
        launched.kill()
        launched.wait()
    assert launched.returncode > 0 and "SIGKILL" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(ids[0], 0)


def test_a_rank_that_never_comes_is_not_waited_for_longer(tmp_path):
    alone = start(0, 2, free_port(), tmp_path / "ids", 2, 1)
    try:
        _, errors = alone.communicate(timeout=60)
    finally:
        alone.kill()
        alone.wait()
    assert alone.returncode == 1
    assert "RankLost: rank 0 of 2: not all ranks have come within 2 s" in errors


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout is 0; expected a positive number of seconds"),
        ({"timeout": True}, "timeout is True"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"timeout": "5"}, "timeout is '5'"),
        ({"network": "mpi"}, "network is 'mpi'; expected 'gloo' or 'nccl'"),
        ({}, "RANK is not in the environment; expected torchrun to start this process"),
    ],
)
def test_a_process_that_cannot_connect_says_why(monkeypatch, options, message):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=message), connect(**options):
        pytest.fail("it has connected")


def test_gpus_that_are_not_there_are_refused(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="network is 'nccl'; expected a GPU for each rank"), connect(network="nccl"):
        pytest.fail("it has connected")


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "x"), ("RANK", "2"), ("RANK", "-1"), ("WORLD_SIZE", "0"), ("MASTER_PORT", "http")]
)
def test_what_torchrun_never_writes_is_refused_before_anybody_is_met(monkeypatch, name, value):
    there = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", name: value}
    for each, text in there.items():
        monkeypatch.setenv(each, text)
    with pytest.raises(ValueError, match=f"{name} in the environment is '{value}'; expected"), connect(timeout=1):
        pass
