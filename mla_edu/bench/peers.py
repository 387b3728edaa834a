"""The kernels that are measured side by side, each called the way its own library calls it."""

import importlib.util
from functools import partial
from typing import Any

import torch
from torch import Tensor

import mla_edu
from mla_edu.bench import peer_flash, peer_flashinfer, peer_sglang
from mla_edu.bench.grid import LAYER, RANK, ROPE, Case
from mla_edu.bench.libraries import Unsupported, load
from mla_edu.bench.peer import Call, Peer, Prepared, refuse, rows, specification
from mla_edu.bench.results import GLUON, OURS
from mla_edu.bench.transformers_layer import TransformersLayer, probe_transformers
from mla_edu.cache import LatentCache
from mla_edu.config import MLAConfig
from mla_edu.kernels.api import mla_decode
from mla_edu.kernels.problems import Problem
from mla_edu.layers.mla import MultiHeadLatentAttention
from mla_edu.ops.latent import latent_attention


def _probe_ours(_device: torch.device) -> str:
    load("triton", "'mla-edu[kernels]'")
    return mla_edu.__version__


def _prepare_ours(backend: Any, _case: Case, problems: list[Problem]) -> Prepared:
    def prepare_call(problem: Problem) -> Call:
        return lambda: mla_decode(*problem.tensors, **problem.options, backend=backend, return_lse=True)

    return Prepared([prepare_call(each) for each in problems])


def _probe_gluon(device: torch.device) -> str:
    if importlib.util.find_spec("mla_edu.kernels.gluon_launch") is None:
        raise Unsupported("this version has no kernel in Gluon")
    if device.type == "cpu":
        raise Unsupported("needs a GPU")
    return _probe_ours(device)


def _prepare_gluon(case: Case, problems: list[Problem]) -> Prepared:
    prepared = _prepare_ours("gluon", case, problems)
    try:
        prepared.calls[0]()
    except (ImportError, ValueError, TypeError) as error:  # it says itself where it cannot run
        raise Unsupported(str(error).partition("\n")[0]) from None
    return prepared


def _prepare_eager(case: Case, problems: list[Problem]) -> Prepared:
    """The absorbed step in plain PyTorch at its best: the pages are gathered beforehand.

    It rounds the scores to 16 bit, as a layer does, so it is held to a layer's bound.
    """
    refuse(case, fp8=True, ragged=True)

    def prepare_call(problem: Problem) -> Call:
        cached = rows(case, problem)
        return lambda: latent_attention(problem.q, cached, kv_lora_rank=RANK, sm_scale=problem.sm_scale)

    return Prepared([prepare_call(each) for each in problems], [specification(each)[0] for each in problems])


@torch.no_grad()
def _prepare_transformers(case: Case, problems: list[Problem]) -> Prepared:
    """A layer of DeepSeek-V3's sizes with some of its heads, held to ours, absorbed, of the same weights and cache."""
    refuse(case, fp8=True, ragged=True, new_tokens=": without a mask sdpa aligns the first with the first key")
    dtype, device = problems[0].q.dtype, problems[0].q.device
    config = MLAConfig(**LAYER.model_dump() | {"num_attention_heads": case.heads})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = MultiHeadLatentAttention(config, dtype=dtype, device=device)
        shape = (len(problems), case.batch, 1, config.hidden_size)
        hidden_states = torch.randn(shape, dtype=dtype, device=device)
    theirs = TransformersLayer("deepseek_v3", ours)
    cached = [rows(case, each)[:, :-1] for each in problems]
    calls = [theirs.step(*each) for each in zip(hidden_states, cached, strict=True)]
    expected: list[Tensor] = []
    for new, old in zip(hidden_states, cached, strict=True):
        cache = LatentCache(config, case.batch, case.context, dtype=dtype, device=device)
        cache.append(*old.split((RANK, ROPE), dim=-1))
        expected.append(ours(new, cache, "absorbed"))
    return Prepared(calls, expected)


PEERS: dict[str, Peer] = {
    OURS: Peer(_probe_ours, partial(_prepare_ours, "triton")),
    GLUON: Peer(_probe_gluon, _prepare_gluon),
    **{
        f"flashinfer-{name}": Peer(partial(peer_flashinfer.probe, name), partial(peer_flashinfer.prepare, name))
        for name in ("fa3", "fa2")
    },
    "flashmla": Peer(peer_flash.probe_flash_mla, peer_flash.prepare_flash_mla),
    "flash-attention": Peer(peer_flash.probe_flash_attention, peer_flash.prepare_flash_attention),
    "sglang": Peer(peer_sglang.probe, peer_sglang.prepare),
    "eager": Peer(lambda _device: torch.__version__, _prepare_eager),
    "transformers": Peer(lambda _device: probe_transformers(), _prepare_transformers),
}
"""What can be measured, by the names that ``mla-edu bench kernel`` takes.

``ours`` is the Triton kernel and ``gluon`` the Gluon kernel of this package. ``flashinfer-fa3``, ``flashinfer-fa2``,
``flashmla``, ``flash-attention`` and ``sglang`` are kernels of the libraries of these names. ``eager`` is the absorbed
step in plain PyTorch, its pages gathered beforehand, and ``transformers`` a whole attention layer of transformers.
"""
