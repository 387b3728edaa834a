"""``mla-edu generate``: what it prints, and what it refuses."""

import contextlib
import json
import re
import sys

import pytest
import torch
from typer.testing import CliRunner

from mla_edu.cli import app
from mla_edu.models import Decoder, ModelConfig, generate, save_model
from mla_edu.testing import randomize

MLA = {
    "num_attention_heads": 3,
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
CONFIG = ModelConfig(vocab_size=256, hidden_size=24, intermediate_size=32, layers=["mla", "mla"], mla=MLA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = randomize(Decoder(CONFIG))
    with torch.no_grad():
        model.lm_head.weight[128:] = 0  # ASCII alone, and never a token of zeros
        model.lm_head.weight[:32] = 0
    path = tmp_path_factory.mktemp("models") / "small"
    save_model(model, path)
    return path, model


def run(*arguments):
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


def table_of(output):
    """The rows of the table at the end."""
    rows = (re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in output.splitlines() if re.search(r"\w  ", line))
    return dict(row for row in rows if len(row) == 2)


def test_the_text_streams_and_a_table_counts(folder):
    path, model = folder
    result = run(path, "--prompt", "def ", "--max-new-tokens", "20")
    assert result.exit_code == 0, result.output
    right = bytes(generate(model, list(b"def "), max_new_tokens=20)).decode()
    assert result.stdout.startswith(right + "\n")
    table = table_of(result.stdout[len(right) :])
    assert (table["requests"], table["tokens in"], table["tokens out"]) == ("1", "4", "20")
    assert table["most pages held"] == f"1 of 64 tokens each, {64 * 2 * 12 * 4 / 1000:.2f} kB"
    assert table["cache of a token"] == f"{2 * 12 * 4} B"
    assert table["with keys and values of every head"] == f"{2 * 3 * (9 + 6) * 4} B"


def test_a_prompt_that_takes_long_to_read_is_told(folder, monkeypatch):
    """Of 5,000 tokens, in more steps than one."""
    told = []

    @contextlib.contextmanager
    def working(text, total=None):
        told.append(text)
        yield lambda done: None

    monkeypatch.setattr(sys.modules["mla_edu.cli.generate"], "working", working)
    path, model = folder
    result = run(path, "--prompt", "def f(x)\n" * 555 + "print", "--max-new-tokens", "3")
    assert "reading the prompt's 5,000 tokens" in told
    right = bytes(generate(model, list(b"def f(x)\n" * 555 + b"print"), max_new_tokens=3)).decode()
    assert result.stdout.startswith(right + "\n")


@pytest.mark.parametrize("options", [(), ("--mla", "expanded"), ("--speculate", "ngram"), ("--no-prefix-cache",)])
def test_a_file_of_prompts_is_answered_in_its_order(folder, options, tmp_path):
    path, model = folder
    beginning = "x = " * 20
    prompts = [beginning + "1", "", beginning + "2", "import "]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    lines = [{"prompt": prompts[0]}, {"prompt": prompts[2], "max_new_tokens": 3}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, counts in (("prompts.txt", (9, 9, 9)), ("prompts.jsonl", (9, 3))):
        result = run(path, "--prompts", tmp_path / name, "--max-new-tokens", "9", *options)
        assert result.exit_code == 0, result.output
        answers = [json.loads(line) for line in result.stdout.splitlines()]
        asked = [prompt for prompt in prompts if prompt][: len(counts)]
        for answer, text, count in zip(answers, asked, counts, strict=True):
            right = bytes(generate(model, list(text.encode()), max_new_tokens=count)).decode()
            assert answer == {"prompt": text, "text": right}
        table = table_of(result.stderr)
        assert table["tokens out"] == str(sum(counts))
        assert table["guesses that were right"].endswith("of 0") == ("ngram" not in options)
        assert ("with latents alone" in table) == ("expanded" in options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "--prompt is ''; expected how the text begins"),
        (["--prompt", "a", "--temperature", "-1"], "--temperature is -1.0; expected greater than or equal to 0"),
        ([], "expected --prompt or --prompts, one of the two"),
        (["--prompt", "a", "--prompts", "b"], "expected --prompt or --prompts, one of the two"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--prompt", "a", "--max-new-tokens", "0"], "mla-edu: --max-new-tokens is 0; expected greater than 0"),
        (["--prompt", "a", "--max-new-tokens", "-1"], "--max-new-tokens is -1; expected greater than 0"),
        (["--prompt", "a", "--speculate", "luck"], "--speculate"),
        (["--prompt", "a", "--speculate", "mtp"], "mla-edu: --speculate is 'mtp'; expected a module for further"),
        (["--prompt", "a", "--temperature", "inf"], "--temperature is inf; expected a finite number"),
        (["--prompt", "a", "--seed", "-1"], "seed is -1; expected greater than or equal to 0"),
        (["--prompt", "a", "--seed", str(2**63)], f"seed is {2**63}; expected less than"),
        (["--prompt", "a", "--max-new-tokens", str(10**15)], f"--max-new-tokens is {10**15}; expected a cache for"),
        (["--prompt", "a", "--max-new-tokens", str(10**18)], f"--max-new-tokens is {10**18}; expected a cache for"),
        (["--prompt", "a", "--device", "meta"], "--device is 'meta'; expected one that is there"),
        (["--prompt", "a", "--device", "cuda:77"], "--device is 'cuda:77'; expected one that is there"),
        (["--prompt", "a", "--device", "abacus"], "--device is 'abacus'; expected one that is there"),
    ],
)
def test_bad_input_is_one_line(folder, arguments, message):
    result = run(folder[0], *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_too_many_new_tokens_are_refused_before_a_model_is_loaded(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("mla_edu.models.load_model", lambda *arguments, **options: pytest.fail("it is loaded"))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n' * 2)
    for given, count in ((("--prompt", "a"), 2**31), (("--prompts", tmp_path / "prompts.jsonl"), 2**30)):
        result = run(folder[0], *given, "--max-new-tokens", count)
        assert result.exit_code == 2
        assert result.stderr == f"mla-edu: --max-new-tokens is {count}; expected a cache for which there is memory\n"


def test_a_folder_without_a_model_is_one_line(tmp_path):
    result = run(tmp_path, "--prompt", "a")
    assert result.exit_code == 2
    assert "config.json: no such file" in result.stderr


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n \n", "a.txt has no prompt; expected one a line"),
        ("a.txt", b"\xff\xfe\x00", "a.txt is not a text in UTF-8"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ', "a.jsonl, line 2: expected an object such as"),
        ("a.jsonl", '\n["a"]', "a.jsonl, line 2: '[\"a\"]' is no object"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', "a.jsonl, line 1: 'prompt' is given twice"),
        ("a.jsonl", '{"text": "a"}', "a.jsonl, line 1: Prompt: prompt: missing; text is 'a'; no such name"),
        ("a.jsonl", '{"prompt": 3}', "a.jsonl, line 1: Prompt: prompt is 3; expected a valid string"),
        ("a.jsonl", '{"prompt": "a", "top_p": 2}', "a.jsonl, line 1: Prompt: top_p is 2; expected"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: "),
    ],
)
def test_a_bad_line_of_a_file_is_named_and_nothing_has_run(folder, name, text, message, tmp_path):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    result = run(folder[0], "--prompts", tmp_path / name)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1


def test_a_hybrid_cannot_speculate(tmp_path):
    mamba2 = {"num_heads": 4, "head_dim": 6, "state_size": 5}
    layers = {"layers": ["mamba2", "mla"], "mla": MLA, "mamba2": mamba2}
    save_model(Decoder(ModelConfig(**CONFIG.model_dump() | layers)), tmp_path / "hybrid")
    result = run(tmp_path / "hybrid", "--prompt", "a", "--speculate", "ngram")
    assert result.exit_code == 2
    assert result.stderr.startswith("mla-edu: --speculate is given; expected a model without recurrent layers")


def test_the_folder_of_a_training_run_is_no_model(tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"")
    result = run(tmp_path, "--prompt", "a")
    assert result.exit_code == 2
    assert "is the folder of a training run; expected a model, such as its model-N" in result.stderr
