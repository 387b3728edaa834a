"""A training run: it learns, it goes on bit for bit where it stopped, and nothing that was saved is lost."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

import mla_edu.train.state as state_module
from mla_edu.models import load_model, save_model
from mla_edu.train.run import Run, train_into
from mla_edu.train.settings import RunConfig, TrainConfig

MODEL = {
    "vocab_size": 256,
    "hidden_size": 24,
    "intermediate_size": 32,
    "layers": ["mla", "mamba2", "gqa"],
    "feed_forward": ["dense", "moe", "moe"],
    "mla": {
        "num_attention_heads": 3,
        "q_lora_rank": None,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 5,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
    },
    "mamba2": {"num_heads": 4, "head_dim": 6, "state_size": 5},
    "gqa": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
    "moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 7, "n_shared_experts": 1},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"the cat {number} sat on the mat; " * 30)
    return folder


@pytest.fixture
def config(text):
    def make(**train):
        fixed = {"num_steps": 20, "batch_size": 3, "seq_len": 16, "text": [str(text)], "warmup_steps": 3}
        return RunConfig(model=MODEL, train=fixed | {"balance_loss": 0.01, "save_every": 7} | train)

    return make


def train(folder, config, resume=False, stop_after=None):
    """Train; interrupted as by Ctrl-C after so many steps of the run."""
    lines = []

    def note(line):
        lines.append(line)
        if line["step"] == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    run = list(train_into(folder, config, resume=resume, device="cpu", note=note))[-1]
    return run, lines


def test_it_learns(tmp_path, config):
    run, lines = train(tmp_path / "run", config(num_steps=60))
    assert lines[0]["bits_per_byte"] > 7
    assert lines[-1]["bits_per_byte"] < 4
    assert run.validation_loss() < 3


def test_a_line_says_what_it_should(tmp_path, config):
    run, lines = train(tmp_path / "run", config(num_steps=2))
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert logged == lines
    line = lines[1]
    assert line["step"] == 2
    assert line["bits_per_byte"] == pytest.approx(line["loss"] / 0.693147, rel=1e-5)
    assert line["learning_rate"] == 0.02 * TrainConfig(num_steps=2, warmup_steps=3).rate(1)
    assert line["cache_bytes_per_token"] == 2 * (8 + 4 + 2 * 8)
    total = sum(weight.numel() for weight in run.model.parameters())
    assert line["active_parameters"] == total - 2 * 2 * 3 * 24 * 7
    assert 1 <= line["expert_load"] <= 2
    assert line["largest_score"] > 0


@pytest.mark.parametrize("stop_after", [10, 14])
def test_ten_steps_and_ten_more_are_twenty_bit_for_bit(tmp_path, config, stop_after):
    whole, lines = train(tmp_path / "whole", config())
    train(tmp_path / "parts", config(), stop_after=stop_after)
    run, rest = train(tmp_path / "parts", config(), resume=True)
    assert [line["step"] for line in rest] == list(range(stop_after + 1, 21))
    assert [line["loss"] for line in rest] == [line["loss"] for line in lines[stop_after:]]
    for (name, weight), same in zip(whole.model.state_dict().items(), run.model.state_dict().values(), strict=True):
        assert torch.equal(weight, same), name
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    assert [json.loads(line)["loss"] for line in logs[0]] == [json.loads(line)["loss"] for line in logs[1]]


@pytest.mark.parametrize("part", ["model", "muon", "adamw"])
def test_each_part_of_a_checkpoint_counts(tmp_path, config, part):
    whole, _ = train(tmp_path / "whole", config())
    train(tmp_path / "parts", config(), stop_after=10)
    path = tmp_path / "parts" / "state.safetensors"
    facts, tensors = state_module.read_facts(path), load_file(path)
    for name in tensors:
        if name.startswith(f"{part}.layers") and tensors[name].ndim:
            tensors[name] = torch.zeros_like(tensors[name])
    from safetensors.torch import save_file

    save_file(tensors, path, {"facts": json.dumps(facts)})
    run, _ = train(tmp_path / "parts", config(), resume=True)
    assert not torch.equal(whole.model.lm_head.weight, run.model.lm_head.weight)


# `mla-edu train`, but it stops and says so when its fourth checkpoint is written and not yet in its place.
STOPS = """
import os, sys
from mla_edu.cli import app
replace, calls = os.replace, []
def stop(*places):
    calls.append(places)
    if len(calls) == 4:
        print("written", flush=True)
        sys.stdin.read()
    replace(*places)
