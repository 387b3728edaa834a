import math

import pytest
import torch

import mla_edu.train.loop as module
from mla_edu.models import Decoder, ModelConfig
from mla_edu.testing import randomize, relative_error
from mla_edu.train.loop import draw_windows, next_token_loss, train
from mla_edu.train.muon import Muon

TEXT = torch.tensor(list(b"the cat sat on the mat. " * 40), dtype=torch.uint8)
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
CONFIG = ModelConfig(vocab_size=256, hidden_size=32, intermediate_size=85, layers=["gqa", "gqa"], gqa=HEADS)
SMALL = {"num_steps": 40, "batch_size": 4, "seq_len": 16}


@pytest.fixture
def model():
    return Decoder(CONFIG)


def test_loss_falls_from_knowing_nothing_to_knowing_the_text(model):
    losses = train(model, TEXT, **SMALL)
    assert len(losses) == 40
    assert abs(losses[0] - math.log(256)) < 1
    assert losses[-1] < 1


def test_same_seed_gives_the_same_batches(model):
    first = train(model, TEXT, **SMALL | {"num_steps": 1})
    again = Decoder(CONFIG)
    assert train(again, TEXT, **SMALL | {"num_steps": 1}) == first
    assert train(again, TEXT, **SMALL | {"num_steps": 1}, seed=1) != first


def test_frozen_weights_stay(model):
    randomize(model)
    model.requires_grad_(False)
    model.layers[0].self_attn.k_proj.requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, TEXT, **SMALL)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["layers.0.self_attn.k_proj.weight"]


def test_windows_are_pieces_of_the_text():
    windows = draw_windows(torch.arange(100, dtype=torch.uint8), 50, 8, torch.Generator().manual_seed(0))
    assert windows.shape == (50, 9)
    assert (windows.diff() == 1).all()
    assert windows[:, 0].unique().numel() > 20


def test_loss_is_of_the_next_token():
    class Successor(torch.nn.Module):
        def forward(self, tokens):
            return 50.0 * torch.nn.functional.one_hot(tokens + 1, 100)

    windows = torch.arange(10)[None]
    assert next_token_loss(Successor(), windows) < 1e-6
    assert next_token_loss(Successor(), windows.flip(1)) > 10


@pytest.mark.parametrize(("slow", "kept"), [(2, 1), (1, 2)])
def test_faster_number_of_threads_is_kept_and_the_old_one_restored(model, monkeypatch, slow, kept):
    state = {"threads": 2, "now": 0.0}
    history = []

    def set_num_threads(number):
        state["threads"] = number
        history.append(number)

    def perf_counter():
        state["now"] += 10.0 if state["threads"] == slow else 1.0
        return state["now"]

    monkeypatch.setattr(torch, "get_num_threads", lambda: state["threads"])
    monkeypatch.setattr(torch, "set_num_threads", set_num_threads)
    monkeypatch.setattr(module.time, "perf_counter", perf_counter)
    train(model, TEXT, **SMALL)
    *used, restored = history
    assert set(used[:6]) == {1, 2}
    assert set(used[6:]) == {kept}
    assert restored == 2


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "seq_len", "learning_rate"])
def test_numbers_must_be_positive(model, name):
    with pytest.raises(ValueError, match=f"{name} is 0; expected a positive number"):
        train(model, TEXT, **SMALL | {name: 0})


def test_text_shorter_than_a_window_is_refused(model):
    with pytest.raises(ValueError, match="tokens holds 16; expected more than seq_len, 16"):
        train(model, TEXT[:16], **SMALL)


@pytest.mark.parametrize("shape", [(48, 48), (30, 70), (70, 30), (1, 7)])
def test_muon_is_that_of_torch_but_for_the_rounding_of_bf16(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = Muon([ours], lr=0.1), torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0)
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert relative_error(ours - start, theirs - start) < 0.02
