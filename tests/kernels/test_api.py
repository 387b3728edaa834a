"""What ``mla_decode`` answers, and what it refuses before anything runs."""

import os
import subprocess
import sys

import pytest
import torch

from mla_edu import MLAConfig
from mla_edu.cache import PagedLatentCache, PageTable
from mla_edu.kernels import api, mla_decode, reference
from mla_edu.kernels.problems import check_answer, random_problem
from mla_edu.testing import poison, relative_error

PROBLEM = random_problem([20, 33], num_heads=3, dtype="fp32", kv_lora_rank=32, qk_rope_head_dim=8, page_size=16)
FP8 = random_problem([20, 33], dtype="fp8_mla", kv_lora_rank=128, page_size=16)


def call(problem=PROBLEM, **changed):
    names = ("q", "kv_cache", "block_table", "seq_lens")
    return mla_decode(**dict(zip(names, problem.tensors, strict=True)) | problem.options | changed)


@pytest.mark.parametrize("s_q", [1, 3])
@pytest.mark.parametrize("fp8", [False, True])
def test_reference_is_softmax_attention_over_the_gathered_rows(s_q, fp8):
    """Against PyTorch's own attention, on rows that a paged cache gathers."""
    config = MLAConfig(
        hidden_size=24,
        num_attention_heads=3,
        q_lora_rank=None,
        kv_lora_rank=128,
        qk_nope_head_dim=5,
        qk_rope_head_dim=6,
        v_head_dim=9,
    )
    dtype = torch.uint8 if fp8 else torch.float32
    table = PageTable(num_pages=9, page_size=4, batch_size=2)
    cache = PagedLatentCache(config, table, dtype)
    poison(cache)
    generator = torch.Generator().manual_seed(0)
    for sequence, length in ((0, 5), (1, 11)):
        rows = torch.randn(1, length, 134, generator=generator).to(torch.bfloat16 if fp8 else dtype)
        with cache.step(length, [sequence]):
            cache.append(rows[..., :128], rows[..., 128:])
    q = torch.randn(2, s_q, 3, 134, generator=generator).to(torch.bfloat16 if fp8 else dtype)
    out, lse = mla_decode(
        q, cache.pages, table.block_table, table.seq_lens, kv_lora_rank=128, sm_scale=0.3, backend="reference",
        return_lse=True,
    )  # fmt: skip
    for sequence, (_, read) in enumerate(cache.read()):
        rows = read[0].float()
        mask = torch.ones(s_q, len(rows), dtype=torch.bool).tril(len(rows) - s_q)
        queries = q[sequence].float().transpose(0, 1)  # [heads, s_q, row]
        keys, values = rows.expand(3, -1, -1), rows[:, :128].expand(3, -1, -1)
        expected = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, mask, scale=0.3)
        bound = 4e-3 if fp8 else 1e-5
        assert relative_error(out[sequence].float().transpose(0, 1), expected) < bound
        scores = (queries @ keys.mT * 0.3).masked_fill(~mask, float("-inf"))
        assert relative_error(lse[sequence], scores.logsumexp(-1)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_sees_no_key_gives_zero_and_minus_infinity(dtype):
    """An empty sequence, and the first of three new tokens where there are only two: the specification itself."""
    problem = random_problem([0, 2], s_q=3, dtype="fp32", kv_lora_rank=16, qk_rope_head_dim=8)
    q, kv_cache, block_table, seq_lens = problem.tensors
    out, lse = reference.decode(q.to(dtype), kv_cache.to(dtype), block_table, seq_lens, **problem.options)
    assert (out[0] == 0).all() and (lse[0] == float("-inf")).all()
    assert (out[1, 0] == 0).all() and (lse[1, :, 0] == float("-inf")).all()
    assert (out[1, 1:] != 0).all() and lse[1, :, 1:].isfinite().all()


def test_without_return_lse_the_result_alone_comes_back():
    out = call()
    assert out.shape == (2, 1, 3, 32)
    check_answer(call(return_lse=True), PROBLEM.expected())


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_no_gradient_flows(backend):
    if backend == "triton":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("Triton does not interpret here")
    out, lse = call(q=PROBLEM.q.clone().requires_grad_(), backend=backend, return_lse=True)
    assert not out.requires_grad and not lse.requires_grad


def test_the_default_on_a_cpu_is_the_reference(monkeypatch):
    monkeypatch.setattr(api, "_triton", None)
    call()
    with pytest.raises(TypeError):
        call(backend="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_reference_writes_into_buffers_too(dtype):
    out, lse = torch.full((2, 1, 3, 32), float("nan"), dtype=dtype), torch.full((2, 3, 1), float("nan"), dtype=dtype)
    changed = {"q": PROBLEM.q.to(dtype), "kv_cache": PROBLEM.kv_cache.to(dtype)}
    answer = call(**changed, out=out, lse=lse, return_lse=True)
    assert answer[0] is out and answer[1] is lse
    assert all(torch.equal(a, b) for a, b in zip(answer, call(**changed, return_lse=True), strict=True))


def test_gluon_says_what_it_needs():
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("about machines without a GPU")
    with pytest.raises(ValueError, match="backend 'gluon' needs a GPU of sm_90; q is on cpu"):
        call(backend="gluon")


LENS, TABLE, OUT = PROBLEM.seq_lens, PROBLEM.block_table, torch.zeros(2, 1, 3, 32)


def with_entry(value):
    table = TABLE.clone()
    table[1, 2] = value
    return table


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"q": [1.0]}, TypeError, "q is a list; expected a torch.Tensor"),
        ({"q": PROBLEM.q[0]}, ValueError, r"q has shape \[1, 3, 40\]; expected 4 dimensions"),
        ({"q": PROBLEM.q.int()}, TypeError, "q is torch.int32; expected torch.bfloat16, torch.float16, torch.float32"),
        (
            {"q": PROBLEM.q.double(), "kv_cache": PROBLEM.kv_cache.double(), "backend": "triton"},
            TypeError,
            "q is torch.float64; expected backend='reference' with it",
        ),
        ({"q": PROBLEM.q.half()}, TypeError, "kv_cache is torch.float32; expected torch.float16, as q, or torch.uint8"),
        ({"q": PROBLEM.q[:, :, :0]}, ValueError, r"q has shape \[2, 1, 0, 40\]; expected at least one token and one"),
        ({"q": PROBLEM.q[..., :39]}, ValueError, "kv_cache has rows of 40; expected 39"),
        ({"q": PROBLEM.q[:1]}, ValueError, "block_table has 2 sequences; expected 1, as q"),
        ({"kv_cache": PROBLEM.kv_cache.to("meta")}, ValueError, "kv_cache is on meta; expected cpu, as q"),
        ({"kv_cache": PROBLEM.kv_cache[:, :0]}, ValueError, "expected pages of at least one token"),
        ({"kv_cache": FP8.kv_cache}, TypeError, "q is torch.float32; expected torch.bfloat16 with an fp8 cache"),
        ({"block_table": TABLE.short()}, TypeError, "block_table is torch.int16; expected torch.int32 or torch.int64"),
        ({"block_table": with_entry(8)}, ValueError, r"block_table\[1, 2\] is 8; expected 0 to 7"),
        ({"block_table": with_entry(-1)}, ValueError, r"block_table\[1, 2\] is -1; expected 0 to 7"),
        ({"seq_lens": LENS[:1]}, ValueError, "seq_lens has 1 sequences; expected 2, as q"),
        ({"seq_lens": LENS.float()}, TypeError, "seq_lens is torch.float32; expected torch.int32 or"),
        ({"seq_lens": LENS - 21}, ValueError, r"seq_lens\[0\] is -1; expected 0 to 80, what block_table can hold"),
        ({"seq_lens": LENS + 48}, ValueError, r"seq_lens\[1\] is 81; expected 0 to 80"),
        ({"kv_lora_rank": 41}, ValueError, "kv_lora_rank is 41; expected 1 to 40, the width of q"),
        ({"kv_lora_rank": 32.0}, TypeError, "kv_lora_rank is 32.0; expected an integer"),
        ({"sm_scale": float("nan")}, ValueError, "sm_scale is nan; expected a finite number"),
        ({"sm_scale": 10**400}, ValueError, "sm_scale is 10+.*; expected a finite number"),
        ({"sm_scale": "1"}, TypeError, "sm_scale is '1'; expected a number"),
        ({"causal": "no"}, TypeError, "causal is 'no'; expected True or False"),
        ({"validate": "no"}, TypeError, "validate is 'no'; expected True or False"),
        ({"return_lse": 1}, TypeError, "return_lse is 1; expected True or False"),
        ({"num_splits": 0}, ValueError, "num_splits is 0; expected 1 to 65535"),
        ({"num_splits": 1.5}, TypeError, "num_splits is 1.5; expected an integer or None"),
        ({"backend": "cuda"}, ValueError, "backend is 'cuda'; expected 'triton', 'gluon', 'reference' or"),
        ({"out": 3}, TypeError, "out is a int; expected a torch.Tensor or None"),
        ({"out": OUT.half()}, TypeError, "out is torch.float16; expected torch.float32"),
        ({"out": OUT[:1]}, ValueError, r"out has shape \[1, 1, 3, 32\]; expected \[2, 1, 3, 32\]"),
        ({"out": OUT.to("meta")}, ValueError, "out is on meta; expected cpu, as q"),
        ({"out": OUT.mT.contiguous().mT}, ValueError, "out has strides .*; expected it contiguous"),
        ({"out": PROBLEM.kv_cache.flatten()[:192].view(2, 1, 3, 32)}, ValueError, "out shares memory with kv_cache"),
        ({"out": OUT, "lse": OUT.flatten()[:6].view(2, 3, 1)}, ValueError, "lse shares memory with out"),
        ({"lse": torch.zeros(2, 1, 3)}, ValueError, r"lse has shape \[2, 1, 3\]; expected \[2, 3, 1\]"),
        ({"lse": torch.zeros(2, 3, 1).double()}, TypeError, "lse is torch.float64; expected torch.float32"),
        ({"workspace": torch.zeros(99)}, TypeError, "workspace is torch.float32; expected torch.uint8"),
        (
            {"workspace": torch.zeros(9, 9, dtype=torch.uint8)},
            ValueError,
            r"workspace has shape \[9, 9\]; expected one",
        ),
    ],
)
def test_bad_input_is_named_before_any_work(changed, kind, message, monkeypatch):
    monkeypatch.setattr("mla_edu.kernels.reference.decode", None)
    with pytest.raises(kind, match=message):
        call(**changed)


