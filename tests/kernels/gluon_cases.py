"""Both Gluon kernels against a plain loop: on a Hopper GPU themselves, elsewhere emulated from their own source."""

import math

import pytest
import torch

from mla_edu.kernels import gluon_launch, launch
from mla_edu.kernels.gluon_emulator import EmulatedKernel
from mla_edu.kernels.plan import GPU
from mla_edu.ops.fp8 import unpack_fp8

HOPPER = not launch.INTERPRETED and torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
DEVICE = "cuda" if HOPPER else "cpu"
KERNELS = {torch.bfloat16: "seesaw", torch.uint8: "attend_fp8"}  # by the cache's dtype
NEEDS_IT = pytest.mark.skipif(not HOPPER and not launch.INTERPRETED, reason="needs the interpreter or a Hopper GPU")
EMULATED = pytest.mark.skipif(HOPPER, reason="what is changed is emulated")


def decode(problem, num_splits=None, changes=(), seed=0, multiprocessors=5):
    """What Gluon's kernel answers; emulated, with ``changes`` in its source, and in an order drawn from ``seed``."""
    assert gluon_launch.why_not(problem.q, problem.kv_cache, problem.block_table, 512) is None
    with pytest.MonkeyPatch.context() as patch:
        if not HOPPER:
            gpu = GPU("sm_90", 232_448, multiprocessors)
            name = KERNELS[problem.kv_cache.dtype]
            patch.setattr(launch, "describe_gpu", lambda device: gpu)
            patch.setattr(gluon_launch, name, EmulatedKernel(name, changes, seed))
        return gluon_launch.decode(*problem.tensors, **problem.options, num_splits=num_splits)


def expected(problem, nan=()):
    """Out, log-sum-exp, and how far out may be off: weights are rounded to bf16, by 1/256 of them, and so is out.

    ``nan`` are pairs of a sequence and a token.
    """
    q, rows = problem.q.double(), problem.kv_cache
    rows = (unpack_fp8(rows, 512) if rows.dtype == torch.uint8 else rows).double()
    batch, s_q, heads, _ = q.shape
    out, slack = q.new_zeros(2, batch, s_q, heads, 512)
    lse = q.new_full((batch, heads, s_q), -math.inf)
    for b, length in enumerate(problem.seq_lens.tolist()):
        token = torch.arange(length)
        keys = rows[problem.block_table[b, token // rows.shape[1]].long(), token % rows.shape[1]]
        for s in range(s_q):
            seen = length - s_q + s + 1 if problem.causal else length
            if any(b == sequence and token < seen for sequence, token in nan):
                out[b, s], lse[b, :, s] = math.nan, math.nan
            elif seen > 0:
                scores = q[b, s] @ keys[:seen].T * problem.sm_scale
                values, weights = keys[:seen, :512], scores.softmax(-1)
                out[b, s], slack[b, s] = weights @ values, weights @ values.abs()
                lse[b, :, s] = scores.logsumexp(-1)
    return out, lse, slack / 128


def check(problem, nan=(), answer_for=None, **options):
    """The answer for ``answer_for``, or the problem itself, is what a loop says of the problem."""
    answer = decode(answer_for or problem, **options)
    out, lse, bound = expected(problem, nan)
    for name, got, want, near in [("out", answer[0], out, bound), ("lse", answer[1], lse, 1e-5 * (1 + lse.abs()))]:
        got = got.to(want)
        assert got.shape == want.shape
        assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf()), f"{name}: NaN, inf"
        wrong = ((got - want).abs() > near) & want.isfinite()
        assert not wrong.any(), f"{name} is off in {wrong.sum()} places"
