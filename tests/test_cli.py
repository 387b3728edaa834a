"""The ``mla-edu`` command: its figures, its table at 80 columns, its errors, and how fast it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import mla_edu
import mla_edu.cli.show as shows
from mla_edu.cli import app
from mla_edu.registry import list_models
from mla_edu.words import parse_count, size

LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def run(*arguments: str, columns: int = 80):
    return CliRunner(env={"COLUMNS": str(columns), "NO_COLOR": "1"}).invoke(app, arguments)


def answers(*arguments: str) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_json_holds_exact_bytes():
    answer = answers("cache", "deepseek-v3", "llama-3.1-405b", "--tokens", "128k", "--batch", "32", "--gpu", "h200")
    assert (answer["num_tokens"], answer["batch_size"], answer["gpu"]) == (131_072, 32, "h200")
    v3, llama = answer["models"]
    assert (v3["bytes_per_token"], llama["bytes_per_token"]) == (70_272, 516_096)
    assert v3["bytes_per_sequence"] == 70_272 * 131_072 and v3["bytes_in_all"] == 32 * 70_272 * 131_072
    assert v3["weight_bytes"] == 671 * 10**9 and v3["weight_formats"]["others"] == "fp8"  # as DeepSeek publishes it
    assert llama["weight_bytes"] == 2 * 405 * 10**9


def test_three_layouts_stand_beside_each_other_and_the_assumed_one_is_named():
    command = ("cache", "deepseek-v3", "llama-3.1-405b", "--gpu", "b200", "--gpus", "8")
    found = [
        [
            (way["words"], way["copies"], way["bytes_per_sequence"], way["fit"]["max_sequences"])
            for way in row["layouts"]
        ]
        for row in answers(*command)["models"]
    ]
    latent, heads = 70_272 * 131_072, 516_096 * 131_072
    assert found == [
        [("tp 8", 8, latent, 10), ("dp 8", 1, latent, 72), ("cp 8", 1, latent // 8, 82)],
        [("tp 8", 1, heads // 8, 9), ("dp 8", 1, heads, 0), ("cp 8", 1, heads // 8, 8)],
    ]
    shown = " ".join(run(*command).stdout.split())
    assert "no layout given; assumed: each of the three on 8 GPUs." in shown
    assert (
        "copies: GPUs that hold the same latent" in shown and "weights: deepseek-v3 fp8, llama-3.1-405b bf16." in shown
    )
    assert "assumed: each of the three on 8 GPUs." in run("cache", "deepseek-v3").stdout
    fewest = " ".join(run("cache", "deepseek-v3", "--gpu", "h200").stdout.split())
    assert (
        "assumed: each of the three on the fewest of 1, 2, 4, ... NVIDIA H200 141GB SXM that hold the weights" in fewest
    )


def test_one_gpu_is_one_layout():
    (way,) = answers("cache", "llama-3.1-8b", "--gpu", "h200")["models"][0]["layouts"]
    assert (way["words"], way["num_gpus"], way["copies"]) == ("one GPU", 1, 1)
    assert way["weight_bytes"] == 16 * 10**9
    alone = run("cache", "llama-3.1-8b", "--gpus", "1").stdout
    assert "assumed" not in alone and "tp:" not in alone


def test_a_layout_that_is_given_stands_alone():
    options = ("--gpu", "b200", "--gpus", "8", "--tp", "4", "--dp", "1", "--cp", "2")
    (row,) = answers("cache", "deepseek-v3", *options)["models"]
    (way,) = row["layouts"]
    assert (way["tensor"], way["context"], way["data"], way["num_gpus"], way["copies"]) == (4, 2, 1, 8, 4)
    assert way["bytes_per_sequence"] == 70_272 * 131_072 // 2
    assert "assumed" not in run("cache", "deepseek-v3", *options).stdout
    (way,) = answers("cache", "deepseek-v3", "--dp", "8", "--ep", "1")["models"][0]["layouts"]
    assert way["weight_bytes"] == row["weight_bytes"] and way["words"] == "dp 8 ep 1"


def test_a_layout_that_one_model_of_several_does_not_allow_is_left_empty():
    tensor, data, _context = answers("cache", "gemma-3-1b")["models"][0]["layouts"]
    assert "at most its 4 query heads" in tensor["refused"] and data["bytes_per_sequence"] > 0
    assert "-: tensor x context is 8 for gemma-3-1b" in run("cache", "gemma-3-1b").stdout


def test_heads_that_do_not_divide_are_said_to_be_padded():
    shown = " ".join(run("cache", "deepseek-v3", "--tp", "3").stdout.split())
    assert "deepseek-v3: query heads padded by 1 for tp 3" in shown
    assert answers("cache", "deepseek-v3", "--tp", "3")["models"][0]["layouts"][0]["padded_heads"] == 1
    assert "padded" not in run("cache", "deepseek-v3", "--tp", "4").stdout


def test_more_tokens_than_the_configuration_has_positions_are_said(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"max_position_embeddings": 4096}))
    model = f"{tmp_path}{os.sep}"
    assert "more tokens than the 4,096 positions of its" in " ".join(run("cache", model).stdout.split())
    assert "positions" not in run("cache", model, "--tokens", "4096").stdout


def test_json_counts_index_keys_and_states_apart():
    sparse, hybrid = answers("cache", "deepseek-v3.2", "kimi-linear-48b-a3b", "--tokens", "1k")["models"]
    assert sparse["index_bytes_per_sequence"] == 61 * 256 * 1024
    assert hybrid["state_bytes_per_sequence"] == 4 * 11_468_800
    for row in (sparse, hybrid):
        parts = [row[f"{part}_bytes_per_sequence"] for part in ("kv", "index", "state")]
        assert row["bytes_per_sequence"] == sum(parts)


@pytest.mark.parametrize(("dtype", "gpus"), [("fp8", 8), ("bf16", 16), ("fp4", 4)])
def test_weight_format_decides_how_many_gpus_are_assumed(dtype, gpus):
    (row,) = answers("cache", "deepseek-v3", "--gpu", "h200", "--weights-dtype", dtype)["models"]
    assert [way["num_gpus"] for way in row["layouts"]] == [gpus] * 3


def test_an_unknown_parameter_count_is_said():
    (row,) = answers("cache", "deepseek-v3.1", "--gpu", "h200")["models"]
    assert row["weight_bytes"] is None and row["layouts"][0]["fit"] is None
    shown = " ".join(run("cache", "deepseek-v3.1", "--gpu", "h200").stdout.split())
    assert "the number of parameters is not known, --parameters gives it: deepseek-v3.1." in shown


def test_an_unknown_weight_format_is_said_and_never_taken_for_16_bits():
    (row,) = answers("cache", "deepseek-67b", "--gpu", "h200")["models"]
    assert row["weight_bytes"] is row["weight_formats"] is None
    shown = " ".join(run("cache", "deepseek-67b", "--gpu", "h200").stdout.split())
    assert "format of the published weights not known, --weights-dtype gives one: deepseek-67b." in shown


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_config_json_never_seen_before_works_as_a_model(tmp_path, as_folder):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (row,) = answers("cache", str(tmp_path if as_folder else tmp_path / "config.json"), "--tokens", "1000")["models"]
    assert row["bytes_per_token"] == 2 * 16 * 2 * 8 * 64
    assert row["bytes_in_all"] == 1000 * row["bytes_per_token"]


def test_the_table_fits_80_columns_of_a_terminal_with_the_longest_name(monkeypatch):
    monkeypatch.setattr(shows, "is_terminal", lambda _: True)
    longest = max(list_models(), key=len)
    result = run("cache", longest, "deepseek-v3", "--tokens", "1m", "--batch", "4096", "--gpu", "t4")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    row = next(line for line in result.stdout.splitlines() if "deepseek-v3 " in line)
    assert "70.3 kB" in row and "73.7 GB" in row and "302 TB" in row and "671 GB" in row
    assert longest in result.stdout and "1 GB = 10**9 bytes" in result.stdout


def test_a_file_gets_each_name_whole():
    names = ["deepseek-v4-flash", "mistral-large-3-675b", "qwen3-235b-a22b"]
    lines = run("cache", *names, "--gpu", "h200", "--tp", "2", "--dp", "2", "--cp", "2").stdout.splitlines()
    for name in names:
        assert sum(line.startswith(f"{name} ") for line in lines) >= 2


def test_why_a_share_of_the_weights_is_not_known_is_said():
    shown = " ".join(run("cache", "mistral-large-3-675b", "--dp", "8").stdout.split())
    assert "?: the weights of attention, which dp copies, are not known: mistral-large-3-675b." in shown
    assert "?:" not in run("cache", "mistral-large-3-675b", "--tp", "8").stdout


def test_layouts_are_assumed_where_there_are_several_gpus():
    assert "no layout given" not in run("cache", "llama-3-8b", "--gpu", "h100").stdout
    assert "no layout given" in run("cache", "llama-3-8b", "llama-3.1-405b", "--gpu", "h100").stdout


@pytest.mark.parametrize("command", [[], ["cache"], ["bench", "layer"]])
def test_help_has_a_short_name(command):
    assert run(*command, "-h").stdout == run(*command, "--help").stdout != ""


def test_a_narrow_terminal_folds_lines_and_not_names():
    shown = run("cache", "deepseek-v3", "llama-3.1-405b", columns=30).stdout
    assert "deepseek-v3  " in shown and "llama-3.1-405b  " in shown and "per sequence" in shown


def test_models_lists_the_registry():
    result = run("models")
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert listed[2:] == list_models()  # after the heading and its rule


@pytest.mark.parametrize(("text", "number"), [("4096", 4096), ("128k", 131_072), ("128K", 131_072), ("1m", 1_048_576)])
def test_counts(text, number):
    assert parse_count(text, "--tokens") == number


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (70_272, "70.3 kB"), (999_600, "1.00 MB"), (516_096, "516 kB")],
)
def test_sizes_have_units_of_a_person(num_bytes, text):
    assert size(num_bytes) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deepsek-v3"], "unknown model 'deepsek-v3'; nearest: deepseek-v3"),
        (["deepseek-v3", "--tokens", "lots"], "--tokens is 'lots'; expected a positive integer"),
        (["deepseek-v3", "--tokens", "0"], "--tokens is '0'"),
        (["deepseek-v3", "--batch", "-1"], "--batch is '-1'"),
        (["deepseek-v3", "--gpu", "h20"], "unknown GPU 'h20'; nearest: h200"),
        (["deepseek-v3", "--dtype", "int4"], "dtype is 'int4'"),
        (["deepseek-v3", "--weights-dtype", "fp8_mla"], "--weights-dtype is 'fp8_mla'; expected one of fp32"),
        (["llama-3-8b", "--dtype", "fp4_mla_352"], "llama-3-8b of kind 'gqa'; expected 'mla'"),
        (["deepseek-v3", "--gpus", "8", "--tp", "3"], "is 3 x 1 x 1 x 1; expected a product of 8 GPUs"),
        (["deepseek-v3", "--gpus", "8", "--tp", "8", "--dp", "8"], "is 8 x 8 x 1 x 1; expected a product of 8 GPUs"),
        (["deepseek-v3", "--gpus", "0"], "--gpus is '0'; expected a positive integer"),
        (["deepseek-v3", "--tp", "-8"], "--tp is '-8'"),
        (["deepseek-v3", "--cp", "0"], "--cp is '0'"),
        (["deepseek-v3", "--pp", "62"], "--pp is 62; expected at most the 61 layers"),
        (["deepseek-v3", "--tp", "8", "--ep", "3"], "--ep is 3; expected a divisor of a stage's GPUs, 8"),
        (["gemma-3-1b", "--tp", "8"], "mla-edu: --tp x --cp is 8 for gemma-3-1b; expected at most its 4 query heads"),
        (["llama-3-8b", "--dtype", "fp8_mla"], "llama-3-8b of kind 'gqa'; expected 'mla'"),
        (["nowhere/config.json"], "nowhere/config.json: no such file"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(arguments, message):
    refused(run("cache", *arguments), message)


def refused(result, message=""):
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("mla-edu: ") and len(result.stderr.splitlines()) == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cahce"], "No such command 'cahce'"),
        (["--loud"], "No such option"),
        (["cache"], "mla-edu: models is missing; expected: Names of the registry; a config.json"),
        (["cache", "deepseek-v3", "--tokens"], "--tokens"),
        (["cache", "deepseek-v3", "--bacth", "1"], "No such option"),
        (["cache", ""], "model is ''; expected a name of the registry, a path to a config.json"),
        (["models", "deepseek-v3"], "unexpected extra argument"),
        (["kernels", "--heads", "many"], "--heads is 'many'; expected a positive integer"),
        (["kernels", "--heads", "0"], "--heads is '0'"),
        (["kernels", "--s-q", "-1"], "--s-q is '-1'"),
        (["kernels", "--heads", "100000"], "mla-edu: --heads is 100000; expected an integer from 1 to 1,024"),
        (["kernels", "--page-size", "1m"], "mla-edu: --page-size is 1048576; expected an integer from 1 to 65,536"),
        (["kernels", "--s-q", "1m"], "mla-edu: --s-q is 1048576; expected"),
        (["kernels", "--dtype", "fp8"], "mla-edu: --dtype is 'fp8'"),
        (["kernels", "--dtype", ""], "mla-edu: --dtype is ''"),
        (["kernels", "--backend", "cuda"], "mla-edu: --backend is 'cuda'"),
        (["doctor", "deepseek-v3", "--tokens", "1k", "--tp", "256"], "mla-edu: --tp x --cp is 256 for deepseek-v3"),
        (["kernels", "sm_70"], "arch is 'sm_70'"),
        (["kernels", "H100"], "mla-edu: arch is 'H100'; expected its architecture, sm_90"),
        (["doctor", "deepseek-v3", "--tokens"], "mla-edu: --tokens has no value; expected one after it"),
        (["generate", ".", "--prompt", "a", "--top-p", "0.9"], "mla-edu: --top-p is 0.9 at temperature 0, which"),
        (["bench", "cache"], "No such command 'cache'"),
    ],
)
def test_what_no_command_understands_is_one_line_too(arguments, message):
    refused(run(*arguments), message)


@settings(max_examples=50)
@given(
    st.sampled_from(["--tokens", "--batch", "--gpu", "--gpus", "--tp", "--dtype", "--weights-dtype"]),
    st.text(min_size=1),
)
def test_nonsense_is_refused_whatever_it_is(option, text):
    result = run("cache", "deepseek-v3", f"{option}={text}", "--json")
    if result.exit_code:
        refused(result)
    else:
        answer = json.loads(result.stdout)
        assert text.strip().casefold()[:1].isdigit() or text.strip().casefold() in answer.values()


@pytest.mark.parametrize("digits", ["9" * 13, "9" * 400, "9" * 5000, "٣", "1e3", "1_000", "0x10", ""])
def test_numbers_that_are_too_long_or_oddly_written_are_refused(digits):
    refused(run("cache", "deepseek-v3", f"--tokens={digits}"), "--tokens is ")


def test_the_largest_numbers_have_an_answer():
    result = run("cache", "deepseek-v3", "--tokens", "9" * 12 + "m", "--batch", "9" * 12 + "m")
    assert result.exit_code == 0, result.stderr


def test_the_readme_shows_what_the_command_prints():
    readme = (Path(mla_edu.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    command, _, table = readme.partition("```\nmla-edu cache ")[2].partition("\n\n")
    shown = run("cache", *command.split()).stdout.splitlines()
    for line in table.partition("\n```")[0].splitlines():
        assert line in shown, line


def test_version():
    assert run("--version").stdout == f"mla-edu {mla_edu.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["bench"]])
def test_a_command_alone_says_what_there_is(arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    assert all(name in result.stdout for name in (("kernel", "layer") if arguments else ("cache", "models", "bench")))


def test_a_config_that_cannot_be_counted_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    assert "'t5' is an encoder-decoder" in run("cache", str(path)).stderr
    path.write_text("{")
    result = run("cache", str(path))
    assert result.exit_code == 2 and "is not valid JSON" in result.stderr


def run_without(missing: str, *arguments: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, where some libraries are not installed."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({missing.split()!r}))\n"
        "from mla_edu.cli import app\n"
        "app(prog_name='mla-edu')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_cache_and_the_models_need_only_the_light_libraries():
    commands = [["cache", "deepseek-v3", "--gpu", "h200", "--json"], ["models"], ["bench", "kernel", "--help"]]
    for arguments in (*commands, ["doctor", "deepseek-v3", "--observed", "1 GiB", "--tokens", "8k"]):
        done = run_without("torch transformers numpy triton matplotlib anywidget jaxtyping", *arguments)
        assert done.returncode == 0, done.stderr
        assert arguments[-1] != "--json" or json.loads(done.stdout)["models"][0]["bytes_per_token"] == 70_272


@pytest.mark.parametrize(
    ("missing", "arguments", "message"),
    [
        ("torch", "kernels", "this command needs torch: pip install torch"),
        ("torch", "bench kernel --toy", "this command needs torch: pip install torch"),
        ("torch", "bench layer --toy", "this command needs torch: pip install torch"),
        ("triton", "kernels sm_90", "compiling needs Triton: pip install 'mla-edu[kernels]'"),
        (
            "triton",
            "bench kernel --toy",
            "the decode kernel needs Triton: not installed: pip install 'mla-edu[kernels]'",
        ),
        (
            "transformers",
            "bench layer --toy",
            "the layer is measured beside that of transformers: not installed: pip install 'mla-edu[hf]'",
        ),
    ],
)
def test_a_missing_library_is_one_line_that_says_what_to_install(missing, arguments, message):
    done = run_without(missing, *arguments.split())
    *waits, last = done.stderr.splitlines()  # a slow machine says that it is at work
    assert (done.returncode, done.stdout, last) == (2, "", f"mla-edu: {message}")
    assert all(line.endswith(" ...") for line in waits)


@pytest.mark.parametrize("options", [["-m", "mla_edu"], ["-m", "mla_edu.cli"], ["-OO", "-m", "mla_edu"]], ids=" ".join)
def test_the_module_runs_as_a_command(options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, *options, "cache", "deepseek-v3"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "70.3 kB" in done.stdout
