"""FlashMLA's dense decode kernel for Hopper, and what FlashAttention 3 has for a latent cache (``qv``)."""

import importlib
import inspect

import torch
from torch import Tensor

from mla_edu.bench.grid import PAGE_SIZE, RANK, ROPE, Case
from mla_edu.bench.peer import Call, Prepared, load_first, need_capability, refuse
from mla_edu.kernels.problems import Problem

FLASH_MLA = ("flash_mla", "sgl_kernel.flash_mla"), "sgl-flash-mla"
FLASH_ATTENTION = ("flash_attn_interface", "sgl_kernel.flash_attn"), "flash_attn_3"


def _probe(library: tuple[tuple[str, ...], str], device: torch.device) -> str:
    module = load_first(*library)
    need_capability(device, (9, 0))
    package = importlib.import_module(module.__name__.partition(".")[0])
    return str(getattr(package, "__version__", "unknown"))


def probe_flash_mla(device: torch.device) -> str:
    """The version of FlashMLA."""
    return _probe(FLASH_MLA, device)


def prepare_flash_mla(case: Case, problems: list[Problem]) -> Prepared:
    """The dense kernel; for an fp8 cache it has none for rows of 656 bytes without a list of tokens."""
    refuse(case, fp8=True)
    module = load_first(*FLASH_MLA)
    attend = module.flash_mla_with_kvcache
    options = {"use_legacy": True} if "use_legacy" in inspect.signature(attend).parameters else {}

    def prepare_call(problem: Problem) -> Call:
        # Newer versions ignore these arguments, and plan in the first call.
        plan = module.get_mla_metadata(problem.seq_lens, case.s_q * case.heads, 1)

        def call() -> tuple[Tensor, Tensor]:
            out, lse = attend(
                problem.q, problem.kv_cache.unsqueeze(2), problem.block_table, problem.seq_lens, RANK, *plan,
                softmax_scale=problem.sm_scale, causal=case.s_q > 1, **options,
            )  # fmt: skip
            return out, lse

        return call

    return Prepared([prepare_call(each) for each in problems])


def probe_flash_attention(device: torch.device) -> str:
    """The version of FlashAttention 3."""
    return _probe(FLASH_ATTENTION, device)


def prepare_flash_attention(case: Case, problems: list[Problem]) -> Prepared:
    """The rotary part is the key, the latent the value and, by ``qv``, the other part of the key.

    It reads whole pages and does not promise that what lies behind a sequence is without effect: there it gets zeros.
    """
    refuse(case, fp8=True)
    attend = load_first(*FLASH_ATTENTION).flash_attn_with_kvcache
    tails = any(length % PAGE_SIZE for length in case.sequences)

    def prepare_call(problem: Problem) -> Call:
        cache = problem.kv_cache.nan_to_num(0) if tails else problem.kv_cache
        latent, k_pe = cache.unsqueeze(2).split((RANK, ROPE), dim=-1)
        qv, q = problem.q.split((RANK, ROPE), dim=-1)

        def call() -> tuple[Tensor, Tensor]:
            out, lse, *_ = attend(
                q, k_pe, latent, qv=qv, cache_seqlens=problem.seq_lens, page_table=problem.block_table,
                softmax_scale=problem.sm_scale, causal=case.s_q > 1, return_softmax_lse=True,
            )  # fmt: skip
            return out, lse

        return call

    return Prepared([prepare_call(each) for each in problems])
