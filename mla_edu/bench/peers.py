"""The kernels that are measured side by side, each called the way its own library calls it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import mla_edu
from mla_edu.bench.grid import LAYER, PAGE_SIZE, RANK, ROPE, Case
from mla_edu.bench.libraries import Unsupported, load
from mla_edu.bench.transformers_layer import TransformersLayer, probe_transformers
from mla_edu.cache import LatentCache
from mla_edu.config import MLAConfig
from mla_edu.kernels import reference
from mla_edu.kernels.api import mla_decode
from mla_edu.kernels.problems import Problem
from mla_edu.layers.mla import MultiHeadLatentAttention
from mla_edu.ops.latent import latent_attention

# Gives out [batch, s_q, heads, 512], and the natural log-sum-exp [batch, heads, s_q] in fp32 where the kernel has it;
# a whole layer gives its own output.
Call = Callable[[], Tensor | tuple[Tensor, Tensor]]
SGLANG = "sglang.kernels.ops.attention"


class Prepared(NamedTuple):
    """One case, ready to be run again and again: all that the library lets be done before is done."""

    calls: list[Call]  # one per problem, and a CUDA graph can hold it
    # Of each call, to a layer's accuracy in 16 bit. None: what the specification gives, to a kernel's accuracy.
    expected: list[Tensor] | None = None


@dataclass(frozen=True)
class Peer:
    """A kernel, or what does its work. Both functions raise ``Unsupported``."""

    probe: Callable[[torch.device], str]  # the version that would run on a device
    prepare: Callable[[Case, list[Problem]], Prepared]  # problems of one case share block table and lengths


def specification(problem: Problem) -> tuple[Tensor, Tensor]:
    """What the step gives, ``(out, lse)`` in fp32."""
    return reference.decode(
        problem.q.float(),
        problem.kv_cache,
        problem.block_table,
        problem.seq_lens,
        kv_lora_rank=problem.kv_lora_rank,
        sm_scale=problem.sm_scale,
        causal=problem.causal,
    )


def _refuse_fp8(case: Case) -> None:
    if case.dtype == "fp8_mla":
        raise Unsupported("fp8 cache")


def _pages(case: Case, problem: Problem) -> Tensor:
    """Pages of all sequences in order: ``[batch, pages of a sequence]``."""
    return problem.block_table[:, : -(-case.context // PAGE_SIZE)]


def _rows(case: Case, problem: Problem) -> Tensor:
    """A copy of the cached tokens, each sequence's in order: ``[batch, context, 576]``."""
    return problem.kv_cache[_pages(case, problem).long()].flatten(1, 2)[:, : case.context]


def _starts(case: Case, step: int, device: torch.device) -> Tensor:
    """Where each sequence begins, and the last one ends, with ``step`` entries in each."""
    return torch.arange(case.batch + 1, dtype=torch.int32, device=device) * step


def _probe_ours(_device: torch.device) -> str:
    load("triton", "'mla-edu[kernels]'")
    return mla_edu.__version__


def _prepare_ours(_case: Case, problems: list[Problem]) -> Prepared:
    def prepare_call(problem: Problem) -> Call:
        return lambda: mla_decode(
            *problem.tensors,
            kv_lora_rank=problem.kv_lora_rank,
            sm_scale=problem.sm_scale,
            causal=problem.causal,
            backend="triton",
            return_lse=True,
        )

    return Prepared([prepare_call(each) for each in problems])


def _prepare_eager(case: Case, problems: list[Problem]) -> Prepared:
    """The absorbed step in plain PyTorch at its best: the pages are gathered beforehand.

    It rounds the scores to 16 bit, as a layer does, so it is held to a layer's bound.
    """
    _refuse_fp8(case)

    def prepare_call(problem: Problem) -> Call:
        rows = _rows(case, problem)
        return lambda: latent_attention(problem.q, rows, kv_lora_rank=RANK, sm_scale=problem.sm_scale)

    return Prepared([prepare_call(each) for each in problems], [specification(each)[0] for each in problems])


def _probe_flashinfer(backend: str, device: torch.device) -> str:
    version = str(load("flashinfer", "flashinfer-python").__version__)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if backend == "fa3" and capability != (9, 0):
        raise Unsupported("needs a GPU of compute capability 9.0")
    if capability < (8, 0):
        raise Unsupported("needs a GPU of compute capability 8.0 or later")
    return version


def _prepare_flashinfer(backend: str, case: Case, problems: list[Problem]) -> Prepared:
    """One plan for all problems. ``run`` then reads only memory of the wrapper, so a CUDA graph can hold it."""
    _refuse_fp8(case)
    first, device = problems[0], problems[0].q.device
    pages = _pages(case, first)
    workspace = torch.empty(128 * 2**20, dtype=torch.int8, device=device)  # as its documentation recommends
    flashinfer = load("flashinfer", "flashinfer-python")
    wrapper = flashinfer.mla.BatchMLAPagedAttentionWrapper(workspace, backend=backend)
    causal = case.s_q > 1  # a single new token sees every key
    wrapper.plan(
        _starts(case, case.s_q, device), _starts(case, pages.shape[1], device), pages.flatten(), first.seq_lens,
        num_heads=case.heads, head_dim_ckv=RANK, head_dim_kpe=ROPE, page_size=PAGE_SIZE, causal=causal,
        sm_scale=first.sm_scale, q_data_type=first.q.dtype, kv_data_type=first.kv_cache.dtype,
    )  # fmt: skip

    def prepare_call(problem: Problem) -> Call:
        q = problem.q.flatten(0, 1)  # [batch * s_q, heads, 576]
        parts = [part for whole in (q, problem.kv_cache) for part in whole.split((RANK, ROPE), dim=-1)]
        out, lse = q.new_empty(*q.shape[:2], RANK), q.new_empty(q.shape[:2], dtype=torch.float32)
        results = out.unflatten(0, (-1, case.s_q)), lse.unflatten(0, (-1, case.s_q)).mT

        def call() -> tuple[Tensor, Tensor]:
            wrapper.run(*parts, out=out, lse=lse, return_lse=True, return_lse_base_on_e=True)
            return results

        return call

    return Prepared([prepare_call(each) for each in problems])


