"""Processes that work together, as one of them sees them; all that passes between them is counted here.

torchrun starts them: ``torchrun --standalone --nproc-per-node 4 program.py``. In the program::

    with connect(timeout=30) as ranks:
        layer = TensorParallelAttention(layer, ranks)
        y = layer(hidden_states)

A rank is a process; it has a GPU to itself, or a share of the CPU.
"""

import hashlib
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

import mla_edu
from mla_edu.validation import shown

Network = Literal["gloo", "nccl"]
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
CONTROL = "control"  # bytes by which ranks agree on what to do, and no part of a model


class RankLost(RuntimeError):
    """A rank has ended, or did not come in time: the others cannot go on."""


class Ranks:
    """The ranks that work together; ``connect`` makes it.

    Two collectives carry everything: each rank's tensor to all, and of each rank's tensor a part to each. Sums are made
    where they are needed, in the order of the ranks, so that all ranks have the same bits. No gradient flows back.

    Args:
        rank: of this process, from 0.
        size: how many there are.
        timeout: seconds that a collective may take.
        device: where this rank computes.

    Attributes:
        received: bytes that this rank has got from the others so far, by what they were.
        seconds: that this rank has spent in collectives so far, waiting for the others included; NCCL's return at once.
    """

    def __init__(self, rank: int, size: int, timeout: float, device: torch.device):
        self.rank, self.size, self.timeout, self.device = rank, size, timeout, device
        self.received: Counter[str] = Counter()
        self.seconds = 0.0

    @torch.no_grad()
    def all_gather(self, x: Shaped[Tensor, "..."], what: str) -> Shaped[Tensor, "ranks ..."]:
        """The tensors of all ranks, which have one shape and dtype.

        Args:
            x: what this rank gives.
            what: the name by which ``received`` counts it.

        Raises:
            RankLost: a rank has ended, or did not come in time.
        """
        out = x.new_empty(self.size, *x.shape)
        parts = list(_as_bytes(out).unbind())
        self._pass(lambda: dist.all_gather(parts, _as_bytes(x.contiguous()[None])[0]), what)
        self.received[what] += (self.size - 1) * x.nbytes
        return out

    @torch.no_grad()
    def all_to_all(self, x: Shaped[Tensor, "ranks ..."], what: str) -> Shaped[Tensor, "ranks ..."]:
        """From each rank the part that is meant for this one; the arguments and errors are those of ``all_gather``.

        Args:
            x: a part for each rank, its own included.
            what: the name by which ``received`` counts it.
        """
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._pass(lambda: dist.all_to_all_single(_as_bytes(out), _as_bytes(x.contiguous())), what)
        self.received[what] += x.nbytes - x[0].nbytes
        return out

    def reduce_scatter(self, x: Float[Tensor, "ranks ..."], what: str) -> Float[Tensor, "..."]:
        """The sum over the ranks of their parts for this one; the arguments are those of ``all_to_all``."""
        return self.all_to_all(x, what).sum(dim=0)

    def all_reduce(self, x: Float[Tensor, "..."], what: str) -> Float[Tensor, "..."]:
        """The sum of all ranks' tensors: each rank adds up a part of the numbers, and gives it to all.

        What does not divide by the ranks is padded: received are 2 (W - 1) W-th parts of the numbers, rounded up each.
        """
        flat = x.flatten()
        padded = torch.cat((flat, flat.new_zeros(-len(flat) % self.size)))
        part = self.reduce_scatter(padded.unflatten(0, (self.size, -1)), what)
        return self.all_gather(part, what).flatten()[: len(flat)].view(x.shape)

    def gather_values(self, value: Any) -> list[Any]:
        """What each rank gives, in the order of the ranks: anything that JSON can say."""
        own = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)
        lengths = self.all_gather(torch.tensor([len(own)], device=self.device), CONTROL).flatten().tolist()
        padded = torch.cat((own, own.new_zeros(max(lengths) - len(own))))
        rows = self.all_gather(padded, CONTROL).tolist()
        return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths, strict=True)]

    def check_same(self, **values: object) -> None:
        """Compare values between all ranks, by a digest; call it on all of them.

        Raises:
            ValueError: a value differs, on every rank; names it, and what two ranks have.
        """
        texts = {name: repr(value) for name, value in values.items()}
        digest = hashlib.sha256(json.dumps(texts).encode()).digest()
        digests = self.all_gather(torch.tensor(list(digest), dtype=torch.uint8, device=self.device), CONTROL)
        if bool((digests == digests[0]).all()):
            return
        first, *others = self.gather_values(texts)
        for rank, other in enumerate(others, start=1):
            for name in [*first, *other]:
                here, there = first.get(name, "not given"), other.get(name, "not given")
                if here != there:
                    raise ValueError(f"{name} is {here} on rank 0 and {there} on rank {rank}; expected the same on all")

    def _pass(self, collective: Callable[[], Any], what: str) -> None:
        start = time.perf_counter()
        try:
            collective()
            self.seconds += time.perf_counter() - start
        except RuntimeError as error:
            raise RankLost(
                f"rank {self.rank} of {self.size} exchanged {what}, and a rank has ended, or did not come within "
                f"{self.timeout:g} s: {_reason(error)}"
            ) from None


