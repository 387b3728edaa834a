"""Whatever ``mla-edu`` is given: an answer, or one line that says what is wrong, and exit code 2."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mla_edu.cli import app
from mla_edu.cli import show as shows
from mla_edu.registry import get_model

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BYTES = 2 * 2 * 2 * 16 * 2  # per token: layers, keys and values, heads, width, 16 bits
FILES = {
    "good.json": LLAMA,
    "null.json": "null",
    "list.json": "[]",
    "word.json": '"x"',
    "empty.json": "",
    "cut.json": '{"model_type": "llama", ',
    "deep.json": "[" * 200_000,
    "deep-object.json": '{"a":' * 200_000,
    "twice.json": '{"model_type": "llama", "num_hidden_layers": 2, "num_hidden_layers": 3}',
    "twice-within.json": '{"text_config": {"model_type": "llama", "head_dim": 8, "head_dim": 16}}',
    "digits.json": '{"model_type": "llama", "head_dim": %s}' % ("9" * 5000),
    "nan.json": '{"model_type": "llama", "hidden_size": NaN}',
    "text-list.json": LLAMA | {"text_config": []},
    "text-word.json": LLAMA | {"text_config": "x"},
    "text-empty.json": {"text_config": {}},
    "type-null.json": LLAMA | {"model_type": None},
    "type-list.json": LLAMA | {"model_type": ["llama"]},
    "layers-huge.json": LLAMA | {"num_hidden_layers": 10**9},
    "layers-huger.json": LLAMA | {"num_hidden_layers": 10**30},
    "layers-true.json": LLAMA | {"num_hidden_layers": True},
    "layers-word.json": LLAMA | {"num_hidden_layers": "2"},
    "layers-half.json": LLAMA | {"num_hidden_layers": 1.5},
    "layers-null.json": LLAMA | {"num_hidden_layers": None},
    "heads-negative.json": LLAMA | {"num_key_value_heads": -2},
    "heads-list.json": LLAMA | {"num_key_value_heads": [2]},
    "width-huge.json": LLAMA | {"head_dim": 10**400},
    "types-objects.json": LLAMA | {"layer_types": [{}, {}]},
    "types-word.json": LLAMA | {"layer_types": "full_attention"},
    "types-few.json": LLAMA | {"layer_types": ["full_attention"]},
    "a.gguf": b"GGUF\3\0\0\0",
    "latin.json": b'{"model_type": "\xff\xfe"}',
    "utf-16-bare.yaml": "a: 1".encode("utf-16-be"),
    "deep.yaml": "[" * 200_000,
    "alias.yaml": "a: &a [1]\nb: *a",
    "list.yaml": "[]",
    "empty.yaml": "",
    "prompts.txt": "a\n",
    "empty.txt": "\n",
    "wide.jsonl": '{"prompt": %s}' % ("[" * 100_000),
    "silent.log": "nothing\n",
}
HUGE, LONG = "9" * 400, "x" * 5000


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A folder with files of every kind, which the calls stand in."""
    path, before = tmp_path_factory.mktemp("files"), os.getcwd()
    for name, content in FILES.items():
        data = json.dumps(content) if isinstance(content, dict) else content
        (path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    for name in ("model.safetensors", "sparse.json", "sparse.yaml", "sparse.txt", "sparse.log"):
        with (path / name).open("wb") as file:
            file.truncate(3 * 10**10)  # takes no room on the disk
    for name in ("pipe", "pipe.json", "pipe.log"):
        os.mkfifo(path / name)
    (path / "loop.json").symlink_to("loop.json")
    for name in ("deepseek-v3", "folder", "folder.json"):
        (path / name).mkdir()
    os.chdir(path)
    yield path
    os.chdir(before)


def run(*arguments, stdin=None):
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, list(arguments), input=stdin)


def refused(result, message=""):
    assert result.exit_code == 2, result.exception
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("mla-edu: ") and len(line) < 700 and message in line