def _probe_sglang(_device: torch.device) -> str:
    version = str(load("sglang", "sglang").__version__)
    load(f"{SGLANG}.decode_attention", "sglang")
    return version


def _prepare_sglang(case: Case, problems: list[Problem]) -> Prepared:
    """Its Triton kernel, set up as its server does (``TritonAttnBackend`` in srt/layers/attention/triton_backend.py).

    The longest context for which a server is started limits its splits; here that is the case's own.
    """
    _refuse_fp8(case)
    if case.s_q > 1:
        raise Unsupported("more than one new token")
    if case.dtype == "bf16" and problems[0].q.device.type == "cpu":
        raise Unsupported("bf16 on a CPU: Triton's interpreter multiplies the bit patterns")
    attend = load(f"{SGLANG}.decode_attention", "sglang").decode_attention_fwd
    choose_splits = load(f"{SGLANG}.metadata", "sglang").get_num_kv_splits_triton
    next_power_of_2 = load("triton", "triton").next_power_of_2
    first, device = problems[0], problems[0].q.device
    num_sms, use_pdl = 1, False
    if device.type == "cuda":
        num_sms = torch.cuda.get_device_properties(device).multi_processor_count
        use_pdl = not torch.version.hip and torch.cuda.get_device_capability(device)[0] >= 9  # is_arch_support_pdl()
    # _mla_decode_kv_splits_cap(), with the server's default of 8 splits
    max_splits = max(8, min(next_power_of_2(num_sms), next_power_of_2(-(-case.context // 32))))
    num_splits = torch.empty(case.batch, dtype=torch.int32, device=device)
    choose_splits[(1,)](  # get_num_kv_splits()
        num_splits, first.seq_lens, case.batch, 1, case.heads, 1, max_splits, num_sms,
        MAX_NUM_SEQ=max(256, next_power_of_2(case.batch)),
    )  # fmt: skip
    slots = _pages(case, first).long()[..., None] * PAGE_SIZE + torch.arange(PAGE_SIZE, device=device)
    tokens = _starts(case, case.context, device), slots.flatten(1)[:, : case.context].flatten()
    partial_out = torch.empty(case.batch, case.heads, max_splits, RANK, device=device)  # fp32
    partial_lse = torch.empty(case.batch, case.heads, max_splits, device=device)

    def prepare_call(problem: Problem) -> Call:
        q, keys = problem.q.squeeze(1), problem.kv_cache.flatten(0, 1).unsqueeze(1)  # [tokens, 1, 576]
        out = q.new_empty(case.batch, case.heads, RANK)

        def call() -> Tensor:
            attend(
                q, keys, keys[..., :RANK], out, *tokens, partial_out, partial_lse, num_splits, max_splits,
                problem.sm_scale, 1.0, 1.0, has_mla=True, use_pdl=use_pdl,
            )  # fmt: skip
            return out.unsqueeze(1)

        return call

    return Prepared([prepare_call(each) for each in problems])


@torch.no_grad()
def _prepare_transformers(case: Case, problems: list[Problem]) -> Prepared:
    """A layer of DeepSeek-V3's sizes with some of its heads, held to ours, absorbed, of the same weights and cache."""
    _refuse_fp8(case)
    if case.s_q > 1:
        raise Unsupported("more than one new token: without a mask sdpa aligns the first with the first key")
    dtype, device = problems[0].q.dtype, problems[0].q.device
    config = MLAConfig(**LAYER.model_dump() | {"num_attention_heads": case.heads})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = MultiHeadLatentAttention(config, dtype=dtype, device=device)
        shape = (len(problems), case.batch, 1, config.hidden_size)
        hidden_states = torch.randn(shape, dtype=dtype, device=device)
    theirs = TransformersLayer("deepseek_v3", ours)
    cached = [_rows(case, each)[:, :-1] for each in problems]
    calls = [theirs.step(*each) for each in zip(hidden_states, cached, strict=True)]
    expected = []
    for new, rows in zip(hidden_states, cached, strict=True):
        cache = LatentCache(config, case.batch, case.context, dtype=dtype, device=device)
        cache.append(*rows.split((RANK, ROPE), dim=-1))
        expected.append(ours(new, cache, "absorbed"))
    return Prepared(calls, expected)


PEERS = {
    "ours": Peer(_probe_ours, _prepare_ours),
    "flashinfer-fa3": Peer(partial(_probe_flashinfer, "fa3"), partial(_prepare_flashinfer, "fa3")),
    "flashinfer-fa2": Peer(partial(_probe_flashinfer, "fa2"), partial(_prepare_flashinfer, "fa2")),
    "sglang": Peer(_probe_sglang, _prepare_sglang),
    "eager": Peer(lambda _device: torch.__version__, _prepare_eager),
    "transformers": Peer(lambda _device: probe_transformers(), _prepare_transformers),
}
