"""Every kernel that is compared computes the same step, so that comparing their times means something.

FlashInfer, FlashMLA, FlashAttention and SGLang are not installed where tests run: stand-ins do in plain PyTorch what
is documented of them.
"""

import dataclasses
import importlib.util
import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers

import mla_edu
from mla_edu.bench.grid import Case
from mla_edu.bench.libraries import Unsupported
from mla_edu.bench.peer_sglang import SGLANG
from mla_edu.bench.peers import PEERS
from mla_edu.kernels import reference
from mla_edu.kernels.problems import check_answer, random_problem
from mla_edu.testing import relative_error

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class FlashInferWrapper:
    """``flashinfer.mla.BatchMLAPagedAttentionWrapper`` of FlashInfer 0.6.18, by its documentation."""

    plans = 0

    def __init__(
        self,
        float_workspace_buffer,
        use_cuda_graph=False,
        qo_indptr=None,
        kv_indptr=None,
        kv_indices=None,
        kv_len_arr=None,
        backend="auto",
    ):
        assert float_workspace_buffer.nbytes >= 128 * 2**20 and backend in ("fa2", "fa3")
        assert not use_cuda_graph  # that would copy into buffers which are not given

    def plan(
        self,
        qo_indptr,
        kv_indptr,
        kv_indices,
        kv_len_arr,
        num_heads,
        head_dim_ckv,
        head_dim_kpe,
        page_size,
        causal,
        sm_scale,
        q_data_type,
        kv_data_type,
        use_profiler=False,
    ):
        FlashInferWrapper.plans += 1
        assert all(tensor.dtype == torch.int32 for tensor in (qo_indptr, kv_indptr, kv_indices, kv_len_arr))
        assert kv_indptr.diff().tolist() == [-(-length // page_size) for length in kv_len_arr.tolist()]
        assert kv_indices.is_contiguous() and len(kv_indices) >= kv_indptr[-1]
        self.sequences = []
        for b, length in enumerate(kv_len_arr.tolist()):
            pages = kv_indices[kv_indptr[b] : kv_indptr[b + 1]].long()
            self.sequences.append((slice(qo_indptr[b], qo_indptr[b + 1]), pages, length))
        self.heads, self.widths, self.page_size = num_heads, (head_dim_ckv, head_dim_kpe), page_size
        self.causal, self.sm_scale, self.dtypes = causal, sm_scale, (q_data_type, kv_data_type)

    def run(
        self,
        q_nope,
        q_pe,
        ckv_cache,
        kpe_cache,
        out=None,
        lse=None,
        return_lse=False,
        profiler_buffer=None,
        kv_len=None,
        page_table=None,
        return_lse_base_on_e=False,
        o_scale=None,
        *,
        ckv_scale=None,
        ckv_scale_arr=None,
        kpe_scale=None,
    ):
        assert return_lse and (q_nope.dtype, ckv_cache.dtype) == (q_pe.dtype, kpe_cache.dtype) == self.dtypes
        fp8 = ckv_cache.dtype == torch.float8_e4m3fn
        assert fp8 == (ckv_scale_arr is not None) == (kpe_scale is not None) and ckv_scale is None
        if fp8:
            assert ckv_scale_arr.shape == (*ckv_cache.shape[:-1], ckv_cache.shape[-1] // 128)
            assert ckv_scale_arr.dtype == torch.float32 and ckv_scale_arr.is_contiguous()
            assert math.isfinite(kpe_scale) and kpe_scale > 0 and q_nope.dtype == torch.bfloat16
            ckv_cache = ckv_cache.double() * ckv_scale_arr.double().repeat_interleave(128, dim=-1)
            kpe_cache = kpe_cache.double() * kpe_scale
        assert q_nope.shape[1] == self.heads and ckv_cache.shape[1] == self.page_size
        assert (q_nope.shape[2], q_pe.shape[2]) == (ckv_cache.shape[2], kpe_cache.shape[2]) == self.widths
        assert out.shape == q_nope.shape and out.is_contiguous() and lse.is_contiguous()
        for queries, pages, length in self.sequences:
            ckv, kpe = (cache[pages].flatten(0, 1)[:length].double() for cache in (ckv_cache, kpe_cache))
            scores = q_nope[queries].double() @ ckv.mT + q_pe[queries].double() @ kpe.mT  # [new, heads, keys]
            if self.causal:
                new = scores.shape[0]
                hidden = torch.ones(new, length).triu(length - new + 1).bool()
                scores = scores.masked_fill(hidden[:, None], -math.inf)
            scores *= self.sm_scale
            out[queries] = (scores.softmax(-1) @ ckv).to(out.dtype)
            lse[queries] = (scores.logsumexp(-1) / (1 if return_lse_base_on_e else math.log(2))).float()
        return out, lse


def get_mla_metadata(*arguments, **options):
    """That of sgl-flash-mla 1.0.0, which plans in the first call."""
    return FlashMLASchedMeta(), None


class FlashMLASchedMeta:
    pass


def flash_mla_with_kvcache(
    q,
    k_cache,
    block_table,
    cache_seqlens,
    head_dim_v,
    tile_scheduler_metadata,
    num_splits=None,
    softmax_scale=None,
    causal=False,
    is_fp8_kvcache=None,
    indices=None,
    use_legacy=False,
):
    """The dense kernel of sgl-flash-mla 1.0.0, by its documentation."""
    assert use_legacy and num_splits is None and isinstance(tile_scheduler_metadata, FlashMLASchedMeta)
    assert k_cache.ndim == 4 and k_cache.shape[1:3] == (64, 1) and k_cache.dtype == q.dtype
    cache = k_cache.squeeze(2).double()
    out, lse = reference.decode(
        q.double(), cache, block_table, cache_seqlens, kv_lora_rank=head_dim_v, sm_scale=softmax_scale, causal=causal
    )
    return out.to(q.dtype), lse.float()


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    qv=None,
    cache_seqlens=None,
    page_table=None,
    softmax_scale=None,
    causal=False,
    return_softmax_lse=False,
):
    """FlashAttention 3 over pages, by its documentation; what lies behind a sequence takes part with a weight of 0."""
    assert k is v is None and return_softmax_lse and q.shape[-1] == 64 and qv.shape[-1] == 512
    assert k_cache.shape[1:3] == v_cache.shape[1:3] == (64, 1)
    out, lse = torch.empty_like(qv), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
    for b, length in enumerate(cache_seqlens.tolist()):
        pages = page_table[b, : -(-length // 64)].long()
        keys, values = (cache[pages].flatten(0, 2).double() for cache in (k_cache, v_cache))
        scores = torch.einsum("shd,nd->hsn", q[b].double(), keys) + torch.einsum("shd,nd->hsn", qv[b].double(), values)
        last = torch.full((len(q[b]),), length) - (torch.arange(len(q[b])).flip(0) if causal else 0)
        hidden = torch.arange(len(keys)) >= last[:, None]
        scores = (scores * softmax_scale).masked_fill(hidden, -math.inf)
        out[b] = torch.einsum("hsn,nd->shd", scores.softmax(-1), values).to(out.dtype)
        lse[b] = scores.logsumexp(-1).float()
    return out, lse, None, None


class ChooseSplits:
    """``get_num_kv_splits_triton`` of SGLang 0.5.23: a kernel, so called with a grid."""

    def __getitem__(self, grid):
        assert grid == (1,)
        return self.launch

    def launch(
        self,
        num_kv_splits,
        seq_lens,
        num_seq,
        num_group,
        num_head,
        num_kv_head,
        max_kv_splits,
        device_core_count,
        MAX_NUM_SEQ,
        uneven_batch_ptr=None,
    ):
        assert num_kv_splits.shape == seq_lens.shape == (num_seq,) and num_group == num_kv_head == 1
        assert max_kv_splits == 8 and device_core_count == 1  # what the server's limit comes to on a CPU
        assert num_seq <= MAX_NUM_SEQ
        num_kv_splits.fill_(max_kv_splits)


def decode_attention_fwd(
    q,
    k_buffer,
    v_buffer,
    o,
    kv_indptr,
    kv_indices,
    attn_logits,
    attn_lse,
    num_kv_splits,
    max_kv_splits,
    sm_scale,
    k_scale,
    v_scale,
    logit_cap=0.0,
    has_mla=False,
    use_pdl=False,
    page_size=1,
):
    """That of SGLang 0.5.23, by how its own server calls it; one key head, slots of one token."""
    batch, heads, _ = q.shape
    assert has_mla and not use_pdl and k_buffer.shape[1] == 1 and len(kv_indptr) == batch + 1
    assert v_buffer.data_ptr() == k_buffer.data_ptr()  # with MLA the kernel reads the values from the keys
    assert kv_indices.dtype == torch.int64  # slots times 576 pass 32 bits
    assert attn_logits.shape == (batch, heads, max_kv_splits, v_buffer.shape[-1])
    assert attn_lse.shape == attn_logits.shape[:3] and attn_logits.dtype == attn_lse.dtype == torch.float32
    assert num_kv_splits.shape == (batch,) and 1 <= num_kv_splits.min() <= num_kv_splits.max() <= max_kv_splits
    for b in range(batch):
        slots = kv_indices[kv_indptr[b] : kv_indptr[b + 1]]
        keys, values = k_buffer[slots, 0].double(), v_buffer[slots, 0].double()
        scores = q[b].double() @ keys.mT * sm_scale * k_scale
        o[b] = (scores.softmax(-1) @ values * v_scale).to(o.dtype)


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Stand-ins for what is not installed where tests run."""
    flashinfer, sglang, attention, metadata, flash_mla, flash_attn = (ModuleType("a stand-in") for _ in range(6))
    flashinfer.__version__, sglang.__version__, flash_mla.__version__ = "0.6.18", "0.5.23", "1.0.0"
    flash_mla.__name__, flash_attn.__name__ = "flash_mla", "flash_attn_interface"
    flash_attn.__spec__ = ModuleSpec("flash_attn_interface", None)  # transformers looks for it
    flash_mla.get_mla_metadata, flash_mla.flash_mla_with_kvcache = get_mla_metadata, flash_mla_with_kvcache
    flash_attn.flash_attn_with_kvcache = flash_attn_with_kvcache
    flashinfer.mla = SimpleNamespace(BatchMLAPagedAttentionWrapper=FlashInferWrapper)
    attention.decode_attention_fwd, metadata.get_num_kv_splits_triton = decode_attention_fwd, ChooseSplits()
    modules = {"flashinfer": flashinfer, "sglang": sglang, "flash_mla": flash_mla, "flash_attn_interface": flash_attn}
    modules |= {f"{SGLANG}.decode_attention": attention, f"{SGLANG}.metadata": metadata}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def a_case(text):
    heads, s_q, context, batch, dtype, *lengths = text.split()
    named = {"lengths": lengths[0]} if lengths else {}
    return Case(heads=heads, s_q=s_q, context=context, batch=batch, dtype=dtype, **named)


def two_problems(case):
    """Two problems on one block table: shuffled pages, NaN in all that no sequence owns."""
    first = random_problem(case.sequences, num_heads=case.heads, s_q=case.s_q, dtype=case.dtype)
    other = first.kv_cache if case.dtype == "fp8_mla" else first.kv_cache.flip(-1)
    return [first, dataclasses.replace(first, q=first.q.flip(-1), kv_cache=other)]


def test_their_order_is_that_of_the_tables():
    others = ["flashinfer-fa3", "flashinfer-fa2", "flashmla", "flash-attention", "sglang", "eager", "transformers"]
    assert list(PEERS) == ["ours", "ours-gluon", *others]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ours", "3 1 70 2 bf16"),
        ("ours", "16 2 130 1 bf16"),
        ("ours", "3 2 65 3 fp8_mla"),
        *(
            (name, text)
            for name in ("flashinfer-fa3", "flashinfer-fa2", "flashmla", "flash-attention")
            for text in ("3 1 70 2 bf16", "16 2 130 1 bf16", "3 2 65 3 fp16", "3 2 128 4 bf16 uniform")
        ),
        ("ours", "3 1 70 4 fp8_mla uniform"),
        ("sglang", "3 1 128 4 fp16 one-long"),
        ("sglang", "3 1 70 2 fp16"),
        ("sglang", "16 1 130 3 fp16"),
    ],
)
def test_a_kernel_gives_what_the_specification_gives(name, text):
    case = a_case(text)
    problems = two_problems(case)
    calls, expected = PEERS[name].prepare(case, problems)
    assert expected is None
    answers = [call() for call in calls]  # first all calls: one must not write over what another gave
    for answer, problem in zip(answers, problems, strict=True):
        out, lse = problem.expected()
        if not isinstance(answer, tuple):
            answer = answer, lse
        assert answer[0].dtype == problem.q.dtype and answer[1].dtype in (torch.float32, lse.dtype)
        check_answer(answer, (out, lse))


@pytest.mark.parametrize("name", ["flashinfer-fa3", "flashinfer-fa2"])
@pytest.mark.parametrize("text", ["3 1 70 2 fp8_mla", "3 2 128 3 fp8_mla uniform"])
def test_flashinfer_in_fp8_solves_nearly_the_same_problem_and_its_own_exactly(name, text):
    """Its rotary part has 3 bits behind the comma where ours has 7."""
    case = a_case(text)
    problems = two_problems(case)
    calls, expected = PEERS[name].prepare(case, problems)
    for call, own, problem in zip(calls, expected, problems, strict=True):
        answer = call()
        check_answer(answer, own)
        assert 1e-4 < relative_error(own[0].double(), problem.expected()[0]) < 0.05


@pytest.mark.parametrize("text", ["3 1 70 2 bf16", "16 2 130 1 fp16", "3 2 65 3 bf16"])
def test_the_eager_step_gives_what_the_specification_gives_but_for_its_16_bit_scores(text):
    case = a_case(text)
    problems = two_problems(case)
    calls, expected = PEERS["eager"].prepare(case, problems)
    for call, own, problem in zip(calls, expected, problems, strict=True):
        assert relative_error(own.double(), problem.expected()[0]) < 1e-5
        assert relative_error(call().double(), problem.expected()[0]) < 0.02


@pytest.mark.parametrize("text", ["3 1 70 2 bf16", "16 1 130 1 fp16", "3 1 65 3 fp16"])
def test_the_layer_of_transformers_gives_what_our_absorbed_layer_gives(text):
    case = a_case(text)
    problems = two_problems(case)
    for order in (problems, problems[::-1]):
        calls, expected = PEERS["transformers"].prepare(case, order)
        answers = [call() for call in calls]
        assert answers[0].shape == (case.batch, 1, 7168)
        for answer, own in zip(answers, expected, strict=True):
            assert relative_error(answer, own) < (0.02 if case.dtype == "bf16" else 0.003)
    calls, _ = PEERS["transformers"].prepare(case, [problems[1]] * 2)
    assert torch.equal(calls[0](), answers[0])
    assert not torch.equal(calls[1](), answers[1])  # since each call has its own cache


@pytest.mark.parametrize("name", [name for name in PEERS if name != "ours-gluon"])
def test_a_call_can_be_repeated(name):
    case = a_case("3 1 70 2 fp16")
    calls, _ = PEERS[name].prepare(case, two_problems(case))
    plans = FlashInferWrapper.plans

    def bits():
        answer = calls[0]()
        return [part.clone() for part in (answer if isinstance(answer, tuple) else (answer,))]

    first = bits()
    calls[1]()
    assert all(map(torch.equal, first, bits()))
    assert FlashInferWrapper.plans == plans  # planned before


def test_flashinfer_plans_once_for_all_problems(monkeypatch):
    monkeypatch.setattr(FlashInferWrapper, "plans", 0)
    case = a_case("3 1 70 2 bf16")
    PEERS["flashinfer-fa3"].prepare(case, two_problems(case))
    assert FlashInferWrapper.plans == 1


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        *(
            (name, "3 1 70 2 fp8_mla", "fp8 cache")
            for name in ("flashmla", "flash-attention", "sglang", "eager", "transformers")
        ),
        *((name, "3 1 64 2 bf16 one-long", "sequences of different lengths") for name in ("eager", "transformers")),
        ("sglang", "3 2 70 2 fp16", "more than one new token"),
        ("sglang", "3 1 70 2 bf16", "bf16 on a CPU"),
        ("transformers", "3 2 70 2 bf16", "more than one new token: without a mask"),
    ],
)
def test_what_a_kernel_cannot_do_is_said(name, text, reason):
    case = a_case(text)
    with pytest.raises(Unsupported, match=reason):
        PEERS[name].prepare(case, two_problems(case))


def test_versions_are_those_of_the_libraries(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    versions = {name: peer.probe(GPU) for name, peer in PEERS.items() if name != "ours-gluon"}
    assert versions["flashinfer-fa3"] == versions["flashinfer-fa2"] == "0.6.18"
    assert versions["flashmla"] == "1.0.0" and versions["flash-attention"] == "unknown"
    assert versions["sglang"] == "0.5.23"
    assert versions["eager"] == torch.__version__
    assert versions["transformers"] == transformers.__version__


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((7, 5), set()), ((8, 0), {"fa2"}), ((9, 0), {"fa2", "fa3"}), ((10, 0), {"fa2"})],
)
def test_flashinfer_runs_on_the_gpus_that_it_is_written_for(capability, runs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for backend in ("fa2", "fa3"):
        if backend in runs:
            assert PEERS[f"flashinfer-{backend}"].probe(GPU) == "0.6.18"
        else:
            with pytest.raises(Unsupported, match="needs a GPU of compute capability"):
                PEERS[f"flashinfer-{backend}"].probe(GPU)


@pytest.mark.parametrize("name", ["flashinfer-fa3", "flashinfer-fa2", "flashmla", "flash-attention"])
def test_what_is_written_for_gpus_does_not_run_on_a_cpu(name):
    with pytest.raises(Unsupported, match="needs a GPU of compute capability"):
        PEERS[name].probe(CPU)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("ours", "triton", "'mla-edu\\[kernels\\]'"),
        ("flashinfer-fa3", "flashinfer", "flashinfer-python"),
        ("flashinfer-fa2", "flashinfer", "flashinfer-python"),
        ("sglang", "sglang", "sglang"),
        ("flashmla", "flash_mla", "sgl-flash-mla"),
        ("flash-attention", "flash_attn_interface", "flash_attn_3"),
        ("transformers", "transformers", "'mla-edu\\[hf\\]'"),
    ],
)
def test_a_library_that_is_missing_is_said_to_be_missing(name, module, package, monkeypatch):
    monkeypatch.delitem(sys.modules, f"{SGLANG}.decode_attention")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unsupported, match=f"^not installed: pip install {package}$"):
        PEERS[name].probe(CPU)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ('raise OSError("libcuda.so.1: not found\\nsecond line")', "OSError: libcuda.so.1: not found"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import torch.no_such_part", "ModuleNotFoundError: No module named 'torch.no_such_part'"),
        ("import math; math.nothing", "AttributeError: module 'math' has no attribute 'nothing'"),
    ],
)
@pytest.mark.parametrize(("name", "module"), [("flashinfer-fa2", "flashinfer"), ("sglang", "sglang")])
def test_a_library_that_does_not_fit_the_others_says_why_in_one_line(
    name, module, source, reason, monkeypatch, tmp_path
):
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, f"{SGLANG}.decode_attention")
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Unsupported) as raised:
        PEERS[name].probe(CPU)
    assert str(raised.value) == f"cannot be imported: {reason}"


def test_flash_mla_of_sglangs_older_wheel_is_planned_beforehand(monkeypatch):
    planned = []

    def attend(q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits,
               softmax_scale=None, causal=False):  # fmt: skip
        assert tile_scheduler_metadata is plan[0] and num_splits is plan[1]
        meta = FlashMLASchedMeta()
        return flash_mla_with_kvcache(
            q, k_cache, block_table, cache_seqlens, head_dim_v, meta, None, softmax_scale, causal, use_legacy=True
        )

    kernel, sgl_kernel = ModuleType("sgl_kernel.flash_mla"), ModuleType("sgl_kernel")
    sgl_kernel.__version__, kernel.flash_mla_with_kvcache = "0.3.21", attend
    plan = torch.ones(1), torch.ones(2)
    kernel.get_mla_metadata = lambda *arguments: planned.append(arguments) or plan
    monkeypatch.setitem(sys.modules, "flash_mla", None)
    monkeypatch.setitem(sys.modules, "sgl_kernel", sgl_kernel)
    monkeypatch.setitem(sys.modules, "sgl_kernel.flash_mla", kernel)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert PEERS["flashmla"].probe(GPU) == "0.3.21"
    case = a_case("3 2 70 2 bf16")
    problems = two_problems(case)
    calls, _ = PEERS["flashmla"].prepare(case, problems)
    check_answer(calls[1](), problems[1].expected())
    assert [(lens.tolist(), rows, heads) for lens, rows, heads in planned] == 2 * [([70, 70], 6, 1)]


def test_gluon_is_measured_where_it_is_there_and_says_itself_where_it_cannot_run(monkeypatch):
    probe, prepare = PEERS["ours-gluon"].probe, PEERS["ours-gluon"].prepare
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "gluon" in name else find(name))
    with pytest.raises(Unsupported, match="^this version has no kernel in Gluon$"):
        probe(GPU)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert probe(GPU) == mla_edu.__version__
    with pytest.raises(Unsupported, match="^needs a GPU$"):
        probe(CPU)
    asked = []

    def decode(*tensors, backend, **options):
        asked.append((backend, options["return_lse"]))
        if tensors[0].shape[2] < 64:
            raise ValueError("q has 3 rows; expected 64 or more with backend 'gluon'\nand more")
        return "out", "lse"

    monkeypatch.setattr("mla_edu.bench.peers.mla_decode", decode)
    case = a_case("64 1 64 1 bf16")
    calls, expected = prepare(case, two_problems(case))
    assert calls[1]() == ("out", "lse") and expected is None and set(asked) == {("gluon", True)}
    case = a_case("3 1 64 1 bf16")
    with pytest.raises(Unsupported, match="^q has 3 rows; expected 64 or more with backend 'gluon'$"):
        prepare(case, two_problems(case))


@pytest.mark.parametrize("version", ["4.57.1", "5.14.0"])
def test_transformers_is_measured_only_where_it_caches_the_latent(version, monkeypatch):
    monkeypatch.setattr("transformers.__version__", version)
    with pytest.raises(Unsupported, match=f"^version {version} does not cache the latent; 5.15 and later do$"):
        PEERS["transformers"].probe(CPU)
