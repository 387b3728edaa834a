"""Training with the module for one token further: what it learns from, what it knows, and a run that goes on."""

import math
import os
import signal

import pytest
import torch

from mla_edu.testing import relative_error
from mla_edu.train.muon import fused_maps
from mla_edu.train.run import Run, active_parameters, train_into
from mla_edu.train.settings import RunConfig

MLA = {
    "num_attention_heads": 3,
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
MODEL = {
    "vocab_size": 256,
    "hidden_size": 24,
    "intermediate_size": 32,
    "layers": ["mla", "mla"],
    "feed_forward": ["dense", "moe"],
    "num_mtp_layers": 1,
    "mla": MLA,
    "moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 7, "n_shared_experts": 1},
}


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A folder that is always named alike, since the names decide what is kept for validation."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"the cat {number} sat on the mat; " * 30)
    return folder.name


@pytest.fixture
def config(text):
    def make(model=None, **train):
        fixed = {"num_steps": 20, "batch_size": 3, "seq_len": 16, "text": [text], "warmup_steps": 3}
        return RunConfig(model=MODEL | (model or {}), train=fixed | {"balance_loss": 0.01, "save_every": 7} | train)

    return make


@torch.no_grad()
def loss_one_by_one(model, windows):
    """The mean of -log p of token i + 2, every position by a pass of its own over the tokens up to i + 1."""
    losses = []
    for window in windows:
        for i in range(len(window) - 2):
            hidden_states = model.hidden_states(window[None, : i + 1])
            further = model.mtp(hidden_states, window[None, 1 : i + 2], model.embed_tokens)
            losses.append(-model.logits(further)[0, -1].log_softmax(-1)[window[i + 2]])
    return torch.stack(losses).mean()


def test_the_loss_is_that_of_the_token_after_the_next(config):
    run = Run(config(num_steps=8, seq_len=9))
    for _ in range(8):  # so that the module knows something
        run.advance()
    windows = run.corpus.train[:30].long().view(3, 10)
    with torch.no_grad():
        _, _, loss = run._loss(windows)
    assert loss.item() < 5 < math.log(256)
    assert abs(loss.item() - loss_one_by_one(run.model, windows).item()) < 1e-4
    assert run.advance()["mtp_loss"] > 0


def gradients(config, **train):
    """Of the first step, of the embedding and of the module, before they are clipped."""
    run = Run(config(clip_norm=1e9, muon_rate=1e-9, adam_rate=1e-9, balance_loss=0.0, **train))
    for _ in range(2):  # the first leaves the last matrices at zero, and the module without a say
        run.advance()
    return run.model.embed_tokens.weight.grad, run.model.mtp.enorm.weight.grad


def test_its_weight_is_what_the_loss_is_multiplied_by(config):
    (none, nothing), (some, half), (more, whole) = (gradients(config, mtp_weight=weight) for weight in (0.0, 0.5, 1.0))
    assert nothing.abs().max() == 0
    assert relative_error(2 * half, whole) < 1e-4
    assert relative_error(2 * (some - none), more - none) < 1e-4
    assert relative_error(some, none) > 1e-2


def test_muon_steps_its_matrices_and_each_map_by_itself(config):
    run = Run(config())
    names = {weight: name for name, weight in run.model.named_parameters()}
    by = {
        kind: {names[weight] for group in optimizer.param_groups for weight in group["params"]}
        for kind, optimizer in run.optimizers.items()
    }
    assert {name for name in by["adamw"] if name.startswith("mtp.")} == {
        *(f"mtp.{norm}.weight" for norm in ("enorm", "hnorm", "norm", "layer.input_layernorm")),
        "mtp.layer.post_attention_layernorm.weight",
        "mtp.layer.self_attn.kv_a_layernorm.weight",
        "mtp.layer.mlp.gate.weight",
    }
    assert {"mtp.eh_proj.weight", "mtp.layer.self_attn.q_proj.weight", "mtp.layer.mlp.experts.down_proj"} <= by["muon"]
    assert sum(map(len, by.values())) == len(names)
    split = {names[weight] for weight in fused_maps(run.model)}
    matrices = ("self_attn.kv_a_proj_with_mqa.weight", "self_attn.kv_b_proj.weight", "mlp.experts.gate_up_proj")
    assert {f"mtp.layer.{matrix}" for matrix in matrices} <= split


def train(folder, config, resume=False, stop_after=None):
    """Train; interrupted as by Ctrl-C after so many steps of the run."""
    lines = []

    def note(line):
        lines.append(line)
        if line["step"] == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    return list(train_into(folder, config, resume=resume, device="cpu", note=note))[-1], lines


def test_ten_steps_and_ten_more_are_twenty_bit_for_bit(tmp_path, config):
    whole, lines = train(tmp_path / "whole", config())
    train(tmp_path / "parts", config(), stop_after=10)
    run, rest = train(tmp_path / "parts", config(), resume=True)
    assert [line["mtp_loss"] for line in rest] == [line["mtp_loss"] for line in lines[10:]]
    for (name, weight), same in zip(whole.model.state_dict().items(), run.model.state_dict().values(), strict=True):
        assert torch.equal(weight, same), name


def test_a_token_meets_the_modules_experts_too(config):
    run = Run(config())
    total = sum(weight.numel() for weight in run.model.parameters())
    assert active_parameters(run.config.model, run.model) == total - 2 * 2 * 3 * 24 * 7


@pytest.mark.parametrize("model", [{}, {"feed_forward": ["dense"] * 2, "moe": None}], ids=["experts", "dense"])
@torch.no_grad()
def test_it_guesses_what_the_model_will_choose(config, model):
    """Far above the share of the model's commonest choice, and not without the token that it is told."""
    run = Run(config(model, num_steps=80))
    with torch.enable_grad():
        for _ in range(80):
            run.advance()
    tokens = run.corpus.validation[:512].long().view(32, 16)
    hidden_states = run.model.hidden_states(tokens)
    chosen = run.model.logits(hidden_states).argmax(-1)[:, 1:]

    def agreement(next_tokens):
        guesses = run.model.logits(run.model.mtp(hidden_states[:, :-1], next_tokens, run.model.embed_tokens))
        return (guesses.argmax(-1) == chosen).double().mean().item()

    commonest = (chosen == chosen.flatten().mode().values).double().mean().item()
    assert commonest < 0.4
    assert agreement(tokens[:, 1:]) > 0.8
    assert agreement(tokens[:, 1:].flip(0).roll(5, dims=1)) < 0.6


def test_a_window_without_a_token_after_the_next_is_refused(config):
    with pytest.raises(ValueError, match="train.seq_len is 1; expected at least 2 for model.num_mtp_layers = 1"):
        config(seq_len=1)
