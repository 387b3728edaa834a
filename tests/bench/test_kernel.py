"""A run: inputs that are hard to get right by accident, answers checked before times, every failure with its reason."""

import dataclasses
import os

import pytest
import torch

from mla_edu.bench import kernel as bench
from mla_edu.bench import run as loop
from mla_edu.bench.clock import Clock, Timing
from mla_edu.bench.grid import Case
from mla_edu.bench.libraries import Unsupported
from mla_edu.bench.peer import Peer, Prepared
from mla_edu.bench.results import Limits
from mla_edu.kernels import reference
from mla_edu.kernels.problems import check_answer

CPU = torch.device("cpu")


def right(case, problems):
    def call(problem):
        out, lse = reference.decode(problem.q.float(), *problem.tensors[1:], **problem.options)
        return out.to(problem.q.dtype), lse

    return Prepared([lambda problem=problem: call(problem) for problem in problems], None)


@pytest.fixture
def peers(monkeypatch):
    """``peers(name=prepare, ...)``: these alone can run; a prepare may be an exception that the probe raises."""

    def let(**prepares):
        def probe(prepare, device):
            if isinstance(prepare, Exception):
                raise prepare
            return "1.0"

        found = {name: Peer(lambda device, p=prepare: probe(p, device), prepare) for name, prepare in prepares.items()}
        monkeypatch.setattr(bench, "PEERS", found)

    return let


def run_on(*cases, **options):
    return bench.run(list(cases), CPU, toy=True, **options)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8_mla"])
def test_problems_share_a_table_of_pages_and_nothing_else(case, dtype):
    one, two = bench.make_problems(case(3, 150, batch=4, dtype=dtype), CPU, 2)
    assert one.block_table is two.block_table and one.seq_lens.tolist() == [150] * 4
    assert sorted(one.block_table.flatten().tolist()) == list(range(12)) != one.block_table.flatten().tolist()
    assert not torch.equal(one.q, two.q) and not torch.equal(one.kv_cache[0], two.kv_cache[0])
    for last in one.block_table[:, -1]:
        page = one.kv_cache[last]
        if dtype == "fp8_mla":
            assert (page[150 - 128 :] == 0xFF).all() and not (page[: 150 - 128] == 0xFF).all(dim=1).any()
        else:
            assert page[150 - 128 :].isnan().all() and page[: 150 - 128].isfinite().all()


