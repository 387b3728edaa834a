"""The doctor: sizes, logs, ranks of explanations, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mla_edu.cli import app
from mla_edu.cost import ROWS, Parallelism, kv_cache_bytes, sequence_bytes
from mla_edu.doctor import Figure, diagnose, parse_figure, read_log
from mla_edu.registry import get_model, list_models

V3 = 61 * 576 * 2  # bytes of a token


def explained(model, tokens, seen, **options):
    return [each.mistakes for each in diagnose(model, tokens, Figure(seen), **options).explanations]


@pytest.mark.parametrize(
    ("text", "num_bytes", "rounding"),
    [
        ("7.4 GiB", round(7.4 * 2**30), round(0.05 * 2**30)),
        ("1,166.62 MiB", round(1166.62 * 2**20), round(0.005 * 2**20)),
        ("8.23GB", 8_230_000_000, 5_000_000),
        ("70272 B", 70_272, 0),
        ("12 kib", 12_288, 512),
        ("1 TB", 10**12, 5 * 10**11),
    ],
)
def test_sizes(text, num_bytes, rounding):
    found = parse_figure(text)
    assert (found.bytes, found.rounding) == (num_bytes, rounding)


@pytest.mark.parametrize(
    "text",
    [
        "7.4",
        "7.4 GiBs",
        "GiB",
        "-7 GiB",
        "0 GiB",
        "0.00 MiB",
        "7,4,x GiB",
        "7,38 GiB",
        "1,1666 MiB",
        "1e3 MB",
        "٣ GB",
        "",
    ],
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="--observed is .*; expected"):
        parse_figure(text, "--observed")


@given(st.sampled_from(list_models()), st.integers(1, 10**6), st.integers(1, 9))
def test_the_right_size_agrees_with_every_model(name, tokens, batch):
    found = diagnose(name, tokens, Figure(batch * sequence_bytes(name, tokens)), batch_size=batch)
    assert found.agrees and found.explanations[0].mistakes == () and found.explanations[0].error == 0
    assert found.expected == batch * sequence_bytes(name, tokens)


@pytest.mark.parametrize(
    ("numbers", "mistakes"),
    [  # of a layer of DeepSeek-V3, for a token
        (128 * (192 + 128), ("keys and values expanded to every head",)),
        (128 * (192 + 192), ("keys and values expanded to every head, values as wide as keys",)),
        (128 * (256 + 256), ("keys and values expanded to every head, padded to a power of two",)),
        (512 + 64 + 512, ("V stored beside the latent",)),
        (2 * 576, ("times two, as if the latent were a key and a value",)),
        (512, ("rotary key left out",)),
        (512 + 128 * 64, ("rotary key of each head",)),
        (128 * 576, ("a latent of each head",)),
        (7168, ("hidden size for the latent",)),
    ],
)
def test_each_mistake_with_a_latent(numbers, mistakes):
    assert mistakes in explained("deepseek-v3", 1000, 1000 * 61 * numbers * 2)


@pytest.mark.parametrize(
    ("name", "tokens", "seen", "mistakes"),
    [
        ("llama-3.1-70b", 1000, 1000 * 80 * 2 * 64 * 128 * 2, ("query heads for key/value heads",)),
        ("llama-3.1-70b", 1000, 1000 * 80 * 8 * 128 * 2, ("keys alone, or no factor 2",)),
        ("qwen3-235b-a22b", 1000, 1000 * 94 * 2 * 4 * 64 * 2, ("width of a head from hidden_size",)),
        ("gemma-3-27b", 131_072, 131_072 * 62 * 4096 * 2, ("window ignored",)),
        ("kimi-linear-48b-a3b", 10**6, 10**6 * 27 * 576 * 2, ("every layer counted as one that keeps all",)),
        ("deepseek-v3.2", 1000, 1000 * 61 * 576 * 2, ("keys of the indexer left out",)),
        ("deepseek-v3", 1000, 1000 * 61 * 656, ("in fp8_mla instead of bf16",)),
        ("deepseek-v3", 1000, 1000 * 61 * 576 * 18 // 32, ("in q4_0 instead of bf16",)),
        ("deepseek-v3", 20, 128 * V3, ("pages of 128 tokens, the last one full",)),
    ],
)
def test_other_mistakes(name, tokens, seen, mistakes):
    found = explained(name, tokens, seen)
    assert mistakes in found or any(mistakes[0] in each for each in found)


def test_what_several_gpus_hold():
    eight = Parallelism(tensor=8)
    assert explained("deepseek-v3", 1000, 1000 * V3, layout=eight) == [()]
    assert explained("deepseek-v3", 1000, 8000 * V3, layout=eight) == [("the copies of all GPUs added up",)]
    wrong = ("divided by the GPUs, though each holds a copy",)
    assert explained("deepseek-v3", 1000, 1000 * V3 // 8, layout=eight) == [wrong]
    # Expanded keys and values are shared out by heads, on each of eight GPUs 16 of 128.
    assert explained("deepseek-v3", 1000, 1000 * 61 * 16 * 320 * 2, layout=eight) == [
        ("keys and values expanded to every head",)
    ]
    assert explained("deepseek-v3", 1000, 125 * V3, layout=Parallelism(context=8)) == [()]


def test_fewest_mistakes_come_first_and_the_nearest_of_them():
    found = diagnose("deepseek-v3", 1000, Figure(round(1000 * 61 * 1088 * 2 * 1.01))).explanations
    assert [each.mistakes for each in found] == [("V stored beside the latent",)]
    assert found[0].error == pytest.approx(0.01, rel=1e-3) and found[0].bytes == 1000 * 61 * 1088 * 2
    two = explained("deepseek-v3", 1000, 1000 * 61 * (128 * 320))  # expanded, and a byte each
    assert ("keys and values expanded to every head", "in fp8 instead of bf16") in two
    errors = [abs(each.error) for each in diagnose("deepseek-v3", 1000, Figure(1000 * 61 * 40_960)).explanations]
    assert errors == sorted(errors)


def test_tolerance_and_rounding():
    off = round(1000 * V3 * 1.015)
    assert explained("deepseek-v3", 1000, off) == [()]
    assert () not in explained("deepseek-v3", 1000, off, tolerance=0.01)
    coarse = parse_figure("0.1 GB")  # 70 MB, to its one digit
    assert diagnose("deepseek-v3", 1000, coarse, tolerance=0.01).agrees


def test_gb_that_are_gib():
    found = diagnose("deepseek-v3", 163_840, parse_figure("10.72 GB"))
    assert [each.mistakes for each in found.explanations] == [("a decimal unit printed for a binary one: GB for GiB",)]


def test_none_of_these():
    found = diagnose("deepseek-v3", 1000, Figure(1000 * V3 * 1000))
    assert found.explanations == () and not found.agrees


@pytest.mark.parametrize(
    ("lines", "tool", "seen", "tokens"),
    [
        (
            "llama_kv_cache: size = 2196.00 MiB ( 32768 cells,  61 layers,  1/1 seqs), K (f16): 2196.00 MiB",
            *("llama.cpp", 2196 * 2**20, 32_768),
        ),
        (
            "llama_kv_cache: size =  100.00 MiB ( 8192 cells,  10 layers,  1/1 seqs), K (f16): 50.00 MiB\n"
            "llama_kv_cache: size =   28.00 MiB ( 1024 cells,  52 layers,  1/1 seqs), K (f16): 14.00 MiB",
            *("llama.cpp", 128 * 2**20, 8192),
        ),
        ("KV self size  = 2196.00 MiB, c^KV (f16): 2196.00 MiB\nn_ctx      = 32768", "llama.cpp", 2196 * 2**20, 32_768),
        (
            'msg="kv cache" device=CUDA0 size="1.0 GiB"\nKvSize:8192\nmsg="kv cache" device=CUDA0 size="2.0 GiB"\n'
            'msg="kv cache" device=CPU size="512.0 MiB"',
            *("ollama", 2560 * 2**20, 8192),
        ),
        ("Available KV cache memory: 8.00 GiB\nGPU KV cache size: 178,880 tokens", "vLLM", 8 * 2**30, 178_880),
        ("kv_cache_size=1.00GiB\n# GPU blocks: 10, # CPU blocks: 2 block_size=32", "vLLM", 2**30, 320),
        (
            "KV Cache is allocated. dtype: torch.bfloat16, #tokens: 1000, KV size: 2.00 GB",
            *("SGLang", 2 * 2**30, 1000),
        ),
        (
            "[TensorRT-LLM][INFO] [MemUsageChange] Allocated 4.50 GiB for max tokens in paged KV cache (68736).",
            *("TensorRT-LLM", round(4.5 * 2**30), 68_736),
        ),
    ],
)
def test_logs(tmp_path, lines, tool, seen, tokens):
    path = tmp_path / "a.log"
    path.write_text(f"something else\n{lines}\nand more 7 GiB\n")
    reading = read_log(path)
    assert (reading.tool, reading.figure.bytes, reading.tokens) == (tool, seen, tokens)


def test_logs_that_say_nothing_are_refused(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("model size = 37 GiB\n")
    with pytest.raises(ValueError, match=r"a\.log has no line about the size of a cache; expected one as llama\.cpp"):
        read_log(path)
    path.write_bytes(b"\xff\x00\x80")
    with pytest.raises(ValueError, match=r"a\.log is not a text in UTF-8; expected a log"):
        read_log(path)
    with pytest.raises(FileNotFoundError):
        read_log(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "num_tokens is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"tolerance": 0}, "tolerance is 0; expected a share above 0"),
        ({"tolerance": 0.5}, "tolerance is 0.5"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"layout": Parallelism(tensor=256)}, "tensor x context is 256"),
    ],
)
def test_bad_questions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        diagnose("deepseek-v3", **{"num_tokens": 1, "observed": Figure(1)} | options)


# The command


def run(*arguments):
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, ["doctor", *arguments])


def test_the_command_says_what_it_should_be_and_what_explains_it():
    shown = run("glm-4.7-flash", "--observed", "7.38 GiB", "--tokens", "8192")
    assert shown.exit_code == 0, shown.output
    assert "expected in all: 423.000 MiB (443,547,648 bytes)" in shown.stdout
    assert "17.9 times that" in shown.stdout and "keys and values expanded to every head  7.344 GiB" in shown.stdout
    assert "As it should be, +0.1%." in run("deepseek-v2-lite", "--observed", "0.95 GiB", "--tokens", "32k").stdout
    assert "None of these" in run("deepseek-v3", "--observed", "610 KiB", "--tokens", "1").stdout
    assert get_model("deepseek-v3").why.split(",")[0] in run("deepseek-v3", "--tokens", "8k").stdout


def test_the_command_reads_a_log_and_a_config_json(tmp_path):
    log = tmp_path / "log"
    log.write_text("KV Cache is allocated. #tokens: 100000, K size: 1.53 GB, V size: 1.53 GB\n")
    config = {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 8}))
    shown = run(str(tmp_path), "--log", str(log), "--tp", "4", "--json")
    assert shown.exit_code == 0, shown.output
    answer = json.loads(shown.stdout)
    assert (answer["tool"], answer["num_tokens"], answer["layout"]["tensor"]) == ("SGLang", 100_000, 4)
    assert answer["expected_bytes"] == 100_000 * 16 * 2 * 2 * 64 * 2
    assert answer["agrees"] is False
    assert ["the copies of all GPUs added up"] in [each["mistakes"] for each in answer["explanations"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deepseek-v3"], "--tokens is missing"),
        (["deepseek-v3", "--tokens", "0"], "--tokens is '0'"),
        (["deepseek-v3", "--tokens", "8k", "--observed", "7.4 GiBs"], "--observed is '7.4 GiBs'; expected a size"),
        (["deepseek-v3", "--tokens", "8k", "--observed", "7.4 GB", "--log", "x"], "both given"),
        (["deepseek-v3", "--log", "nowhere.log"], "nowhere.log"),
        (["deepseek-v3", "--tokens", "8k", "--dtype", "int3"], "dtype is 'int3'"),
        (["deepseek-v3", "--tokens", "8k", "--gpus", "8"], "--gpus is 8 without a layout"),
        (["deepseek-v3", "--tokens", "8k", "--gpus", "8", "--tp", "3"], "expected a product of 8 GPUs"),
        (["deepseek-v3", "--tokens", "8k", "--batch", "-1"], "--batch is '-1'"),
        (["deepseek-v3", "--tokens", "8k", "--observed", "1 GB", "--tolerance", "2"], "tolerance is 2.0"),
        (["llama-3-8b", "--tokens", "8k", "--dtype", "fp8_mla"], "expected 'mla'"),
        (["deepsek-v3", "--tokens", "8k"], "unknown model 'deepsek-v3'"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("mla-edu: ") and len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_every_row_format_can_be_meant():
    for dtype in ROWS:
        name = "deepseek-v4-flash" if dtype == "fp8_csa" else "deepseek-v3"
        assert diagnose(name, 128, Figure(sequence_bytes(name, 128, dtype)), dtype=dtype).agrees
    assert kv_cache_bytes("deepseek-v3", 1, 1, "fp4_mla_352") == 61 * 352