NO_MODELS = [name for name in FILES if name.endswith((".json", ".gguf")) and name != "good.json"]
BAD = [
    *(["cache", name] for name in NO_MODELS),
    *(["cache", name] for name in ("sparse.json", "model.safetensors", "pipe", "pipe.json", "loop.json", "folder")),
    *(
        ["cache", name]
        for name in ("folder.json", "/dev/null", "/dev/zero", ".", "..", "/", "", " ", "~", "\n", "a\0b")
    ),
    *(["cache", name] for name in (LONG, f"{LONG}.json", f"a/{LONG}", "nowhere/", "./deepseek-v3", "C:\\config.json")),
    *(["cache", name] for name in ("\x1b[31m", "\udcff", "deepseek v3", "https://", "https://example.com/x/y")),
    *(["cache", name] for name in ("https://huggingface.co", "https://huggingface.co/x", "file:///etc/passwd", "a/b")),
    *(["cache", name] for name in ("../../etc/passwd", "a//b", "..//..", "models--a--b", "*", "%s", "{}")),
    *(["cache", "deepseek-v3", "--tokens", text] for text in (HUGE, "1e9", "-1", "0", "", "٣", "1_000", "k")),
    *(["cache", "deepseek-v3", "--batch", text] for text in (HUGE, "0.5", "nan")),
    *(["cache", "deepseek-v3", "--gpu", text] for text in ("", LONG, "h20", "0")),
    *(["cache", "deepseek-v3", "--dtype", text] for text in ("int4", "", "BF16 ", LONG)),
    *(["cache", "deepseek-v3", "--weights-dtype", text] for text in ("fp8_mla", "", "bf-16")),
    *(["cache", "deepseek-v3", option, text] for option in ("--gpus", "--tp", "--cp") for text in (HUGE, "0", "-8")),
    *(["cache", "good.json", "--parameters", text] for text in ("", "b", "8x", "-8b", "0", "1.5", "nan", HUGE, "1e9")),
    ["cache", "good.json", "--parameters", "8b"],
    ["cache", "deepseek-v3", "--parameters", "8b", "--weights-dtype", "bf16"],
    *(["doctor", name, "--tokens", "1k"] for name in ("", "pipe", "sparse.json", "nope")),
    *(["doctor", "deepseek-v3", "--tokens", "1k", "--log", name] for name in ("pipe.log", "sparse.log", ".", "x")),
    *(["doctor", "deepseek-v3", "--tokens", "1k", "--log", name] for name in ("silent.log", "a.gguf", "/dev/zero")),
    *(["doctor", "deepseek-v3", "--tokens", "1k", "--observed", text] for text in ("", "7", f"{HUGE} GB", "0 B")),
    *(["doctor", "deepseek-v3", "--tokens", "1k", "--tolerance", text] for text in ("nan", "inf", "-1", "0")),
    ["doctor", "deepseek-v3"],
    *(
        ["train", name, "--out", "run"]
        for name in ("deep.yaml", "alias.yaml", "sparse.yaml", "list.yaml", "empty.yaml")
    ),
    *(["train", name, "--out", "run"] for name in ("pipe", ".", "nowhere.yaml", "a.gguf", "utf-16-bare.yaml", LONG)),
    *(["generate", name, "--prompt", "a"] for name in ("nowhere", "folder", "good.json", "pipe", LONG)),
    *(["generate", ".", "--prompts", name] for name in ("pipe", "sparse.txt", "empty.txt", "wide.jsonl", ".", "x")),
    *(["generate", ".", "--prompt", "a", option, "nan"] for option in ("--temperature", "--top-p", "--seed")),
    *(["kernels", option, text] for option in ("--heads", "--s-q", "--page-size") for text in ("999999m", "0", HUGE)),
    *(["kernels", arch] for arch in ("", "sm_70", "sm_90a", LONG)),
    *(["bench", "kernel", "--toy", "--seconds", text] for text in ("-1", "nan", "inf", "x")),
    *(["bench", "layer", "--toy", "--seconds", text] for text in ("-1", "nan", "inf")),
    *(["bench", "kernel", "--toy", text] for text in ("heads=0", "heads", "=", "dtype=int4", "kernels=x", "x=1")),
    *(["bench", name, "--toy", "--results", "nowhere"] for name in ("kernel", "layer", "serving", "distributed")),
    *(["bench", name, "--toy", "--rounds", text] for name in ("serving", "distributed") for text in ("0", "-1", "x")),
    *(["bench", "distributed", "--toy", "--ranks", text] for text in ("0", "", "2,", "1000000")),
    *(["bench", "model", name] for name in ("pipe", "sparse.yaml", "deep.yaml", "nowhere")),
    *(["bench", "carry", name] for name in ("pipe", "sparse.txt", "a.gguf", ".", "nowhere")),
    ["bench", "latent-width", "--results", "nowhere"],
    ["bench", "latent-width", "--results", ".", "--seeds", "0"],
]