@pytest.mark.parametrize("dtype", ["bf16", "fp8_mla"])
def test_ragged_sequences_own_their_tokens_and_all_else_is_nan(dtype):
    ragged = Case(heads=3, s_q=1, context=150, batch=5, dtype=dtype, lengths="uniform")
    (problem,) = bench.make_problems(ragged, CPU, 1)
    assert problem.seq_lens.tolist() == list(ragged.sequences) and len(set(ragged.sequences)) == 5
    owned = torch.zeros(problem.kv_cache.shape[:2], dtype=torch.bool)
    for pages, length in zip(problem.block_table.tolist(), ragged.sequences, strict=True):
        for token in range(length):
            assert not owned[pages[token // 64], token % 64]
            owned[pages[token // 64], token % 64] = True
        assert all(page == len(owned) - 1 for page in pages[-(-length // 64) :])
    nan = problem.kv_cache == 0xFF if dtype == "fp8_mla" else problem.kv_cache.isnan()
    assert torch.equal(nan.all(dim=-1), ~owned) and not owned[-1].any()


def test_full_pages_hold_no_nan(case):
    (problem,) = bench.make_problems(case(3, 128, batch=2), CPU, 1)
    assert problem.kv_cache.isfinite().all()


def test_softmax_is_not_flat(case):
    (problem,) = bench.make_problems(case(16, 150), CPU, 1)
    _, lse = reference.decode(problem.q.float(), *problem.tensors[1:], **problem.options)
    assert lse.mean() > torch.tensor(150.0).log() + 0.5  # the log-sum-exp of equal scores of 0


def test_a_kernel_that_rounds_its_weights_to_16_bit_is_right(case):
    """As all do on a GPU; the interpreter does not."""
    (problem,) = bench.make_problems(case(16, 150, batch=3), CPU, 1)
    expected = reference.decode(problem.q.float(), *problem.tensors[1:], **problem.options)
    for b, pages in enumerate(problem.block_table.long()):
        rows = problem.kv_cache[pages].flatten(0, 1)[:150].float()
        scores = problem.q[b, 0].float() @ rows.T * problem.sm_scale
        weights = torch.exp(scores - scores.amax(dim=1, keepdim=True))
        out = weights.bfloat16().float() @ rows[:, :512] / weights.sum(dim=1, keepdim=True)
        check_answer(
            (out.bfloat16()[None, None], expected[1][b : b + 1]), (expected[0][b : b + 1], expected[1][b : b + 1])
        )


def test_answers_are_checked_before_any_is_timed(case, peers, monkeypatch):
    happened = []
    check, time = check_answer, Clock.time
    monkeypatch.setattr(bench, "check_answer", lambda *a: happened.append("checked") or check(*a))
    monkeypatch.setattr(bench, "_limits", lambda *a: Limits(copy_bytes_per_s=1, matmul_flop_per_s=1))
    monkeypatch.setattr(bench, "floor_microseconds", lambda clock: 0)
    monkeypatch.setattr(Clock, "time", lambda *a: happened.append("timed") or time(*a))
    peers(ours=right, other=right)
    results = run_on(case(3, 70), case(3, 70, dtype="fp8_mla"))
    assert happened == ["checked", "checked", "checked", "timed"] * 4  # all three inputs
    assert all(each.microseconds > 0 and each.error < 0.01 for each in results.measurements)


@pytest.mark.parametrize("mistake", ["scale", "mask", "table", "lse", "nan", "first input"])
def test_wrong_answers_are_not_timed(case, peers, monkeypatch, mistake):
    def wrong(each_case, problems):
        def spoil(problem):
            if mistake == "scale":
                return dataclasses.replace(problem, sm_scale=1.02 * problem.sm_scale)
            if mistake == "mask":
                return dataclasses.replace(problem, causal=False)
            if mistake == "table":
                return dataclasses.replace(problem, block_table=problem.block_table.flip(1))
            return problem

        calls = right(each_case, [spoil(problem) for problem in problems]).calls
        if mistake == "lse":
            out, lse = calls[0]()
            return Prepared([lambda: (out, lse / 0.693)] * len(calls), None)
        if mistake == "nan":
            return Prepared([lambda: calls[0]()[0] * torch.nan] * len(calls), None)
        if mistake == "first input":  # answers every call as if it were the first
            return Prepared([calls[0]] * len(calls), None)
        return Prepared(calls, None)

    monkeypatch.setattr(Clock, "time", lambda *a: pytest.fail("it was timed"))
    peers(ours=wrong)
    (found,) = bench.measure(case(3, 128, batch=2, s_q=2), ["ours"], Clock(CPU))
    assert found.microseconds is None and found.why_not.startswith("wrong: ")


def test_a_layer_is_held_to_its_own_expectation(case, peers):
    def layer(factor):
        out = torch.linspace(-1, 1, 1001)
        return lambda case, problems: Prepared([lambda: out, lambda: factor * out], [out, out])

    peers(near=layer(1.04), far=layer(1.06), nan=layer(torch.nan))
    near, far, nan = run_on(case(3, 70)).measurements
    assert near.error == pytest.approx(0.04, rel=1e-3)  # the larger one
    assert far.why_not == "wrong: the layer's output is off by 0.06"
    assert nan.why_not == "wrong: the layer's output is off by inf"


def test_every_input_is_timed_and_often_enough_on_a_gpu(case, peers, monkeypatch):
    """A run that is no toy, as far as it can be followed without a GPU."""
    asked = {}
    monkeypatch.setattr(bench, "LARGE", 10**6)
    monkeypatch.setattr(bench, "copy_bytes_per_s", lambda size, clock: asked.setdefault("copy", size) and 1e9)
    monkeypatch.setattr(bench, "read_bytes_per_s", lambda size, clock: asked.setdefault("read", size) and 1e9)
    monkeypatch.setattr(bench, "matmul_flop_per_s", lambda *a: asked.setdefault("product", a) and 1e9)
    monkeypatch.setattr(bench, "floor_microseconds", lambda clock: 0)

    def time(clock, calls):
        asked.setdefault("timed", []).append((clock, len(calls)))
        return Timing(5.0, 0.1)

    monkeypatch.setattr(Clock, "time", time)
    peers(ours=right)
    results = bench.run([case(3, 150), case(3, 870)], CPU, toy=False)
    assert asked["timed"] == [(Clock(CPU, 5, 2**29), 3), (Clock(CPU, 5, 2**29), 2)]
    assert asked["copy"] == asked["read"] == 2**32 and asked["product"] == (8192, torch.bfloat16, Clock(CPU))
    assert [each.microseconds for each in results.measurements] == [5.0, 5.0] and not results.toy


def test_the_better_of_two_measurements_of_the_machine_counts(case, peers, monkeypatch):
    copies, products, reads = iter([3e9, 2e9]), iter([5e9, 7e9]), iter([4e9, 6e9])
    monkeypatch.setattr(bench, "read_bytes_per_s", lambda *a: next(reads))
    monkeypatch.setattr(bench, "copy_bytes_per_s", lambda *a: next(copies))
    monkeypatch.setattr(bench, "matmul_flop_per_s", lambda *a: next(products))
    peers(ours=right)
    assert run_on(case(3, 70)).limits == Limits(copy_bytes_per_s=3e9, matmul_flop_per_s=7e9, read_bytes_per_s=6e9)


def test_every_failure_has_its_reason_and_stops_no_other(case, peers):
    def fails(error):
        def prepare(case, problems):
            raise error

        return prepare

    peers(
        ours=right,
        absent=Unsupported("not installed: pip install it"),
        unable=fails(Unsupported("fp8 cache")),
        broken=fails(RuntimeError("CUDA error: no\nstack")),
        full=fails(torch.cuda.OutOfMemoryError("tried to allocate")),
        last=right,
    )
    results = run_on(case(3, 70))
    assert results.kernels["absent"] == "not installed: pip install it" and results.kernels["ours"] == "1.0"
    found = {each.kernel: each.why_not for each in results.measurements}
    assert found == {
        "ours": None,
        "unable": "fp8 cache",
        "broken": "failed: RuntimeError: CUDA error: no",
        "full": "out of memory",
        "last": None,
    }


def test_a_peer_that_fails_with_one_dtype_is_tried_with_another(case, peers):
    def fails(each_case, problems):
        if each_case.dtype == "fp8_mla":
            raise RuntimeError("no such dtype")
        return right(each_case, problems)

    peers(ours=right, other=fails)
    results = run_on(case(3, 70, dtype="fp8_mla"), case(3, 90), case(3, 90, dtype="fp8_mla"))
    found = [each.why_not for each in results.measurements if each.kernel == "other"]
    assert found == ["failed: RuntimeError: no such dtype", None, "failed on a smaller case"]


def test_only_the_kernels_that_are_named_are_measured(case, peers):
    peers(ours=right, other=right)
    results = run_on(case(3, 70), names=["other"])
    assert list(results.kernels) == ["other"] and {each.kernel for each in results.measurements} == {"other"}


def test_parts_are_joined_in_one_file_of_one_machine(case, peers, tmp_path, monkeypatch):
    peers(ours=right, other=right)
    run_on(case(3, 70), names=["ours"], folder=tmp_path).write(tmp_path)
    joined = run_on(case(3, 90), folder=tmp_path)
    joined.write(tmp_path)
    assert [(each.kernel, each.case.context) for each in joined.measurements] == [
        ("ours", 70), ("ours", 90), ("other", 90),
    ]  # fmt: skip
    monkeypatch.setattr(bench, "versions", lambda: loop.versions() | {"triton": "0.1"})
    monkeypatch.setattr(bench, "_limits", lambda *a: pytest.fail("the machine was measured"))
    with pytest.raises(ValueError, match=r"triton is 0.1 and in the file of results .*; expected the same for all"):
        run_on(case(3, 80), folder=tmp_path)


def test_a_failed_peer_is_tried_again_on_smaller_cases_only_but_ours_on_all(case, peers):
    tried = []

    def fails(name):
        def prepare(case, problems):
            tried.append((name, case.context))
            raise RuntimeError("no kernel image")

        return prepare

    peers(ours=fails("ours"), other=fails("other"), last=right)
    results = run_on(case(3, 70), case(3, 90), case(3, 60), case(3, 65))
    assert tried == [("ours", 70), ("other", 70), ("ours", 90), ("ours", 60), ("other", 60), ("ours", 65)]
    found = {(each.kernel, each.case.context): each.why_not for each in results.measurements}
    assert found["other", 90] == found["other", 65] == "failed on a smaller case" and found["ours", 90].startswith(
        "failed: "
    )
    assert found["last", 90] is None


@pytest.mark.parametrize(
    ("error", "why_not"),
    [
        (loop.DeviceLost("AcceleratorError: illegal"), "device lost: AcceleratorError: illegal"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_what_was_measured_stands_when_a_run_breaks_off(case, peers, monkeypatch, error, why_not):
    def breaks(each_case, problems):
        if each_case.context == 90:
            raise error
        return right(each_case, problems)

    peers(ours=right, other=breaks, last=right)
    monkeypatch.setattr(bench, "why_not", lambda error, device: (_ for _ in ()).throw(error))
    results = run_on(case(3, 70), case(3, 90), case(3, 80))
    found = {(each.kernel, each.case.context): each.why_not for each in results.measurements}
    assert [found[kernel, 70] for kernel in ("ours", "other", "last")] == [None] * 3
    assert found["ours", 90] is None
    left = [("other", 90), ("last", 90), ("ours", 80), ("other", 80), ("last", 80)]
    assert [found[key] for key in left] == [why_not] * 5


def test_an_error_after_which_the_gpu_is_silent_ends_the_run(monkeypatch):
    def silent(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    gpu = torch.device("cuda")
    monkeypatch.setattr(loop.gc, "collect", lambda: None)  # a second each, for nothing here
    monkeypatch.setattr(torch.cuda, "synchronize", silent)
    with pytest.raises(loop.DeviceLost, match="RuntimeError: why"):
        loop.why_not(RuntimeError("why\nand where"), gpu)
    assert loop.why_not(torch.cuda.OutOfMemoryError("no"), gpu) == "out of memory"
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert loop.why_not(RuntimeError("why\nand where"), gpu) == "failed: RuntimeError: why"


def test_without_triton_nothing_is_measured(case, peers, monkeypatch):
    monkeypatch.setattr(bench, "_limits", lambda *a: pytest.fail("the machine was measured"))
    peers(ours=Unsupported("not installed: pip install 'mla-edu[kernels]'"), other=right)
    with pytest.raises(ImportError, match=r"needs Triton: not installed: pip install 'mla-edu\[kernels\]'"):
        run_on(case(3, 70))


def test_inputs_that_do_not_fit_are_a_reason_too(case, peers, monkeypatch):
    def full(*arguments):
        raise torch.cuda.OutOfMemoryError("tried to allocate")

    peers(ours=right, other=right)
    monkeypatch.setattr(bench, "make_problems", full)
    assert [each.why_not for each in run_on(case(3, 70)).measurements] == ["out of memory"] * 2


def test_an_interpreted_kernel_is_not_timed_on_a_gpu(case, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="TRITON_INTERPRET is set; expected it unset where a GPU is timed"):
        bench.run([case(3, 70)], torch.device("cuda"), toy=False)


@pytest.mark.parametrize("value", [None, "0"])
def test_a_cpu_is_not_timed_where_triton_would_not_interpret(case, monkeypatch, value):
    if value is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    before = dict(os.environ)
    with pytest.raises(ValueError, match="TRITON_INTERPRET is 0; expected 1 in the environment where there is no GPU"):
        run_on(case(3, 70))
    assert dict(os.environ) == before


def test_no_case_starts_when_time_is_out(case, peers):
    peers(ours=right)
    results = run_on(case(3, 70), case(16, 70), seconds=0)
    assert [each.why_not for each in results.measurements] == ["out of time"] * 2
