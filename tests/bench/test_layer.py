"""A layer's step: the same cache at every call, layers that agree, parts and a limit that are the step's own."""

import pytest
import torch

from mla_edu.bench import layer as bench
from mla_edu.bench import transformers_layer
from mla_edu.bench.clock import Clock, Timing
from mla_edu.bench.grid import LayerCase
from mla_edu.bench.libraries import Unsupported
from mla_edu.bench.results import LAYERS

CPU = torch.device("cpu")
CASE = LayerCase(context=100, dtype="fp32")


@pytest.fixture
def timed(monkeypatch):
    """The calls that were handed to the clock, each of which is said to take a second; ``timed.times`` says else."""

    class Timed:
        times: list[float] | None = None

    found = Timed()

    def time_in_turn(clock, rivals):
        found.clock, found.rivals = clock, rivals
        return [Timing(time, 0.1) for time in found.times or [1e6] * len(rivals)]

    monkeypatch.setattr(Clock, "time_in_turn", time_in_turn)
    return found


def test_layers_agree_and_the_cache_is_the_same_at_every_step(timed):
    found, _ = bench.measure(CASE, Clock(CPU), 8)
    assert [each.kernel for each in found] == list(LAYERS)
    assert all(0 < each.error < 1e-4 for each in found)
    with torch.inference_mode():
        for (call,) in timed.rivals[:3]:
            first, second = call().clone(), call()
            assert torch.equal(first, second)


def test_the_step_is_the_last_of_a_full_pass():
    ours = bench.MultiHeadLatentAttention(bench.LITE, dtype=torch.float64)
    hidden_states = torch.randn(1, 6, bench.LITE.hidden_size, dtype=torch.float64)
    cache = bench.LatentCache(bench.LITE, max_seq_len=6, dtype=torch.float64)
    with torch.no_grad():
        whole = ours(hidden_states)
        ours(hidden_states[:, :5], cache)
        rows = cache.rows[:, :5].clone()
        for step in [bench.our_step(ours, cache, hidden_states[:, 5:], mode) for mode in ("absorbed", "expanded")]:
            torch.testing.assert_close(step(), whole[:, 5:])
        theirs = transformers_layer.TransformersLayer("deepseek_v2", ours).step(hidden_states[:, 5:], rows)
        torch.testing.assert_close(theirs(), whole[:, 5:], rtol=1e-5, atol=1e-6)  # its angles are float32


def test_layers_that_disagree_are_not_timed(timed, monkeypatch):
    make_step = bench.our_step

    def spoiled(*arguments):
        step = make_step(*arguments)
        return lambda: 1.01 * step()

    monkeypatch.setattr(bench, "our_step", spoiled)
    results = bench.run([CASE], CPU, toy=True)
    assert {each.why_not for each in results.measurements} == {
        "wrong: the layers disagree by 0.01; expected at most 0.0001"
    }
    assert not hasattr(timed, "rivals") and not results.limits


def test_all_take_turns_on_cold_caches_often_enough(timed):
    bench.run([CASE], CPU, toy=False)
    assert timed.clock == Clock(CPU, fewest=15, evicted_bytes=2**29)
    assert len(timed.rivals) == 8 and all(len(calls) == 1 for calls in timed.rivals)


def test_limit_reads_cache_and_weights_or_multiplies(timed):
    weights = 2048 * 16 * 192 + 2048 * 576 + 512 * 16 * 256 + 16 * 128 * 2048
    bytes_read = 4 * (weights + 512) + 101 * 576 * 4
    macs = weights + 16 * 101 * 1088
    timed.times = [1e6] * 6 + [2e6, 1.0]  # a copy takes two seconds, a product a microsecond
    _, limits = bench.measure(CASE, Clock(CPU), 64)
    assert limits.copy_bytes_per_s == pytest.approx(2 * bytes_read / 2)
    assert limits.microseconds(CASE) == pytest.approx(1e6)
    timed.times = [1e6] * 6 + [1.0, 2e6]
    _, limits = bench.measure(CASE, Clock(CPU), 64)
    assert limits.matmul_flop_per_s == pytest.approx(2 * 64**3 / 2)
    assert limits.microseconds(CASE) == pytest.approx(1e6 * 2 * macs / 64**3)
    assert (CASE.cache_bytes, CASE.weight_bytes) == (101 * 576 * 4, 4 * (weights + 512))


def test_weights_are_those_of_the_layer():
    layer = bench.MultiHeadLatentAttention(bench.LITE)
    assert sum(each.nbytes for each in layer.parameters()) == CASE.weight_bytes


def test_copy_and_product_are_of_the_size_that_the_limit_says(timed):
    bench.measure(CASE, Clock(CPU), 64)
    copy, product = (calls[0] for calls in timed.rivals[-2:])
    with torch.inference_mode():
        assert copy().nbytes == CASE.bytes and product().shape == (64, 64) and product().dtype == torch.float32


def test_parts_are_those_of_an_absorbed_step():
    rows = torch.randn(100, 576)
    scores, softmax, weighted_sum = (part() for part in bench.absorbed_parts(rows).values())
    torch.testing.assert_close(softmax, (scores * 192**-0.5).softmax(dim=-1))
    torch.testing.assert_close(weighted_sum, softmax @ rows[:, :512])


def test_times_go_to_those_who_took_them(timed):
    timed.times = [float(number) for number in range(1, 9)]
    found, _ = bench.measure(CASE, Clock(CPU), 8)
    assert [each.microseconds for each in found] == [1, 2, 3]
    assert found[0].parts == {"scores": 4, "softmax": 5, "weighted_sum": 6}
    assert found[1].parts is found[2].parts is None


def test_without_transformers_it_says_what_to_install(monkeypatch):
    def missing():
        raise Unsupported("not installed: pip install 'mla-edu[hf]'")

    monkeypatch.setattr(bench, "probe_transformers", missing)
    with pytest.raises(ImportError, match=r"beside that of transformers: not installed: pip install 'mla-edu\[hf\]'"):
        bench.run([CASE], CPU, toy=True)


def test_a_case_without_memory_says_so_and_the_next_is_measured(timed, monkeypatch):
    make, cases = bench.LatentCache, [CASE, LayerCase(context=3, dtype="fp32")]

    def full(*arguments, max_seq_len, **options):
        if max_seq_len > 10:
            raise torch.cuda.OutOfMemoryError("tried to allocate")
        return make(*arguments, max_seq_len=max_seq_len, **options)

    monkeypatch.setattr(bench, "LatentCache", full)
    results = bench.run(cases, CPU, toy=True)
    assert [each.why_not for each in results.measurements] == ["out of memory"] * 3 + [None] * 3
    assert [each.case for each in results.limits] == cases[1:]