@pytest.mark.parametrize("arguments", BAD, ids=lambda arguments: ascii(" ".join(arguments))[1:60])
def test_bad_input_is_one_line_and_never_a_traceback(arguments):
    refused(run(*arguments))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_config_json_as_windows_writes_it_is_read(folder, encoding):
    (folder / "windows.json").write_text(json.dumps(LLAMA), encoding=encoding)
    (row,) = json.loads(run("cache", "windows.json", "--json").stdout)["models"]
    assert row["bytes_per_token"] == BYTES


def test_one_bad_model_of_several_takes_no_answer_from_the_others():
    result = run("cache", "deepseek-v3", "deep.json", "good.json", "nope", "text-list.json", "--json")
    assert result.exit_code == 2
    answer = json.loads(result.stdout)
    assert [row["name"] for row in answer["models"]] == ["deepseek-v3", "good.json"]
    assert list(answer["refused"]) == ["deep.json", "nope", "text-list.json"]
    lines = result.stderr.splitlines()
    assert len(lines) == 3 and all(line.startswith("mla-edu: ") for line in lines)
    assert "deep.json" in lines[0] and "nope" in lines[1] and "text-list.json" in lines[2]
    shown = run("cache", "deepseek-v3", "layers-null.json")
    assert shown.exit_code == 2 and "70.3 kB" in shown.stdout
    assert shown.stderr.startswith("mla-edu: layers-null.json: num_hidden_layers is None; expected")


def test_a_name_of_the_registry_is_not_hidden_by_a_folder(folder):
    (row,) = json.loads(run("cache", "deepseek-v3", "--json").stdout)["models"]
    assert row["bytes_per_token"] == 70_272
    assert "deepseek-v3/config.json: no such file" in run("cache", "./deepseek-v3").stderr
    (folder / "mine").mkdir()
    (folder / "mine" / "config.json").write_text(json.dumps(LLAMA))
    for name in ("mine", "./mine", "mine/"):  # what the registry does not know may be a folder
        assert json.loads(run("cache", name, "--json").stdout)["models"][0]["bytes_per_token"] == BYTES