def check_ranks(ranks: object) -> None:
    """Raise ``TypeError`` unless ``ranks`` is what ``connect`` gives."""
    if not isinstance(ranks, Ranks):
        raise TypeError(f"ranks is a {type(ranks).__name__}; expected a Ranks, as connect() gives it")


def _as_bytes(x: Tensor) -> Tensor:
    """A contiguous tensor as ``[first dimension, bytes]``: what travels need not be understood on its way."""
    return x.view(len(x), -1).view(torch.uint8) if x.numel() else x.new_empty(len(x), 0, dtype=torch.uint8)


def _reason(error: Exception) -> str:
    """The first sentence of an error, without the place in torch that it comes from."""
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S+:\d+\] ", "", first_line).split(". ")[0]


@contextmanager
def connect(timeout: float = 60.0, network: Network | None = None) -> Iterator[Ranks]:
    """Meet the other processes that torchrun has started, and part from them at the end.

    Args:
        timeout: seconds that the meeting, and each collective after it, may take.
        network: that carries the bytes; None for NCCL where the machine has a GPU for each of its ranks, else gloo.

    Raises:
        ValueError: ``timeout`` or ``network`` is not allowed, or torchrun has not started this process, or the ranks
            have different versions of the package or of torch.
        RankLost: not all have come in time.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ValueError(f"timeout is {timeout!r}; expected a positive number of seconds")
    if network not in (None, "gloo", "nccl"):
        raise ValueError(f"network is {network!r}; expected 'gloo' or 'nccl'")
    for name in ENVIRONMENT:
        if name not in os.environ:
            raise ValueError(f"{name} is not in the environment; expected torchrun to start this process")
    size = _whole("WORLD_SIZE", 1)
    rank = _whole("RANK", 0, size - 1)
    _whole("MASTER_PORT", 0, 2**16 - 1)
    has_gpus = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", size))
    if network == "nccl" and not has_gpus:
        raise ValueError(f"network is 'nccl'; expected a GPU for each rank, {torch.cuda.device_count()} are there")
    network = network or ("nccl" if has_gpus else "gloo")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank))) if network == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(network, timeout=timedelta(seconds=timeout))
    except RuntimeError as error:
        raise RankLost(
            f"rank {rank} of {size}: not all ranks have come within {timeout:g} s: {_reason(error)}"
        ) from None
    try:
        ranks = Ranks(rank, size, timeout, device)
        ranks.check_same(mla_edu=mla_edu.__version__, torch=torch.__version__, timeout=timeout)
        yield ranks
    finally:
        dist.destroy_process_group()


def _whole(name: str, lowest: int, highest: int = 2**31 - 1) -> int:
    """A number that torchrun writes into the environment."""
    text = os.environ[name]
    number = int(text) if re.fullmatch(r"\d{1,10}", text, flags=re.ASCII) else -1
    if not lowest <= number <= highest:
        raise ValueError(
            f"{name} in the environment is {shown(text)}; expected {lowest} to {highest}, as torchrun says"
        )
    return number