def test_buffers_may_lie_side_by_side_and_not_a_byte_closer():
    memory = torch.zeros(4 + 192 + 6)
    workspace, out, lse = memory.view(torch.uint8)[:16], memory[4:196].view(2, 1, 3, 32), memory[196:].view(2, 3, 1)
    call(out=out, lse=lse, workspace=workspace)
    for start, end in ((0, 17), (768, 785)):
        with pytest.raises(ValueError, match="workspace shares memory with out"):
            call(out=out, workspace=memory.view(torch.uint8)[start:end])
    with pytest.raises(ValueError, match="workspace shares memory with lse"):
        call(lse=lse, workspace=memory.view(torch.uint8)[:785])


def test_bad_fp8_caches_are_named():
    with pytest.raises(ValueError, match="kv_cache has rows of 259; expected 260"):
        call(FP8, kv_cache=FP8.kv_cache[..., :259])
    with pytest.raises(ValueError, match="expected aligned rows of bytes in order"):
        call(FP8, kv_cache=FP8.kv_cache.mT.contiguous().mT)
    with pytest.raises(ValueError, match="the rotary part is 63 wide; expected an even number in an fp8 cache"):
        call(FP8, q=FP8.q[..., :191])
    with pytest.raises(ValueError, match="kv_lora_rank is 126; expected a multiple of 128"):
        call(FP8, kv_lora_rank=126)


