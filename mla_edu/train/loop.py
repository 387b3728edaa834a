"""Training of a small decoder on a processor: Muon for the matrices of the blocks, AdamW for all else."""

import math
import time

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mla_edu.layers.inputs import check_tensor
from mla_edu.train.muon import Muon
from mla_edu.validation import shown

TIMED_STEPS = 3  # with each number of threads, before the faster one is kept


def next_token_loss(model: nn.Module, windows: Int[Tensor, "batch window"]) -> Tensor:
    """Mean cross-entropy of each next token, in nats."""
    logits = model(windows[:, :-1])
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def draw_windows(
    tokens: UInt8[Tensor, " tokens"], num_windows: int, seq_len: int, generator: torch.Generator
) -> Int[Tensor, "windows window"]:
    """Pieces of ``seq_len`` tokens and the one that follows, from random places."""
    starts = torch.randint(len(tokens) - seq_len, (num_windows, 1), generator=generator)
    return tokens[starts + torch.arange(seq_len + 1)].long()


def train(
    model: nn.Module,
    tokens: UInt8[Tensor, " tokens"],
    *,
    num_steps: int,
    batch_size: int = 8,
    seq_len: int = 128,
    learning_rate: float = 0.02,
    seed: int = 0,
) -> list[float]:
    """Train what in ``model`` requires a gradient; returns the loss of each step, in nats per token.

    The learning rate falls linearly to zero. The first steps are timed with torch's threads and with one in turn, and
    the faster is kept: where another process holds a core, two threads can be tens of times slower than one.

    Args:
        model: takes tokens, gives logits.
        tokens: the text that it learns from, one byte each.
        num_steps: batches that it sees.
        batch_size: windows of text in a batch.
        seq_len: tokens of a window whose next token is to be known.
        learning_rate: of Muon, for matrices within the blocks. AdamW has a quarter of it.
        seed: of the places in ``tokens`` that the batches are drawn from.

    Raises:
        TypeError: ``tokens`` is no tensor.
        ValueError: a number is not positive, or ``tokens`` is shorter than a window.
    """
    check_tensor("tokens", tokens)
    numbers = {"num_steps": num_steps, "batch_size": batch_size, "seq_len": seq_len, "learning_rate": learning_rate}
    for name, value in numbers.items():
        kinds = int | float if name == "learning_rate" else int
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
            raise ValueError(f"{name} is {shown(value)}; expected a positive number")
    if len(tokens) <= seq_len:
        raise ValueError(f"tokens holds {len(tokens)}; expected more than seq_len, {seq_len}")

    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if name.startswith("layers.") and parameter.ndim == 2 else others).append(parameter)
    optimizers = [
        Muon(matrices, lr=learning_rate),
        torch.optim.AdamW(others, lr=learning_rate / 4, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, num_steps) for o in optimizers]
    generator = torch.Generator().manual_seed(seed)

    threads = torch.get_num_threads()
    fastest = {threads: math.inf, 1: math.inf}  # seconds of the fastest step with so many threads
    losses = []
    try:
        for step in range(num_steps):
            timed = step < TIMED_STEPS * len(fastest)
            used = list(fastest)[step % len(fastest)] if timed else min(fastest, key=lambda number: fastest[number])
            torch.set_num_threads(used)
            start = time.perf_counter()
            loss = next_token_loss(model, draw_windows(tokens, batch_size, seq_len, generator))
            model.zero_grad()
            loss.backward()
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            fastest[used] = min(fastest[used], time.perf_counter() - start)
            losses.append(loss.item())
    finally:
        torch.set_num_threads(threads)
    return losses