os.replace = stop
app(prog_name="mla-edu")
"""


def test_a_killed_process_loses_nothing_that_was_saved(tmp_path, config):
    """Killed while its fourth checkpoint stands beside the third, and then gone on with."""
    settings, state = config(num_steps=8, save_every=1), tmp_path / "run" / "state.safetensors"
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    with subprocess.Popen(
        [sys.executable, "-c", STOPS, "train", file, "--out", tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert "written\n" in iter(process.stdout.readline, "")
        process.kill()
    assert state.with_suffix(".partial").is_file()
    assert state_module.read_facts(state)["step"] == 3
    run, _ = train(tmp_path / "run", settings, resume=True)
    whole, _ = train(tmp_path / "whole", settings)
    assert torch.equal(run.model.lm_head.weight, whole.model.lm_head.weight)


HOLD = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path, config):
    """No time is waited for: the first says that it holds the folder, and holds it until it is killed."""
    train(tmp_path / "run", config(num_steps=2))
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    lock = tmp_path / "run" / state_module.LOCK
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(
            FileExistsError, match="--out: another process trains into .*; expected a folder of its own"
        ):
            train(tmp_path / "run", config(num_steps=3), resume=True)
        assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == kept
        first.kill()
    run, _ = train(tmp_path / "run", config(num_steps=3), resume=True)
    assert run.step == 3


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, config, monkeypatch):
    train(tmp_path / "run", config(), stop_after=10)
    state = tmp_path / "run" / "state.safetensors"
    kept = state.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path / "run", config(), resume=True)
    assert state.read_bytes() == kept


def test_a_trained_model_is_saved_and_loaded(tmp_path, config):
    run, _ = train(tmp_path / "run", config(num_steps=3))
    assert save_model(run.model, tmp_path / "out") == "mla_edu"
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "out")(tokens), run.model(tokens))


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({}, {}, FileExistsError, "--out: .* holds something; expected an empty folder, or --resume"),
        (
            {"batch_size": 4},
            {"resume": True},
            ValueError,
            "another configuration: train.batch_size is 4; expected 3",
        ),
        ({"text": ["other"]}, {"resume": True}, FileNotFoundError, "text: 'other': no such file or folder"),
    ],
)
def test_a_folder_that_holds_another_run_is_left_alone(tmp_path, config, change, options, error, message):
    train(tmp_path / "run", config(num_steps=2))
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(error, match=message):
        train(tmp_path / "run", config(num_steps=2, **change), **options)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == kept


def test_there_has_to_be_something_to_go_on_with(tmp_path, config):
    with pytest.raises(FileNotFoundError, match=r"--resume: .*state.safetensors is not there"):
        train(tmp_path / "run", config(), resume=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "learn", "message"),
    [
        ({"vocab_size": 100}, {}, "model.vocab_size is 100; expected at least 256"),
        ({}, {"seq_len": 10**6}, "expected more than seq_len, 1000000"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_a_folder_is_made(tmp_path, config, model, learn, message):
    settings = config(**learn)
    settings = RunConfig(model={**MODEL, **model}, train=settings.train)
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


def test_the_rate_rises_stays_and_falls():
    train = TrainConfig(num_steps=100, warmup_steps=4, decay_share=0.5)
    rates = [train.rate(step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert set(rates[4:51]) == {1}
    assert rates[75] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.03


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path, config):
    run = Run(config())
    with torch.no_grad():
        run.model.norm.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="step 0: the gradient is nan; expected a finite one"):
        run.advance()


def test_products_in_bf16_learn_as_those_in_float32(config):
    """What a GPU does, on the CPU, which has the same autocast."""
    mixed, plain = Run(config(num_steps=30), "cpu"), Run(config(num_steps=30), "cpu")
    assert not mixed.mixed
    mixed.mixed = True
    lines = [(mixed.advance(), plain.advance()) for _ in range(30)]
    assert 0 < abs(lines[0][0]["loss"] - lines[0][1]["loss"]) < 1e-2
    for line, other in lines:
        assert line["loss"] == pytest.approx(other["loss"], rel=0.05)
    assert lines[-1][0]["loss"] < lines[0][0]["loss"] - 2
    assert {weight.dtype for weight in mixed.model.parameters()} == {torch.float32}
    assert all(layer.routing.scores.dtype == torch.float32 for layer in mixed.experts)
