"""``mla-edu train``: what it prints, what Ctrl-C leaves, and what it refuses before it writes."""

import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from typer.testing import CliRunner

import mla_edu.cli.show as shows
import mla_edu.train.run as run_module
from mla_edu.cli import app
from mla_edu.train.state import locked, read_facts
from mla_edu.train.threads import thread_count

ROOT = Path(__file__).resolve().parents[1]
MODEL = {
    "vocab_size": 256,
    "hidden_size": 16,
    "intermediate_size": 24,
    "layers": ["gqa"],
    "gqa": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
}


@pytest.fixture
def file(tmp_path):
    """A YAML file of a run of twenty steps."""
    text = tmp_path / "text"
    text.mkdir()
    for number in range(20):
        (text / f"{number}.txt").write_text(f"{number} green bottles " * 20)
    settings = {"num_steps": 20, "batch_size": 2, "seq_len": 8, "text": [str(text)], "save_every": 1, "threads": 1}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": MODEL, "train": settings}))
    return path


def train(*arguments):
    return CliRunner(env={"NO_COLOR": "1"}).invoke(app, ["train", *map(str, arguments)])


def test_the_first_step_and_each_tenth_of_them_is_a_line_where_there_is_no_terminal(tmp_path, file):
    result = train(file, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    *lines, last = result.output.splitlines()
    assert [
        re.match(r"step (\d+) of 20: [\d.]+ bits per byte, [\d,]+ tokens a second$", line)[1] for line in lines
    ] == [str(step) for step in (1, *range(2, 21, 2))]
    assert last.startswith(f"{tmp_path / 'run' / 'model-20'} (llama): ")


def test_the_number_of_threads_is_told(tmp_path, file, monkeypatch):
    file.write_text(file.read_text().replace("  threads: 1\n", ""))
    monkeypatch.setattr(run_module, "time_threads", lambda *_: {2: 0.25, 1: 0.01})
    with thread_count(2):
        result = train(file, "--out", tmp_path / "run", "--steps", 1)
    assert result.output.splitlines()[0] == "threads: 1 (a step takes 10.0 ms with 1, 250 ms with 2)"


def test_what_takes_a_while_before_the_first_step_is_told(tmp_path, file, monkeypatch):
    class Hasty(threading.Timer):
        def start(self):
            self.function()

    monkeypatch.setattr(shows.threading, "Timer", Hasty)
    result = train(file, "--out", tmp_path / "run", "--steps", 1)
    assert result.stderr == "trying a step ...\n" and result.stdout.startswith("step 1 of 1: ")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, file, sent):
    """The real command, stopped by a real signal, a scheduler's too; then the command that it names."""
    out = tmp_path / "a run"
    state = out / "state.safetensors"
    command = [sys.executable, "-m", "mla_edu.cli", "train", file, "--out", out, "--steps", "100000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not state.is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(sent)
    said, complaint = process.communicate()
    complaint = complaint.removeprefix("trying a step ...\n")  # on a slow machine
    assert (process.returncode, complaint) == (0, "saving after this step; Ctrl-C again gives that up\n")
    step = read_facts(state)["step"]
    name, *again = shlex.split(said.splitlines()[-1].partition("to go on: ")[2])
    assert f"stopped after step {step}; to go on: mla-edu train" in said and name == "mla-edu"
    assert again == ["train", str(file), "--out", str(out), "--resume", "--steps", "100000"]
    again[-1] = str(step + 2)
    result = CliRunner().invoke(app, again)
    assert result.exit_code == 0, result.output
    logged = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert logged == list(range(1, step + 3))
    assert (out / f"model-{step + 2}" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "run.yaml holds null; expected a mapping of names to values"),
        (b"- model\n- train\n", "run.yaml holds a list; expected a mapping of names to values"),
        (bytes(range(256)), "run.yaml is not a text in UTF-8; expected a YAML file"),
        (b"model: [\n", "run.yaml is not YAML: "),
        (b"model: !!python/object/apply:os.system [ls]\n", "run.yaml is not YAML: "),
        (b"train: {num_steps: 1}\n", "run.yaml: RunConfig: model: missing"),
    ],
)
def test_a_file_that_is_no_run_is_one_line(tmp_path, file, content, message):
    file.write_bytes(content)
    check_refused(train(file, "--out", tmp_path / "run"), message, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps"),
        (["--steps", "many"], "--steps"),
        (["--steps", str(10**20)], f"mla-edu: --steps is {10**20}; expected less than or equal to"),
        (["--device", "cuda:77"], "--device is 'cuda:77'; expected one that is there"),
        (["--device", ""], "--device is ''; expected one that is there"),
        (["--device", "meta"], "--device is 'meta'; expected one that is there"),
        (["--resume"], "expected a run that has saved"),
    ],
)
def test_bad_options_are_one_line(tmp_path, file, arguments, message):
    check_refused(train(file, "--out", tmp_path / "run", *arguments), message, tmp_path)


def test_a_run_that_another_process_has_begun_is_left_alone(tmp_path, file):
    """Before it has saved, too: nobody is told to delete its folder."""
    out = tmp_path / "run"
    with locked(out):
        (out / "config.json").write_text("{}")
        for option in ([], ["--resume"]):
            result = train(file, "--out", out, *option)
            assert result.exit_code == 2
            assert result.stderr == f"mla-edu: --out: another process trains into {out}; expected a folder of its own\n"
    assert "leave --resume out to start anew" in train(file, "--out", tmp_path / "nowhere", "--resume").stderr
    assert "delete the folder to start anew" in train(file, "--out", out, "--resume").stderr


def test_fewer_steps_than_were_taken_are_one_line(tmp_path, file, monkeypatch):
    out = tmp_path / "run"
    assert train(file, "--out", out, "--steps", 4).exit_code == 0
    kept = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    monkeypatch.setattr(run_module.Run, "rehearse", lambda _: pytest.fail("a step is tried"))
    result = train(file, "--out", out, "--resume", "--steps", 3)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr == "mla-edu: --steps is 3; expected at least the 4 that the run has taken\n"
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == kept


@pytest.mark.parametrize("full", ["state.partial", "model.safetensors"])
def test_a_full_disk_is_one_line(tmp_path, file, monkeypatch, full):
    """Of which safetensors tells in an error of its own."""

    def write(tensors, path, metadata):
        if Path(path).name == full:
            raise SafetensorError("I/O error: No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr("safetensors.torch.save_file", write)
    result = train(file, "--out", tmp_path / "run")
    assert result.exit_code == 2, result.exception
    assert f"{full} cannot be written: I/O error: No space left" in result.stderr and result.stderr.count("\n") == 1


def test_a_folder_or_nothing_is_no_file(tmp_path):
    check_refused(train(tmp_path, "--out", tmp_path / "run"), "is a folder; expected a YAML file", tmp_path)
    missing = tmp_path / "no.yaml"
    check_refused(train(missing, "--out", tmp_path / "run"), "no.yaml: no such file; expected a YAML file", tmp_path)


def check_refused(result, message, tmp_path):
    assert result.exit_code == 2, result.output
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
