"""What a run cannot begin or go on with is one error, before a file is written or a weight is touched."""

import json
import os
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mla_edu.files import parse_yaml
from mla_edu.models import ModelConfig
from mla_edu.train.run import Run, train_into
from mla_edu.train.settings import RunConfig
from mla_edu.train.state import check_folder, read_facts

MODEL = ModelConfig(
    vocab_size=256,
    hidden_size=16,
    intermediate_size=24,
    layers=["gqa"],
    gqa={"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"{number} green bottles " * 20)
    return folder


@pytest.fixture
def config(text):
    fixed = {"num_steps": 3, "batch_size": 2, "seq_len": 8, "text": [str(text)], "threads": 1}
    return lambda **train: RunConfig(model=MODEL, train=fixed | train)


def train(folder, config, resume=False):
    return list(train_into(folder, config, resume=resume, device="cpu", note=lambda line: None))[-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = {"num_steps": 3, "batch_size": 2, "seq_len": 8, "text": [str(text)], "threads": 1}
    train(folder, RunConfig(model=MODEL, train=settings))
    path = folder / "state.safetensors"
    return path.read_bytes(), load_file(path), read_facts(path)


HEAD = "model.lm_head.weight"


def spoil(tensors, facts, change):
    tensors, facts = dict(tensors), dict(facts)
    change(tensors, facts)
    return tensors, facts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, f: t.pop(HEAD), rf"{HEAD} is missing; expected shape \[256, 16\]"),
        (lambda t, f: t.update({"model.more": torch.zeros(2)}), r"model.more has shape \[2\]; expected no such tensor"),
        (lambda t, f: t.update({HEAD: torch.zeros(2)}), rf"{HEAD} has shape \[2\]; expected shape \[256, 16\]"),
        (lambda t, f: t.pop("adamw.lm_head.weight.exp_avg"), "adamw.lm_head.weight.exp_avg is missing"),
        (lambda t, f: t.pop("muon.layers.0.mlp.down_proj.weight.average"), "down_proj.weight.average is missing"),
        (lambda t, f: t.update({"muon.more.average": torch.zeros(1)}), "muon.more.average has shape .*; expected no"),
        (lambda t, f: f.pop("threads"), "is not the checkpoint of a run: 'threads'"),
        (lambda t, f: f.update(step="3"), "is not the checkpoint of a run: step is '3'; expected of type int"),
        (lambda t, f: f.update(step=-1), "step is -1; expected an integer of at least 0"),
        (lambda t, f: f.update(threads=0), "threads is 0; expected a positive integer"),
        (lambda t, f: f.update(config=None), "config is None; expected of type dict"),
    ],
)
def test_a_damaged_checkpoint_is_one_error(tmp_path, config, finished, change, message):
    tensors, facts = spoil(*finished[1:], change)
    save_file(tensors, tmp_path / "state.safetensors", {"facts": json.dumps(facts)})
    with pytest.raises(ValueError, match=message):
        train(tmp_path, config(num_steps=5), resume=True)
    assert {path.name for path in tmp_path.iterdir()} <= {"state.safetensors", ".lock"}


@pytest.mark.parametrize("content", [b"", b"junk" * 9, "half", "[]", "{"])
def test_what_is_no_checkpoint_is_one_error(tmp_path, config, finished, content):
    path = tmp_path / "state.safetensors"
    if content == "half":
        path.write_bytes(finished[0][:-9])
    elif isinstance(content, str):
        save_file(finished[1], path, {"facts": content})
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="state.safetensors is not the checkpoint of a run: "):
        train(tmp_path, config(), resume=True)


def test_text_for_validation_has_to_fill_a_window(tmp_path, config):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text("a")
    with pytest.raises(ValueError, match="the text for validation has . bytes; expected more than seq_len, 8"):
        train(tmp_path / "run", config(text=[str(folder)]))
    assert not (tmp_path / "run").exists()


def test_an_empty_name_is_no_folder_of_text(config):
    with pytest.raises(FileNotFoundError, match="text: '': no such file or folder"):
        Run(config(text=[""]), "cpu")


