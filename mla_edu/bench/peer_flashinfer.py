"""FlashInfer's MLA kernels for Hopper (fa3) and for Ampere and later (fa2), by ``BatchMLAPagedAttentionWrapper``."""

import dataclasses

import torch
from torch import Tensor

from mla_edu.bench.grid import PAGE_SIZE, RANK, ROPE, Case
from mla_edu.bench.libraries import Unsupported, load
from mla_edu.bench.peer import Call, Prepared, owned_pages, page_counts, specification, starts
from mla_edu.cost import fp8_row_bytes
from mla_edu.kernels.problems import Problem
from mla_edu.ops.fp8 import E4M3_MAX

PACKAGE = "flashinfer-python"


def probe(backend: str, device: torch.device) -> str:
    """Its version, where ``backend``, "fa3" or "fa2", runs."""
    version = str(load("flashinfer", PACKAGE).__version__)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if backend == "fa3" and capability != (9, 0):
        raise Unsupported("needs a GPU of compute capability 9.0")
    if capability < (8, 0):
        raise Unsupported("needs a GPU of compute capability 8.0 or later")
    return version


def prepare(backend: str, case: Case, problems: list[Problem]) -> Prepared:
    """One plan for all problems. ``run`` then reads only memory of the wrapper, so a CUDA graph can hold it."""
    first, device, fp8 = problems[0], problems[0].q.device, case.dtype == "fp8_mla"
    if fp8 and device.type == "cuda" and torch.cuda.get_device_capability(device) != (9, 0):
        raise Unsupported("fp8 cache: needs a GPU of compute capability 9.0")
    workspace = torch.empty(128 * 2**20, dtype=torch.int8, device=device)  # as its documentation recommends
    wrapper = load("flashinfer", PACKAGE).mla.BatchMLAPagedAttentionWrapper(workspace, backend=backend)
    new_tokens = torch.full_like(first.seq_lens, case.s_q)
    wrapper.plan(
        starts(new_tokens), starts(page_counts(first)), owned_pages(first), first.seq_lens,
        num_heads=case.heads, head_dim_ckv=RANK, head_dim_kpe=ROPE, page_size=PAGE_SIZE,
        causal=case.s_q > 1,  # a single new token sees every key
        sm_scale=first.sm_scale, q_data_type=first.q.dtype,
        kv_data_type=torch.float8_e4m3fn if fp8 else first.kv_cache.dtype,
    )  # fmt: skip

    def prepare_call(problem: Problem) -> tuple[Call, Problem]:
        q = problem.q.flatten(0, 1)  # [batch * s_q, heads, 576]
        caches, scales, problem = _e4m3(problem) if fp8 else (problem.kv_cache.split((RANK, ROPE), dim=-1), {}, problem)
        out, lse = q.new_empty(*q.shape[:2], RANK), q.new_empty(q.shape[:2], dtype=torch.float32)
        results = out.unflatten(0, (-1, case.s_q)), lse.unflatten(0, (-1, case.s_q)).mT

        def call() -> tuple[Tensor, Tensor]:
            wrapper.run(
                *q.split((RANK, ROPE), dim=-1), *caches, out=out, lse=lse, return_lse=True,
                return_lse_base_on_e=True, **scales,
            )  # fmt: skip
            return results

        return call, problem

    calls, answered = zip(*(prepare_call(each) for each in problems), strict=True)
    return Prepared(list(calls), [specification(each) for each in answered] if fp8 else None)


def _e4m3(problem: Problem) -> tuple[tuple[Tensor, Tensor], dict[str, object], Problem]:
    """The cache as FlashInfer takes one in fp8, and the problem that it then solves.

    Its rotary part is in e4m3 too, with one scale for all: 592 bytes a token where ours has 656. The scale is a power
    of two, so that the rows of 656 bytes can hold what is left of that part, and the specification can read them.
    """
    latent, scales, k_pe = problem.kv_cache.split((RANK, fp8_row_bytes(RANK, 0) - RANK, 2 * ROPE), dim=-1)
    k_pe = k_pe.contiguous().view(torch.bfloat16)
    largest = k_pe.nan_to_num(0).abs().max().float()
    scale = float(torch.exp2(torch.ceil(torch.log2(largest / E4M3_MAX))))
    rounded = (k_pe / scale).to(torch.float8_e4m3fn)
    rows = problem.kv_cache.clone()
    rows[..., -2 * ROPE :] = (rounded.to(torch.bfloat16) * scale).view(torch.uint8)
    options = {"ckv_scale_arr": scales.contiguous().view(torch.float32), "kpe_scale": scale}
    caches = latent.contiguous().view(torch.float8_e4m3fn), rounded
    return caches, options, dataclasses.replace(problem, kv_cache=rows)
