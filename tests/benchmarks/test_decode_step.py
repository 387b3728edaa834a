import importlib.util
import json
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "decode_step.py"


@pytest.fixture
def decode_step(monkeypatch):
    spec = importlib.util.spec_from_file_location("decode_step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, small in (("ROUNDS", 1), ("REPEATS", 1), ("MATMUL_SIZE", 64)):
        monkeypatch.setattr(module, name, small)
    return module


@torch.inference_mode()
def test_its_layers_agree_and_the_cache_is_the_same_at_every_step(decode_step):
    row = decode_step.measure(100, torch.float32)
    assert 0 < row["largest_relative_error"] < 1e-4
    assert row["absorbed_speedup"] == pytest.approx(row["transformers_ms"] / row["absorbed_ms"])


@torch.inference_mode()
def test_layers_that_disagree_are_not_timed(decode_step, monkeypatch):
    make_step = decode_step.our_step

    def spoiled(*arguments):
        step = make_step(*arguments)
        return lambda: 1.01 * step()

    monkeypatch.setattr(decode_step, "our_step", spoiled)
    with pytest.raises(RuntimeError, match="the layers disagree"):
        decode_step.measure(100, torch.float32)


def test_parts_are_those_of_an_absorbed_step(decode_step):
    rows = torch.randn(100, 576)
    scores, softmax, weighted_sum = (part() for part in decode_step.part_steps(rows).values())
    torch.testing.assert_close(softmax, (scores * 192**-0.5).softmax(dim=-1))
    torch.testing.assert_close(weighted_sum, softmax @ rows[:, :512])


def test_parts_take_no_longer_than_the_step_that_they_belong_to(decode_step):
    results = json.loads(SCRIPT.with_name("results").joinpath("decode_step_cpu.json").read_text())
    for row in results["steps"]:
        assert sum(row[f"{part}_ms"] for part in ("scores", "softmax", "weighted_sum")) < row["absorbed_ms"]


def test_the_committed_results_say_where_they_were_measured():
    results = json.loads(SCRIPT.with_name("results").joinpath("decode_step_cpu.json").read_text())
    assert {"cpu", "threads"} <= results["hardware"].keys()
    assert {"python", "torch", "transformers"} <= results["versions"].keys()
    assert [row["cached_tokens"] for row in results["steps"]] == 2 * [1024, 4096, 16384]
