"""SGLang's Triton kernel for decoding."""

import torch
from torch import Tensor

from mla_edu.bench.grid import RANK, Case
from mla_edu.bench.libraries import Unsupported, load
from mla_edu.bench.peer import Call, Prepared, owned_slots, refuse, starts
from mla_edu.kernels.problems import Problem

SGLANG = "sglang.kernels.ops.attention"


def probe(_device: torch.device) -> str:
    """Its version."""
    version = str(load("sglang", "sglang").__version__)
    load(f"{SGLANG}.decode_attention", "sglang")
    return version


def prepare(case: Case, problems: list[Problem]) -> Prepared:
    """Set up as its server does (``TritonAttnBackend`` in srt/layers/attention/triton_backend.py).

    The longest context for which a server is started limits its splits; here that is the case's own longest.
    """
    refuse(case, fp8=True, new_tokens=": its verification is another kernel")
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
    max_splits = max(8, min(next_power_of_2(num_sms), next_power_of_2(-(-max(case.sequences) // 32))))
    num_splits = torch.empty(case.batch, dtype=torch.int32, device=device)
    choose_splits[(1,)](  # get_num_kv_splits()
        num_splits, first.seq_lens, case.batch, 1, case.heads, 1, max_splits, num_sms,
        MAX_NUM_SEQ=max(256, next_power_of_2(case.batch)),
    )  # fmt: skip
    tokens = starts(first.seq_lens), owned_slots(first)
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
