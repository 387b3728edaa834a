"""``mla-edu generate``: what it prints, and what it refuses."""

import re

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


def test_the_text_streams_and_the_last_line_counts(folder):
    path, model = folder
    result = run(path, "--prompt", "def ", "--max-new-tokens", "20")
    assert result.exit_code == 0, result.output
    text, last = result.output[:-1].rsplit("\n", 1)
    assert text.encode() == bytes(generate(model, list(b"def "), max_new_tokens=20))
    kept, whole = 23 * 2 * 12 * 4, 23 * 2 * 3 * (9 + 6) * 4
    assert re.match(r"20 tokens, [\d.,]+ a second; cache: ", last)
    assert last.endswith(
        f"{kept / 1000:.2f} kB for 23 tokens, {whole / 1000:.2f} kB if keys and values were kept for every head"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "prompt_tokens is empty"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1.0; expected at least 0"),
        (["--prompt", "a", "--temperature", "inf"], "temperature is inf; expected at least 0, and finite"),
        (["--prompt", "a", "--seed", "-1"], "seed is -1; expected an integer from 0 to"),
        (["--prompt", "a", "--max-new-tokens", "-1"], "max_new_tokens is -1; expected an integer of at least 0"),
        (["--prompt", "a", "--max-new-tokens", str(10**15)], f"--max-new-tokens is {10**15}; expected a cache for"),
        (["--prompt", "a", "--max-new-tokens", str(10**30)], f"--max-new-tokens is {10**30}; expected a cache for"),
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


def test_a_folder_without_a_model_is_one_line(tmp_path):
    result = run(tmp_path, "--prompt", "a")
    assert result.exit_code == 2
    assert "config.json: no such file" in result.stderr


def test_the_folder_of_a_training_run_is_no_model(tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"")
    result = run(tmp_path, "--prompt", "a")
    assert result.exit_code == 2
    assert "is the folder of a training run; expected a model, such as its model-N" in result.stderr
