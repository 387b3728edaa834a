"""A whole model beside that of transformers: the same text and the same loss, or no time."""

import pytest
import torch
import yaml
from typer.testing import CliRunner

from mla_edu import cli
from mla_edu.bench import model as bench
from mla_edu.bench.libraries import Unsupported
from mla_edu.models import Decoder, ModelConfig

MODEL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "layers": ["mla", "mla"],
    "feed_forward": ["dense", "moe"],
    "mla": {
        "num_attention_heads": 2,
        "q_lora_rank": None,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 4,
    },
    "moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_shared_experts": 1},
}
MAMBA = {"num_heads": 4, "head_dim": 8, "state_size": 5}
SMALL = {"threads": 1, "num_cached": 9, "num_new": 3, "rounds": (2, 3)}


def write(folder, model=MODEL):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"model": model, "train": {"num_steps": 1, "batch_size": 2, "seq_len": 6}}))
    return path


def test_the_models_agree_are_timed_and_written(tmp_path):
    threads = torch.get_num_threads()
    found = bench.run(write(tmp_path), **SMALL)
    assert (found.family, found.num_cached, found.config) == ("deepseek_v3", 9, "small.yaml")
    assert found.num_parameters == sum(weight.numel() for weight in Decoder(ModelConfig(**MODEL)).parameters())
    assert (found.training.rounds, found.generation.rounds) == (2, 3)
    assert found.machine.threads == 1 and torch.get_num_threads() == threads
    assert set(found.generation_shares) == {"attention", "feed-forward", "norms", "embedding and head", "rest"}
    assert sum(found.generation_shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in found.generation_shares.values())
    path = found.write(tmp_path)
    assert path.name == "model-cpu.json"
    assert bench.ModelResults.model_validate_json(path.read_text()) == found


def spoil(monkeypatch, name):
    """Ours with one weight moved after it was saved for transformers."""
    saved = bench._as_transformers

    def as_transformers(ours, path):
        found = saved(ours, path)
        with torch.no_grad():
            dict(ours.named_parameters())[name].mul_(-1)
        return found

    monkeypatch.setattr(bench, "_as_transformers", as_transformers)


def test_a_model_that_writes_something_else_is_not_timed(tmp_path, monkeypatch):
    spoil(monkeypatch, "lm_head.weight")
    monkeypatch.setattr(bench, "rates", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(AssertionError, match=r"ours writes \[.*\]; expected \[.*\], as transformers"):
        bench.run(write(tmp_path), **SMALL)


def test_a_model_that_learns_something_else_is_not_timed(tmp_path, monkeypatch):
    spoil(monkeypatch, "layers.1.self_attn.kv_b_proj.weight")
    monkeypatch.setattr(bench, "check_same_text", lambda pair: None)
    with pytest.raises(AssertionError, match="the loss of ours is .*, as transformers"):
        bench.run(write(tmp_path), **SMALL)


def test_a_call_of_either_finds_the_same_cache_again(tmp_path, monkeypatch):
    pairs = []
    monkeypatch.setattr(bench, "check_same_text", pairs.append)
    bench.run(write(tmp_path), **SMALL)
    ((ours, theirs),) = pairs
    assert ours() == ours() == theirs() == theirs()
    assert len(set(ours())) > 1


def test_rates_are_medians_of_rounds_in_which_both_take_turns(monkeypatch):
    now, taken, turns = [0.0], {"ours": [9, 1, 2, 3], "transformers": [9, 4, 4, 9]}, []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def rival(name):
        def call():
            turns.append(name)
            now[0] += taken[name].pop(0)

        return call

    found = bench.rates(bench.Pair(rival("ours"), rival("transformers")), 12, 3)
    assert (found.ours, found.transformers) == (6, 3)
    assert found.ratio == 3  # of 4, 2 and 3
    assert found.ratio_of_fastest == 4
    assert turns == ["transformers", "ours", "ours", "transformers"] * 2


def test_a_model_that_transformers_has_not_is_refused(tmp_path):
    mixed = {**MODEL, "layers": ["mla", "mamba2"], "mamba2": MAMBA}
    with pytest.raises(ValueError, match=r"small.yaml: transformers has no such model; expected layers of MLA"):
        bench.run(write(tmp_path, mixed), **SMALL)


def test_without_transformers_it_says_what_to_install(tmp_path, monkeypatch):
    def missing():
        raise Unsupported("not installed: pip install 'mla-edu[hf]'")

    monkeypatch.setattr(bench, "probe_transformers", missing)
    with pytest.raises(ImportError, match=r"beside that of transformers: not installed: pip install 'mla-edu\[hf\]'"):
        bench.run(write(tmp_path), **SMALL)


def command(*arguments):
    return CliRunner(env={"NO_COLOR": "1"}).invoke(cli.app, ["bench", "model", *map(str, arguments)])


def test_the_command_prints_and_writes(tmp_path, monkeypatch):
    whole = bench.run
    monkeypatch.setattr(bench, "run", lambda path, threads: whole(path, **SMALL | {"threads": threads}))
    result = command(write(tmp_path), "--threads", 1, "--results", tmp_path)
    assert result.exit_code == 0, result.output
    assert "generation behind 9 tokens" in result.output and "as deepseek_v3 in transformers" in result.output
    assert "a generated token of ours: " in result.output and (tmp_path / "model-cpu.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.yaml"], "no.yaml"),
        (["no.yaml", "--results", "/no/such"], "--results is /no/such; expected a folder that exists"),
        (["no.yaml", "--threads", "0"], "--threads"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    result = command(*arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