def test_a_config_json_may_come_from_stdin():
    (row,) = json.loads(run("cache", "-", "--json", stdin=json.dumps(LLAMA)).stdout)["models"]
    assert (row["name"], row["bytes_per_token"]) == ("stdin", BYTES)
    refused(run("cache", "-", stdin=""), "stdin is empty; expected a JSON object")
    refused(run("cache", "-", stdin=b"GGUF\0"), "stdin is not a text in UTF-8")
    refused(run("cache", "-", stdin=b" " * (2**26 + 1)), "stdin has more than 67,108,864 bytes")


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/deepseek-ai/DeepSeek-V3",
        "http://hf.co/deepseek-ai/deepseek-v3/",
        "https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json",
        "https://huggingface.co/deepseek-ai/DeepSeek-V3?library=transformers",
        "deepseek-ai/DeepSeek-V3",
    ],
)
def test_an_address_on_hugging_face_names_a_repository(address):
    (row,) = json.loads(run("cache", address, "--json").stdout)["models"]
    assert row["name"] == "deepseek-v3" and get_model("deepseek-v3").hf_id == "deepseek-ai/DeepSeek-V3"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """``hub(repository, commit, config)`` puts a file where ``huggingface_hub`` would."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def put(repository, commit, config, root=tmp_path / ".cache" / "huggingface" / "hub", main=True):
        place = root / f"models--{repository.replace('/', '--')}"
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "config.json").write_text(json.dumps(config))
        if main:
            (place / "refs").mkdir(exist_ok=True)
            (place / "refs" / "main").write_text(commit)

    return put


def test_what_was_downloaded_is_found_by_its_repository_and_nothing_is_fetched(hub, tmp_path, monkeypatch):
    refused(run("cache", "own/model"), f"not in {tmp_path}/.cache/huggingface/hub either, and nothing is fetched")
    hub("own/model", "a" * 40, LLAMA | {"num_hidden_layers": 4}, main=False)
    for name in ("own/model", "https://huggingface.co/own/model"):
        (row,) = json.loads(run("cache", name, "--json").stdout)["models"]
        assert (row["name"], row["bytes_per_token"]) == ("own/model", 2 * BYTES)
    hub("own/model", "b" * 40, LLAMA, main=False)
    refused(run("cache", "own/model"), "has 2 revisions; expected a path to one of its snapshots")
    hub("own/model", "c" * 40, LLAMA | {"num_hidden_layers": 6})
    assert json.loads(run("cache", "own/model", "--json").stdout)["models"][0]["bytes_per_token"] == 3 * BYTES
    places = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}
    for layers, (variable, below) in enumerate(reversed(places.items()), 7):
        root = tmp_path / variable
        hub("own/model", "d" * 40, LLAMA | {"num_hidden_layers": layers}, root=root / below)
        monkeypatch.setenv(variable, str(root))
        answer = json.loads(run("cache", "own/model", "--json").stdout)
        assert answer["models"][0]["bytes_per_token"] == layers * BYTES // 2


@pytest.mark.parametrize(
    ("text", "number"), [("8b", 8 * 10**9), ("1.7B", 17 * 10**8), ("270m", 27 * 10**7), ("9876543", 9_876_543)]
)
def test_a_number_of_parameters_makes_room_on_a_gpu_known(text, number):
    command = ("cache", "good.json", "--gpu", "h200", "--weights-dtype", "bf16", "--parameters", text, "--json")
    (row,) = json.loads(run(*command).stdout)["models"]
    assert row["weight_bytes"] == 2 * number
    (way,) = row["layouts"]
    assert way["fit"]["free_bytes"] + 2 * number == 141 * 10**9


def test_a_number_of_parameters_is_for_models_without_one():
    for name in ("good.json", "kimi-k3"):  # whose published weights are of two formats, it is not known which of each
        refused(run("cache", name, "--parameters", "8b"), f"expected --weights-dtype beside it for {name}")
    options = ("--parameters", "8b", "--weights-dtype", "bf16", "--json")
    result = run("cache", "deepseek-v3", "good.json", *options)
    answer = json.loads(result.stdout)
    assert [row["weight_bytes"] for row in answer["models"]] == [16 * 10**9]
    assert "expected none for deepseek-v3, known to have 671,000,000,000" in answer["refused"]["deepseek-v3"]


def test_a_very_long_line_is_cut_in_the_middle(capsys):
    shows.say("the beginning " + "x" * 10**5 + " the end\nof it")
    line = capsys.readouterr().err
    assert line.startswith("mla-edu: the beginning xx") and line.endswith("xx the end of it\n")
    assert " ... " in line and len(line) < 700


def test_what_takes_a_while_says_so_once_where_nobody_sees_a_live_line(capsys, monkeypatch):
    monkeypatch.setattr(shows, "MOMENT", 0.0)
    timers = []
    monkeypatch.setattr(shows.threading, "Timer", lambda after, call: timers.append((after, call)) or NoTimer())
    with shows.working("compiling", 3) as note:
        ((after, call),) = timers
        call()  # the moment is over
        note(1)
    assert after == 0.0 and capsys.readouterr() == ("", "compiling ...\n")


class NoTimer:
    daemon = False

    def start(self):
        pass

    cancel = start


def test_what_takes_a_while_shows_how_far_it_is_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(shows, "is_terminal", lambda name: name == "stderr")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with shows.working("compiling", 3) as note:
        note(2)
    out, err = capsys.readouterr()
    assert out == "" and "compiling" in err and "2/3" in err


NAMES = st.one_of(st.text(), st.sampled_from([*FILES, "deepseek-v3", "-", "a/b", "pipe", "sparse.json"]))
OPTIONS = ["--tokens", "--batch", "--gpu", "--gpus", "--tp", "--dp", "--cp", "--pp", "--ep", "--dtype"]
OPTIONS += ["--weights-dtype", "--parameters"]
VALUES = st.one_of(st.text(), st.integers().map(str), st.sampled_from(["8b", "bf16", "h200", "128k", "fp8_mla", "1"]))


@settings(max_examples=150)
@given(
    st.lists(NAMES, max_size=3),
    st.dictionaries(st.sampled_from(OPTIONS), VALUES, max_size=3),
    st.sampled_from([json.dumps(LLAMA), "", "[", "null"]),
)
def test_any_arguments_are_answered_or_refused(names, options, stdin):
    arguments = [f"{option}={value}" for option, value in options.items()]
    result = run("cache", *arguments, "--json", "--", *names, stdin=stdin)
    assert result.exit_code in (0, 2), result.exception
    lines = result.stderr.splitlines()
    assert all(line.startswith("mla-edu: ") for line in lines) and (result.exit_code == 2) == bool(lines)
    if result.stdout:
        answer = json.loads(result.stdout)
        assert len(answer["models"]) + len(answer["refused"]) == len(set(names)) or len(set(names)) < len(names)
    else:
        assert result.exit_code == 2


SIZES = st.one_of(st.text(), st.from_regex(r"\d{1,400}(\.\d{1,400})? ?[kmgtKMGT]i?[bB]", fullmatch=True))
COUNTS = st.one_of(st.text(), st.from_regex(r"[1-9]\d{0,15}[km]?", fullmatch=True))
SHARES = st.one_of(st.text(), st.floats().map(str))


@settings(max_examples=100)
@given(NAMES, SIZES, COUNTS, SHARES)
def test_the_doctor_answers_or_refuses_any_arguments(name, observed, tokens, tolerance):
    options = [f"--observed={observed}", f"--tokens={tokens}", f"--tolerance={tolerance}"]
    for given_options in (options, options[:2]):
        result = run("doctor", *given_options, "--", name, stdin=json.dumps(LLAMA))
        if result.exit_code:
            refused(result)
        else:
            assert "expected" in result.stdout and result.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["models"], ["cache", "deepseek-v3", "--json"], ["--version"]], ids=" ".join)
def test_a_full_disk_is_one_line(arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "mla_edu.cli", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert (done.returncode, done.stderr) == (2, "mla-edu: [Errno 28] No space left on device\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cache", "deepseek-v3", "--dtype", "int4"], "--dtype is 'int4'; expected fp32, fp16, bf16 or fp8"),
        (["cache", "deepseek-v3", "--dtype", "fp8_csa"], "--dtype is 'fp8_csa' for a model such as deepseek-v3"),
        (["cache", "deepseek-v3", "--weights-dtype", "q4"], "--weights-dtype is 'q4'; expected one of fp32"),
        (["cache", "deepseek-v3", "--pp", "1000"], "--pp is 1000; expected at most the 61 layers"),
        (["cache", "deepseek-v3", "--tp", "8", "--ep", "5"], "--ep is 5; expected a divisor of a stage's GPUs, 8"),
        (["cache", "deepseek-v3", "--tp", "3", "--gpus", "8"], "--tp x --dp x --cp x --pp is 3 x 1 x 1 x 1; expected"),
        (["doctor", "deepseek-v3", "--tokens", "1k", "--dtype", "int4"], "--dtype is 'int4'; expected"),
        (["doctor", "deepseek-v3", "--tokens", "1k", "--pp", "99"], "--pp is 99; expected"),
        (["doctor", "deepseek-v3", "--tokens", "1k", "--tolerance", "nan"], "--tolerance is nan; expected"),
        (["cache", "deepseek-v3", "--tokens", "9" * 13], "expected a positive integer of at most 12 digits"),
        (["cache", "deepseek-v3", "--tokens", HUGE], "999...999"),
        (["cache", "twice.json"], "twice.json is not valid JSON: 'num_hidden_layers' is given twice"),
        (["cache", "twice-within.json"], "twice-within.json is not valid JSON: 'head_dim' is given twice"),
        (
            ["doctor", "deepseek-v3", "--tokens", "1k", "--observed", "7,38 GiB"],
            "--observed is '7,38 GiB'; expected a size with a unit, such as 7.4 GiB",
        ),
        (
            ["generate", "good.json", "--prompt", "a"],
            "good.json is no folder; expected a checkpoint: config.json beside",
        ),
        (["cache", "deepseek-v3", "--ep", "8", "--gpus", "8"], "--ep is 8 without a layout; expected --tp, --dp, --cp"),
        (
            ["doctor", "deepseek-v3", "--tokens", "1k", "--log", "nowhere"],
            "mla-edu: --log: nowhere: no such file; expected",
        ),
        (
            ["doctor", "deepseek-v3", "--tokens", "1k", "--log", "folder"],
            "mla-edu: --log: folder is a folder; expected",
        ),
        (
            ["generate", "folder", "--prompts", "nowhere"],
            "mla-edu: --prompts: nowhere: no such file; expected one prompt",
        ),
        (["generate", "folder", "--temperature", "warm"], "--temperature is 'warm'; expected a valid number"),
        (["generate", "folder", "--seed", "1.5"], "--seed is '1.5'; expected a valid integer"),
        (["generate", "folder", "--mla", "small"], "--mla is 'small'; expected one of 'latent', 'expanded'"),
        (["train", "deep.yaml", "--out", "run", "--steps", "0"], "--steps is '0'; expected greater than or equal to 1"),
        (["bench", "model", "--threads", "-3"], "--threads is '-3'; expected greater than or equal to 1"),
        (["bench", "layer", "--seconds", "inf"], "--seconds is inf; expected a finite number"),
    ],
)
def test_an_error_names_the_option(arguments, message):
    refused(run(*arguments), message)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["generate", ""], "folder"),
        (["generate", "folder", "--prompts", ""], "--prompts"),
        (["train", "", "--out", "run"], "config"),
        (["train", "deep.yaml", "--out="], "--out"),
        (["doctor", "deepseek-v3", "--log", ""], "--log"),
        (["bench", "carry", ""], "environment"),
        (["bench", "model", ""], "config"),
        *((["bench", grid, "--results="], "--results") for grid in ("kernel", "layer", "serving", "distributed")),
        *((["bench", grid, "--results="], "--results") for grid in ("model", "latent-width")),
    ],
    ids=" ".join,
)
def test_no_letters_are_not_the_current_folder(arguments, name):
    refused(run(*arguments), f"mla-edu: {name} is ''; expected a path")


def test_what_stdin_holds_is_called_so():
    result = run("cache", "-", "deepseek-v3", stdin=json.dumps(LLAMA | {"hidden_size": "x"}))
    assert result.exit_code == 2 and result.stderr.startswith("mla-edu: stdin: hidden_size is 'x'; expected")
    refused(run("cache", "-", stdin="{}"), "mla-edu: stdin: model_type is None; expected the name of a model family")


def test_a_small_tolerance_is_told_as_it_was_asked():
    asked = ("doctor", "glm-4.7-flash", "--observed=7.38 GiB", "--tokens=8192")
    assert "come within 0.1% of it" in run(*asked, "--tolerance=0.001").stdout
    assert "come within 0.04% of it" in run(*asked, "--tolerance=0.0004").stdout
    assert "Within 2%, or the figure's rounding" in run(*asked).stdout and "last digit" not in run(*asked).stdout


def test_what_one_digit_leaves_open_is_told():
    shown = run("doctor", "glm-4.7-flash", "--observed=1 GiB", "--tokens=8192").stdout
    assert "Its last digit leaves 512.000 MiB to 1.500 GiB; more digits say more." in shown


def test_a_name_that_a_screen_would_obey_is_spelt_out(folder):
    refused(run("cache", "./\x1b[31m\u202e"), r"\x1b[31m\u202e")
    (folder / "\x1b[31mred").mkdir()
    (folder / "\x1b[31mred" / "config.json").write_text(json.dumps(LLAMA))
    result = run("cache", "./\x1b[31mred")
    assert result.exit_code == 0 and "\x1b" not in result.stdout and r"\x1b[31mred" in result.stdout


def test_a_wrong_path_is_told_before_torch_is_read(monkeypatch):
    """Which takes seconds."""
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(run("train", "nowhere.yaml", "--out", "run"), "nowhere.yaml: no such file; expected a YAML file")
    refused(run("generate", "nowhere", "--prompt", "a"), "nowhere: no such folder; expected a checkpoint")


def test_what_stdout_cannot_write_is_spelt_out(folder):
    """A name in Latin-1, where the terminal is UTF-8, and one in UTF-8, where it is ASCII."""
    for name, encoding, written in (
        (b"caf\xe9.json", "utf-8", "caf"),
        ("😀.json".encode(), "ascii", r"\U0001f600.json"),
    ):
        with open(name, "w") as file:
            json.dump(LLAMA, file)
        command = [sys.executable, "-m", "mla_edu.cli", "cache", name]
        result = subprocess.run(
            command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"}
        )
        assert (result.returncode, result.stderr) == (0, b"") and written in result.stdout.decode()


def test_a_closed_stdin_is_one_line():
    command = f"exec {sys.executable} -m mla_edu.cli cache - <&-"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "mla-edu: model is '-', but stdin is closed; expected a config.json through a pipe\n"


def test_ctrl_c_is_one_line_from_the_first_import_on():
    code = """
import builtins, runpy, sys
plain = builtins.__import__
def interrupted(name, *arguments):
    if name == "pydantic":  # a library that takes a while
        raise KeyboardInterrupt
    return plain(name, *arguments)
builtins.__import__ = interrupted
sys.argv = ["mla-edu", "models"]
from mla_edu.__main__ import _main
_main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "mla-edu: interrupted\n")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"mla-edu": "mla_edu.__main__:_main"}


def test_ctrl_c_in_a_command_is_one_line(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mla_edu.cli.list_models", interrupt)
    result = run("models")
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (130, "", "mla-edu: interrupted")


def test_a_home_that_is_not_known_is_one_line(monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", "~nobody-of-that-name/hub")
    refused(run("cache", "a/b"), "~nobody-of-that-name/hub cannot be found without a home; expected HF_HOME, or HOME")
