"""Layers on several ranks of this machine: the bytes that pass beside those of the cost model, and the time of a step.

torchrun starts this module once for each number of ranks. Every result is compared with that of one process before it
is timed.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mla_edu.bench.run as bench
from mla_edu.bench.distributed_results import DistributedResults, Exchange, Link, Scheme
from mla_edu.bench.grid import LITE
from mla_edu.cache import PagedLatentCache
from mla_edu.cache.pages import PageTable
from mla_edu.config import MLAConfig
from mla_edu.cost import all_reduce_bytes, context_bytes, gather_bytes
from mla_edu.distributed import (
    ContextLatentCache,
    ContextParallelAttention,
    DataParallelMLP,
    Meeting,
    Ranks,
    TensorParallelAttention,
    connect,
)
from mla_edu.distributed.ranks import CONTROL
from mla_edu.layers.mla import MultiHeadLatentAttention
from mla_edu.layers.mlp import SwiGLU
from mla_edu.testing import randomize, relative_error
from mla_edu.validation import check_integer

SMALL = LITE.model_copy(update={"hidden_size": 96, "num_attention_heads": 4, "kv_lora_rank": 16, "v_head_dim": 8})
INNER = 2816  # of the MLP: DeepSeek-V2-Lite's two shared experts
TOKENS = (1, 8)
CACHED = 4096
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
PAGE_SIZE = 48  # divides by 2, 3 and 4 ranks
BOUND = 0.05  # on the error in bf16
TIMEOUT = 120.0
MANY_BYTES = 2**24
SCHEMES: tuple[Scheme, ...] = ("tensor", "data", "context", "before absorption")
Step = Callable[[], Tensor]


def run(sizes: Sequence[int] = (2, 4), *, toy: bool = False, rounds: int = 5) -> DistributedResults:
    """Measure layers on each of some numbers of ranks, over NCCL where there is a GPU for each, else over gloo.

    Args:
        sizes: numbers of ranks.
        toy: a tiny layer and few tokens: the times mean nothing.
        rounds: of each step.

    Raises:
        ValueError: a number is out of range.
        RuntimeError: torchrun, or a rank that it has started, has failed; with the last line of what it says.
    """
    check_integer("rounds", rounds)
    for ranks in sizes:
        check_integer("ranks", ranks, highest=(SMALL if toy else LITE).num_attention_heads)
    with tempfile.TemporaryDirectory() as parent:
        parts = [_launch(ranks, Path(parent) / "found.json", toy, rounds) for ranks in sizes]
    whole = parts[0]
    whole["links"] = [link for part in parts for link in part["links"]]
    whole["exchanges"] = [each for part in parts for each in part["exchanges"]]
    return DistributedResults.model_validate(whole)


def _launch(ranks: int, path: Path, toy: bool, rounds: int) -> dict[str, Any]:
    arguments = ["-m", "mla_edu.bench.distributed", str(path), str(int(toy)), str(rounds)]
    command = [*TORCHRUN, "--log-dir", str(path.parent), "--nproc-per-node", str(ranks), *arguments]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as torchrun:
        try:
            _, errors = torchrun.communicate()
        except BaseException:
            torchrun.terminate()  # so that it ends its ranks, which would outlive it if it were killed
            torchrun.wait()
            raise
    if torchrun.returncode:
        lines = [line for line in errors.splitlines() if re.search(r"(Error|RankLost|error): ", line)]
        raise RuntimeError(f"{ranks} ranks failed: {(lines or ['torchrun has not said why'])[0]}")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


class Bench:
    """The measurements of one rank.

    Args:
        ranks: that take part.
        toy: a tiny layer and few tokens.
        rounds: of each step.
    """

    def __init__(self, ranks: Ranks, toy: bool, rounds: int):
        self.ranks, self.rounds = ranks, rounds
        self.cached, self.many_bytes = (24, 2**16) if toy else (CACHED, MANY_BYTES)
        self.config: MLAConfig = SMALL if toy else LITE
        like: Any = {"dtype": torch.bfloat16, "device": ranks.device}
        self.like = like
        self.layer = randomize(MultiHeadLatentAttention(self.config, **like)).requires_grad_(False)
        self.mlp = randomize(SwiGLU(self.config.hidden_size, 40 if toy else INNER, **like)).requires_grad_(False)

    def exchange(self, scheme: Scheme, tokens: int) -> Exchange:
        """One step under one scheme.

        Raises:
            RuntimeError: its result is not that of one process.
        """
        x = self._draw(tokens, 1, self.config.hidden_size)
        dealt, alone, cache_bytes = self._steps(scheme, x)
        error = relative_error(dealt().float(), alone().float())
        if not error < BOUND:
            raise RuntimeError(f"{scheme} on {self.ranks.size} ranks: the error is {error:.1e}; expected below {BOUND}")
        self.ranks.received.clear()
        dealt()
        received = {name: count for name, count in self.ranks.received.items() if name != CONTROL}
        seconds, exchanging = self._time(dealt)
        return Exchange(
            scheme=scheme,
            ranks=self.ranks.size,
            tokens=tokens,
            received=received,
            formula=self._formula(scheme, tokens),
            cache_bytes=cache_bytes,
            error=error,
            seconds=seconds,
            exchanging=exchanging if self.ranks.device.type == "cpu" else None,
            one_process=self._time(alone if self.ranks.rank == 0 else None)[0],
        )

    def link(self) -> Link:
        """Gathers of one byte and of many."""
        others = max(self.ranks.size - 1, 1)  # a rank alone passes all to itself
        return Link(
            ranks=self.ranks.size,
            latency_seconds=self._gather_seconds(1),
            bytes_per_s=others * self.many_bytes / self._gather_seconds(self.many_bytes),
        )

    def _gather_seconds(self, num_bytes: int) -> float:
        x = torch.zeros(num_bytes, dtype=torch.uint8, device=self.ranks.device)
        return min(self._time(lambda: self.ranks.all_gather(x, CONTROL))[0])

    def _draw(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(*shape, generator=generator).to(**self.like)

    def _steps(self, scheme: Scheme, x: Tensor) -> tuple[Step, Step, int | None]:
        """The step of all ranks, that of one process, and the bytes of a rank's cache."""
        ranks, tokens = self.ranks, len(x)
        if scheme == "data":
            meeting = Meeting(ranks)
            met = DataParallelMLP(self.mlp, meeting)
            return lambda: met(x[: meeting.agree(tokens)]), lambda: self.mlp(x), None
        whole = PagedLatentCache(self.config, self._table(tokens), torch.bfloat16)
        layer: TensorParallelAttention | ContextParallelAttention
        cache: PagedLatentCache
        if scheme == "tensor":
            layer = TensorParallelAttention(self.layer, ranks)
            cache = PagedLatentCache(self.config, self._table(tokens), torch.bfloat16)
        else:
            layer = ContextParallelAttention(self.layer, ranks, before_absorption=scheme == "before absorption")
            cache = ContextLatentCache(layer.config, self._table(tokens), ranks, torch.bfloat16)
        c_kv = self._draw(tokens, self.cached, self.config.kv_lora_rank)
        k_pe = self._draw(tokens, self.cached, self.config.qk_rope_head_dim)
        for each in (whole, cache):
            each.append(c_kv, k_pe)
        return (
            lambda: self._step(layer, x, cache),
            lambda: self._step(self.layer, x, whole),
            cache.nbytes,
        )

    def _table(self, tokens: int) -> PageTable:
        return PageTable(tokens * (self.cached // PAGE_SIZE + 1), PAGE_SIZE, tokens, device=self.ranks.device)

    def _step(self, layer: Callable[..., Tensor], x: Tensor, cache: PagedLatentCache) -> Tensor:
        out = layer(x, cache)
        cache.truncate(self.cached)
        return out

    def _formula(self, scheme: Scheme, tokens: int) -> dict[str, int]:
        config, size = self.config, self.ranks.size
        if scheme == "data":
            return {"mlp": gather_bytes(config, size, tokens)}
        sums = {"attention": all_reduce_bytes(config, size, tokens)}
        if scheme == "tensor":
            return sums
        parts = context_bytes(config, size, tokens, before_absorption=scheme == "before absorption")
        return {"queries": parts.queries, "lse": parts.lse, "outputs": parts.outputs} | sums

    def _time(self, call: Callable[[], Any] | None) -> tuple[list[float], list[float]]:
        """Seconds of each round of a call, and of these in collectives: the most on any rank; None waits."""
        rounds = []
        for _ in range(self.rounds + 1):
            self.ranks.check_same(ready=True)
            before, start = self.ranks.seconds, time.perf_counter()
            if call is not None:
                call()
            if self.ranks.device.type == "cuda":
                torch.cuda.synchronize()
            own = time.perf_counter() - start, self.ranks.seconds - before
            rounds.append([max(each) for each in zip(*self.ranks.gather_values(own), strict=True)])
        seconds, exchanging = zip(*rounds[1:], strict=True)  # the first warms up
        return list(seconds), list(exchanging)


def main(path: str, toy: str, rounds: str) -> None:
    """One rank's part of a run; the first writes what all have found into a file."""
    torch.set_num_threads(1)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with connect(timeout=TIMEOUT) as ranks, torch.no_grad():
        measuring = Bench(ranks, bool(int(toy)), int(rounds))
        link = measuring.link()
        exchanges = [measuring.exchange(scheme, tokens) for tokens in TOKENS for scheme in SCHEMES]
        on_gpu = ranks.device.type == "cuda"
        found = DistributedResults(
            machine=bench.describe_gpu(ranks.device) if on_gpu else bench.describe_cpu(),
            versions=bench.versions(),
            date=bench.today(),
            toy=bool(int(toy)),
            network="nccl" if on_gpu else "gloo",
            threads=torch.get_num_threads(),
            processors=os.cpu_count() or 1,
            load_average=load,
            cached=measuring.cached,
            links=[link],
            exchanges=exchanges,
        )
        if ranks.rank == 0:
            Path(path).write_text(found.model_dump_json(exclude_none=True), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
