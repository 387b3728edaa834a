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
    for name, small in (("ROUNDS", 1), ("FLUSHED_BYTES", 2**10), ("MATMUL_SIZE", 64)):
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


def test_steps_take_turns_on_cold_caches_and_the_first_round_does_not_count(decode_step, monkeypatch):
    happened, durations = [], iter([9, 9, 1, 2])
    fill = torch.Tensor.fill_
    monkeypatch.setattr(torch.Tensor, "fill_", lambda flush, value: happened.append("flush") or fill(flush, value))
    monkeypatch.setattr(decode_step, "seconds", lambda step: step() or next(durations))
    steps = {name: lambda name=name: happened.append(name) for name in ("one", "two")}
    assert decode_step.median_times(steps) == {"one": 1, "two": 2}
    assert happened == ["flush", "one", "flush", "two"] * 2


@torch.inference_mode()
def test_limit_reads_cache_and_weights_or_multiplies(decode_step, monkeypatch):
    times = dict.fromkeys(("absorbed", "expanded", "transformers", "scores", "softmax", "weighted_sum"), 1.0)
    weights = 2048 * 16 * 192 + 2048 * 576 + 512 + 512 * 16 * 256 + 16 * 128 * 2048
    for copy, matmul in ((1.0, 1e-9), (1e-9, 1.0)):
        monkeypatch.setattr(
            decode_step, "median_times", lambda steps, c=copy, m=matmul: times | {"copy": c, "matmul": m}
        )
        row = decode_step.measure(100, torch.float32)
        if row["pace_set_by"] == "memory":
            cache = 101 * 576 * 4
            assert row["limit_ms"] == pytest.approx(1e3 * (cache + 4 * weights) / (2 * cache))
            assert (row["cache_bytes"], row["weight_bytes"]) == (cache, 4 * weights)
        else:
            macs = weights + 16 * 101 * 1088
            assert row["limit_ms"] == pytest.approx(1e3 * macs / 64**3)
        assert row["pace_set_by"] == ("memory" if copy == 1 else "arithmetic")


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
