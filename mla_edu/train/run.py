"""A training run: from a YAML file to a folder with checkpoints, a log and a model that others can load."""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mla_edu.config import Mamba2Config
from mla_edu.layers.moe import MixtureOfExperts, expert_load, sequence_balance_loss
from mla_edu.models.config import ModelConfig
from mla_edu.models.decoder import Decoder
from mla_edu.train.corpus import Corpus, standard_library, text_files
from mla_edu.train.loop import draw_windows
from mla_edu.train.muon import optimizers_of
from mla_edu.train.scores import LargestScore
from mla_edu.train.settings import RunConfig
from mla_edu.train.state import (
    LOCK,
    PARTIAL,
    STATE,
    check_folder,
    check_same_run,
    keep_log,
    load_state,
    locked,
    need_packages,
    read_facts,
    save_state,
)
from mla_edu.train.threads import TIMED_STEPS, thread_count, time_threads

CONFIG, LOG = "config.json", "log.jsonl"
STOPPING = b"saving after this step; Ctrl-C again gives that up\n"
Line = dict[str, Any]


class Run:
    """A model on its way, step by step.

    The text that a step sees is a function of seed and step alone, so a run that goes on where another stopped does
    what one run would have done: bit for bit on a CPU with the same number of threads, which a checkpoint remembers.

    Args:
        config: the model, and how it learns.
        device: where; None for torch's default.

    Attributes:
        step: steps taken.
        mixed: whether products are taken in bf16: on a GPU. The weights stay float32.
        threads: of torch, with which ``train_into`` trains.

    Raises:
        FileNotFoundError: a text is missing.
        ValueError: the text is shorter than a window, or the model has no token for each byte.
    """

    def __init__(self, config: RunConfig, device: torch.device | str | None = None):
        self.config = config
        train = config.train
        if config.model.vocab_size < 256:
            raise ValueError(f"model.vocab_size is {config.model.vocab_size}; expected at least 256, one for each byte")
        self.corpus: Corpus = text_files(train.text) if train.text else standard_library()
        for part, tokens in (("text", self.corpus.train), ("text for validation", self.corpus.validation)):
            if len(tokens) <= train.seq_len:
                raise ValueError(f"the {part} has {len(tokens)} bytes; expected more than seq_len, {train.seq_len}")
        try:
            self.model = Decoder(config.model, seed=train.seed, device=device)
        except (RuntimeError, TypeError) as error:  # torch, of memory or of a number that it cannot hold
            raise ValueError(f"model has sizes for which there is no memory: {_first_line(error)}") from error
        self.optimizers = optimizers_of(self.model, train.muon_rate, train.adam_rate)
        self.experts = [module for module in self.model.modules() if isinstance(module, MixtureOfExperts)]
        self.step = 0
        self.mixed = self.model.embed_tokens.weight.device.type == "cuda"
        self.threads = train.threads or torch.get_num_threads()
        self._fixed = {
            "active_parameters": active_parameters(config.model, self.model),
            "cache_bytes_per_token": cache_bytes_per_token(config.model),
        }

    def advance(self) -> Line:
        """Take one step; returns its line of the log."""
        train, start = self.config.train, time.perf_counter()
        loss, further, largest_score = self._gradients()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_norm)
        if not math.isfinite(norm):
            raise ValueError(f"step {self.step}: the gradient is {norm.item()}; expected a finite one: lower the rates")
        factor = train.rate(self.step)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.step()
        loads = [self._balanced(layer) for layer in self.experts]
        self.step += 1
        seconds = time.perf_counter() - start
        return {
            "step": self.step,
            "loss": loss.item(),
            "bits_per_byte": loss.item() / math.log(2),
            **({} if further is None else {"mtp_loss": further.item()}),
            "learning_rate": train.muon_rate * factor,
            "gradient_norm": norm.item(),
            "tokens_per_second": train.batch_size * train.seq_len / seconds,
            "largest_score": largest_score,
            **({"expert_load": max(loads)} if loads else {}),
            **self._fixed,
        }

    def _gradients(self) -> tuple[Tensor, Tensor | None, float]:
        """Those of the next step, in the weights' ``grad``; returns its loss, the MTP loss and its largest score."""
        train = self.config.train
        generator = torch.Generator().manual_seed(train.seed * 1_000_003 + self.step)
        windows = draw_windows(self.corpus.train, train.batch_size, train.seq_len, generator)
        self.model.zero_grad()
        with LargestScore(self.model) as largest:
            loss, balance, further = self._loss(windows.to(self.model.embed_tokens.weight.device))
        total = loss + train.balance_loss * balance if self.experts else loss
        (total if further is None else total + train.mtp_weight * further).backward()
        return loss, further, largest.value

    def rehearse(self) -> None:
        """Compute the gradients of the next step and throw them away: what cannot be trained shows at once.

        Raises:
            ValueError: there is no memory for a step.
        """
        train = self.config.train
        try:
            self._gradients()
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"batch_size is {train.batch_size} and seq_len {train.seq_len}; expected a step for which there is "
                f"memory: {_first_line(error)}"
            ) from error
        self.model.zero_grad()

    def choose_threads(self) -> dict[int, float]:
        """Set ``threads`` where the configuration does not: torch's own number or one, whichever is faster.

        Gradients are computed and thrown away: no weight moves, and each step draws what it would have drawn.

        Returns:
            The seconds of a step with each number of threads; empty where there is nothing to choose.
        """
        own, train = torch.get_num_threads(), self.config.train
        if train.threads or own == 1 or self.model.embed_tokens.weight.device.type != "cpu":
            return {}
        found = time_threads(self._gradients, (own, 1), min(TIMED_STEPS, train.num_steps))
        self.threads = min(found, key=lambda number: found[number])
        return found

    def _loss(self, windows: Int[Tensor, "batch window"]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cross-entropy in nats, how uneven the experts are used, 1 where they are used evenly, and the MTP loss.

        The last is the mean cross-entropy of tokens i + 2, from the hidden states of tokens i and from tokens i + 1
        (DeepSeek-V3 report, eq. 21 to 24); None where the model has no module for it.
        """
        model, guesses = self.model, None
        with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=self.mixed):
            hidden_states = model.hidden_states(windows[:, :-1])
            logits = model.logits(hidden_states)
            if model.mtp is not None:
                guesses = model.logits(model.mtp(hidden_states[:, :-1], windows[:, 1:-1], model.embed_tokens))
        loss = cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        further = None if guesses is None else cross_entropy(guesses.float().flatten(0, 1), windows[:, 2:].flatten())
        balance = loss.new_zeros(())
        for layer in self.experts:
            assert layer.routing is not None
            balance = balance + sequence_balance_loss(layer.routing, len(windows)) / len(self.experts)
        return loss, balance, further

    def _balanced(self, layer: MixtureOfExperts) -> float:
        """Moves the bias of a layer's router; returns the largest load over the mean."""
        assert layer.routing is not None
        load = expert_load(layer.routing)
        if self.config.train.bias_rate and layer.gate.e_score_correction_bias is not None:
            layer.gate.balance(load, self.config.train.bias_rate)
        return (load.max() / load.float().mean()).item()

    @torch.no_grad()
    def validation_loss(self, num_windows: int = 32) -> float:
        """In nats per byte, on text that is never learnt from, always the same windows."""
        train = self.config.train
        windows = draw_windows(self.corpus.validation, num_windows, train.seq_len, torch.Generator().manual_seed(0))
        losses = [self._loss(part.to(self.model.embed_tokens.weight.device))[0] for part in windows.split(8)]
        return torch.stack(losses).mean().item()

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of the run beside its tensors."""
        config = self.config.model_dump(mode="json")
        return {
            "step": self.step,
            "threads": self.threads,
            "config": config,
            "corpus_sha256": self.corpus.sha256,
            "torch": torch.__version__,
        }


def train_into(
    folder: Path,
    config: RunConfig,
    *,
    resume: bool,
    device: torch.device | str | None,
    note: Callable[[Line], None],
    choice: Callable[[int, dict[int, float]], None] | None = None,
) -> Iterator[Run]:
    """Train into a folder: yields the run before its first step and after its last.

    A new run trains with the number of threads that is faster, one that goes on with the number that it began with.

    Args:
        folder: gets ``state.safetensors``, the log ``log.jsonl`` and ``config.json``.
        config: of the run; with ``resume`` it has to be that of the folder, but for ``num_steps``.
        resume: go on with the run in the folder.
        device: where.
        note: gets each line of the log.
        choice: gets the number of threads, where it was chosen, and the seconds of a step with each.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is not asked, or another process trains into it.
        FileNotFoundError: there is nothing to resume.
        ImportError: ``safetensors`` or ``filelock`` is not installed.
        OSError: the folder cannot be written to.
        ValueError: the run in the folder is of another configuration or another text, or has taken more steps.
    """
    state = folder / STATE
    need_packages()
    check_folder(folder)
    if (folder / LOCK).is_file():
        with locked(folder):
            pass  # nobody else does
    for path in (folder / CONFIG, folder / LOG, state.with_suffix(PARTIAL)):
        if path.exists() and not path.is_file():
            raise FileExistsError(f"--out: {path} is no regular file; expected a folder of its own")
    if resume and not state.is_file():
        anew = "delete the folder" if folder.is_dir() else "leave --resume out"
        raise FileNotFoundError(f"--resume: {state} is not there; expected a run that has saved: {anew} to start anew")
    if not resume and folder.exists() and any(path.name != ".lock" for path in folder.iterdir()):
        raise FileExistsError(f"--out: {folder} holds something; expected an empty folder, or --resume")
    run = Run(config, device)
    if resume:
        _facts_of(run, state)  # refused before a step is tried; read again when nobody else can write it
    run.rehearse()
    seconds = {} if resume else run.choose_threads()
    if choice and seconds:
        choice(run.threads, seconds)
    with locked(folder), _interrupt() as asked:
        if resume:
            _continue(run, state)
        (folder / CONFIG).write_text(json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
        keep_log(folder / LOG, run.step)
        yield run
        with (folder / LOG).open("a") as log, thread_count(run.threads):
            while run.step < config.train.num_steps and not asked.is_set():
                line = run.advance()
                log.write(json.dumps(line) + "\n")
                note(line)
                if run.step % config.train.save_every == 0:
                    log.flush()
                    save_state(state, run.model, run.optimizers, run.facts())
            log.flush()
            save_state(state, run.model, run.optimizers, run.facts())
        yield run


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


@contextmanager
def _interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that the step under way is finished; a second one interrupts at once."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        os.write(2, STOPPING)  # print may be at work already, which a signal interrupts
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _facts_of(run: Run, state: Path) -> dict[str, Any]:
    """Those of a checkpoint with which the run can go on."""
    facts = read_facts(state)
    check_same_run(facts, run.facts(), state.parent)
    if (reached := facts["step"]) > (asked := run.config.train.num_steps):
        raise ValueError(f"num_steps is {asked}; expected at least the {reached} that the run has taken")
    return facts


def _continue(run: Run, state: Path) -> None:
    facts = _facts_of(run, state)
    load_state(state, run.model, run.optimizers)
    run.step, run.threads = facts["step"], facts["threads"]


def active_parameters(config: ModelConfig, model: Decoder) -> int:
    """Parameters that a token meets: of the routed experts only those that it takes."""
    total = sum(weight.numel() for weight in model.parameters())
    if config.moe is None:
        return total
    moe = config.moe
    idle = moe.n_routed_experts - moe.num_experts_per_tok
    layers = (config.feed_forward + config.feed_forward[-1:] * config.num_mtp_layers).count("moe")
    return total - layers * idle * 3 * moe.hidden_size * moe.moe_intermediate_size


def cache_bytes_per_token(config: ModelConfig) -> int:
    """What a token leaves in all layers, in bf16; recurrent states grow with no token."""
    parts = (config.part(layer) for layer in range(len(config.layers)))
    return 2 * sum(part.elements_per_token for part in parts if not isinstance(part, Mamba2Config))