@pytest.mark.parametrize("size", [10**12, 2**63 - 1])
def test_sizes_without_memory_are_one_error_before_anything_is_written(tmp_path, config, size):
    settings = config()
    huge = RunConfig(model=MODEL.model_dump() | {"intermediate_size": size}, train=settings.train)
    with pytest.raises(ValueError, match="model has sizes for which there is no memory: "):
        train(tmp_path / "run", huge)
    with pytest.raises(ValueError, match=f"batch_size is {size} and seq_len 8; expected a step for which there is"):
        train(tmp_path / "run", config(batch_size=size))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("train_values", "message"),
    [
        ({"muon_rate": float("nan")}, "muon_rate is nan; expected a finite number"),
        ({"adam_rate": float("inf")}, "adam_rate is inf; expected a finite number"),
        ({"num_steps": 0}, "num_steps is 0; expected greater than 0"),
        ({"threads": 10**6}, "threads is 1000000; expected less than or equal to 256"),
        ({"seed": 10**18}, "seed is 1000.*; expected less than 4294967296"),
        ({"text": "a"}, "text is 'a'; expected a list"),
    ],
)
def test_settings_out_of_range(config, train_values, message):
    with pytest.raises(ValueError, match=message):
        config(**train_values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": []}, r"layers is \[\]; expected at least one layer"),
        ({"layers": "gqa"}, "layers is 'gqa'; expected a list"),
        ({"layers": ["mha"]}, "layers.0 is 'mha'; expected 'gqa', 'mla' or 'mamba2'$"),
        ({"gqa": "wide"}, "gqa is 'wide'; expected a mapping of names to values"),
    ],
)
def test_layers_that_are_none(values, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**MODEL.model_dump() | values)


def test_a_name_given_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("model: {vocab_size: 1}\ntrain: {}\nmodel: {}\n")
    with pytest.raises(ValueError, match="twice.yaml is not YAML: model is given twice"):
        RunConfig.from_yaml(path)
    assert parse_yaml("a: {b: 1}\nb: [{b: 1}, {b: 2}]") == {"a": {"b": 1}, "b": [{"b": 1}, {"b": 2}]}


@pytest.mark.parametrize("name", ["a-file", "a-file/below"])
def test_a_file_is_no_folder(tmp_path, config, name):
    (tmp_path / "a-file").write_text("kept")
    with pytest.raises(NotADirectoryError, match="--out: .*a-file is a file; expected a folder"):
        train(tmp_path / name, config())
    assert (tmp_path / "a-file").read_text() == "kept"


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError, match="--out: .* cannot be written to; expected a folder that can"):
        check_folder(tmp_path / "new" / "run")


def weights_of(run):
    return torch.cat([weight.flatten() for weight in run.model.parameters()])


def check_that_it_goes_on(tmp_path, config):
    run, whole = train(tmp_path / "run", config(), resume=True), train(tmp_path / "whole", config())
    assert torch.equal(weights_of(run), weights_of(whole))


def test_ctrl_c_before_the_first_step_leaves_a_run_to_go_on_with(tmp_path, config):
    stages = train_into(tmp_path / "run", config(), resume=False, device="cpu", note=lambda line: None)
    next(stages)
    os.kill(os.getpid(), signal.SIGINT)
    assert list(stages)[-1].step == 0
    check_that_it_goes_on(tmp_path, config)


def test_ctrl_c_in_the_first_step_finishes_it(tmp_path, config, monkeypatch):
    advance = Run.advance

    def interrupted(run):
        os.kill(os.getpid(), signal.SIGINT)
        return advance(run)

    monkeypatch.setattr(Run, "advance", interrupted)
    assert train(tmp_path / "run", config()).step == 1
    monkeypatch.undo()
    check_that_it_goes_on(tmp_path, config)


@pytest.mark.parametrize("name", ["log.jsonl", "config.json", "state.partial"])
def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path, config, finished, name):
    (tmp_path / "state.safetensors").write_bytes(finished[0])
    os.mkfifo(tmp_path / name)
    with pytest.raises(FileExistsError, match=f"--out: .*{name} is no regular file; expected a folder of its own"):
        train(tmp_path, config(num_steps=5), resume=True)


def test_a_name_that_no_folder_can_have_is_one_error(tmp_path, config):
    with pytest.raises(OSError, match="--out: .* cannot be made: File name too long; expected a folder that can"):
        train(tmp_path / ("x" * 5000), config())


@pytest.mark.parametrize(("name", "remedy"), [("safetensors", "'mla-edu.hf.'"), ("filelock", "filelock")])
def test_what_is_not_installed_is_told_before_a_step(tmp_path, config, monkeypatch, name, remedy):
    """Not when the first checkpoint is to be written, minutes later."""
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(Run, "rehearse", lambda run: pytest.fail("computed something"))
    with pytest.raises(ImportError, match=f"training needs {name}: pip install {remedy}"):
        train(tmp_path / "run", config())
    assert not (tmp_path / "run").exists()