def test_what_no_tile_holds_fails_on_triton_and_not_on_the_reference():
    pytest.importorskip("triton")
    wide = random_problem([5], kv_lora_rank=600, dtype="fp32")
    check_answer(call(wide, return_lse=True), wide.expected())
    with pytest.raises(ValueError, match="kv_lora_rank is 600; expected at most 512"):
        call(wide, backend="triton")


def run(code, **environment):
    lines = (
        "import torch\nfrom mla_edu.kernels.problems import random_problem\nfrom mla_edu.kernels import mla_decode\n"
    )
    lines += "p = random_problem([5], dtype='fp32', kv_lora_rank=16)\n"
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    return subprocess.run([sys.executable, "-c", lines + code], capture_output=True, text=True, env=kept)


TRITON = "mla_decode(*p.tensors, **p.options, backend='triton')\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_interpretation_is_said_once():
    pytest.importorskip("triton")
    result = run(TRITON + TRITON)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Triton interprets the kernels on the CPU") == 1


def test_triton_that_does_not_interpret_is_no_reason_to_fall_back():
    pytest.importorskip("triton")
    result = run("import triton\n" + TRITON, TRITON_INTERPRET="0")
    assert "ValueError: q is on cpu, and Triton was imported without its interpreter" in result.stderr


def test_a_missing_triton_names_what_to_install():
    result = run("import sys\nsys.modules['triton'] = None\n" + TRITON)
    assert "backend 'triton' needs Triton: pip install 'mla-edu[kernels]'" in result.stderr
    assert run("import sys\nsys.modules['triton'] = None\nmla_decode(*p.tensors, **p.options)").returncode == 0
