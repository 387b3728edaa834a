"""The measured results in Python: nothing measured but what files say, the files' own numbers, checked settings."""

import json

import pytest

from mla_edu.bench.grid import GRID, Case, cases
from mla_edu.bench.results import Limits, Machine, Measurement, Results, kernel_sources, layer_steps
from mla_edu.book.widgets import MeasuredResults
from mla_edu.book.widgets.measured_board import board
from mla_edu.book.widgets.measured_results import nearest, quantities, sentence, times

LAYER_STEPS = layer_steps()
LIMITS = Limits(copy_bytes_per_s=4e12, matmul_flop_per_s=8e14)
TIMED = Case(heads=16, s_q=1, context=65536, batch=32, dtype="bf16")
FULL = Case(heads=16, s_q=1, context=65536, batch=128, dtype="bf16")
CHOICE = TIMED.model_dump()


def measured(case, kernel, microseconds=None, why_not=None):
    error = None if microseconds is None else 1e-3
    return Measurement(case=case, kernel=kernel, microseconds=microseconds, error=error, why_not=why_not)


def synthetic(**changed):
    """Results that nobody measured."""
    measurements = [
        measured(TIMED, "ours", 800.0),
        measured(TIMED, "sglang", 1500.0),
        measured(TIMED, "transformers", 90_000.0),
        measured(FULL, "ours", why_not="out of memory"),
        measured(FULL, "sglang", 6000.0),
    ]
    fields = {
        "machine": Machine(name="Test GPU", multiprocessors=7, memory_bytes=10**11, l2_bytes=10**7, driver="1.2"),
        "versions": {"torch": "9.9"},
        "date": "2001-02-03",
        "sources": kernel_sources(),
        "toy": False,
        "limits": LIMITS,
        "floor_microseconds": 2.5,
        "kernels": {"ours": "0.1", "sglang": "0.5", "flashinfer": "not installed: flashinfer", "transformers": "5"},
        "measurements": measurements,
    }
    return Results(**fields | changed)


def one(name, results=(), layer_steps=None):
    return next(machine for machine in board(results, layer_steps) if machine["name"] == name)


def test_only_what_was_measured_is_there_and_gpus_come_first():
    h200 = synthetic(machine=Machine(name="NVIDIA H200", multiprocessors=1, memory_bytes=1, l2_bytes=1, driver="1"))
    names = [machine["name"] for machine in board([synthetic(), h200], LAYER_STEPS)]
    assert names == ["test-gpu", "nvidia-h200", "cpu"]
    with pytest.raises(ValueError, match="results are empty and layer_steps is None; expected something measured"):
        board([])


def test_numbers_are_those_of_the_file():
    results = synthetic()
    machine, ours = one("test-gpu", [results]), results.times()[TIMED]
    found = quantities(machine, CHOICE)
    assert found["microseconds"] == ours.microseconds
    assert found["share"] == pytest.approx(results.fraction(ours), rel=1e-12)
    assert found["limit"] == pytest.approx(LIMITS.microseconds(TIMED), rel=1e-12)
    assert found["gb_per_s"] == pytest.approx(ours.gb_per_s, rel=1e-12)
    assert found["tflop_per_s"] == pytest.approx(ours.tflop_per_s, rel=1e-12)
    assert found["cache_bytes"] == 32 * 65536 * 1152
    assert found["intensity"] == TIMED.flops / TIMED.bytes


def test_a_ragged_batch_is_no_choice_and_replaces_none():
    ragged = TIMED.model_copy(update={"lengths": "uniform"})
    results = synthetic()
    more = synthetic(measurements=[*results.measurements, measured(ragged, "ours", 1.0)])
    assert board([more]) == board([results])
    with pytest.raises(ValueError, match="are a toy run or empty"):
        board([synthetic(measurements=[measured(ragged, "ours", 1.0)])])


def test_the_faster_yardstick_of_memory_sets_the_limit():
    limits = LIMITS.model_copy(update={"read_bytes_per_s": 5e12})
    results = synthetic(limits=limits)
    machine = one("test-gpu", [results])
    assert quantities(machine, CHOICE)["limit"] == pytest.approx(limits.microseconds(TIMED), rel=1e-12)
    assert "a copy reached 4.00 TB/s, a sum, which only reads, 5.00 TB/s and a product" in machine["about"]


def test_a_kernel_without_a_time_says_why():
    machine = one("test-gpu", [synthetic()])
    assert machine["kernels"] == ["ours", "sglang", "flashinfer", "transformers, a whole layer"]
    assert list(times(machine, CHOICE).values()) == [800.0, 1500.0, "not installed: flashinfer", 90_000.0]
    full = list(times(machine, FULL.model_dump()).values())
    assert full == ["out of memory", 6000.0, "not installed: flashinfer", "not measured for this choice"]
    found = quantities(machine, FULL.model_dump())
    assert (found["microseconds"], found["share"], found["gb_per_s"], found["tflop_per_s"]) == (None,) * 4
    assert sentence(machine, FULL.model_dump()) == (
        "ours: out of memory. What this machine’s memory allows: 2.42 ms at best."
    )


def test_sentence_names_the_fastest_peer():
    machine = one("test-gpu", [synthetic()])
    assert sentence(machine, CHOICE) == (
        "ours: 800 µs, 76% of what this machine’s memory allows; 1.9× as fast as sglang."
    )


def test_cpu_is_said_to_be_a_whole_layer():
    cpu, first = one("cpu", layer_steps=LAYER_STEPS), LAYER_STEPS["steps"][0]
    choice = {"dtype": "fp32", "heads": 16, "s_q": 1, "context": 1024, "batch": 1}
    found = quantities(cpu, choice)
    assert set(found) == {"microseconds", "share", "limit", "cache_bytes"}
    assert found["microseconds"] == pytest.approx(1e3 * first["absorbed_ms"], rel=1e-4)
    assert found["share"] == pytest.approx(first["fraction_of_limit"], rel=1e-4)
    assert found["cache_bytes"] == 1024 * 576 * 4
    assert sentence(cpu, choice).startswith("A whole layer, projections included, not the kernel alone; absorbed: ")
    assert "float" not in json.dumps(cpu["axes"])


def test_results_of_another_kernel_say_so():
    assert "earlier" not in one("test-gpu", [synthetic()])["about"]
    assert one("test-gpu", [synthetic(sources="0" * 16)])["about"].startswith("Measured with an earlier kernel. ")


def test_a_full_run_stays_small():
    kernels = ["ours", "a", "b", "c", "d", "e"]
    every = [measured(case, name, case.bytes / 3.1e6) for case in cases(GRID) for name in kernels]
    widget = MeasuredResults([synthetic(measurements=every)], LAYER_STEPS)
    assert len(every) == 6 * 320
    assert len(json.dumps(widget.get_state())) < 150_000


@pytest.mark.parametrize(
    ("values", "wanted", "found"),
    [
        ([1, 8, 32], 8, 8),
        ([1, 8, 32], 100, 32),
        ([8, 32], 16, 8),
        ([1024, 4096], 3000, 4096),
        (["fp32", "bf16"], "fp8_mla", "bf16"),
        (["fp16", "fp8_mla"], "bf16", "fp16"),
    ],
)
def test_nearest_is_near_in_ratio(values, wanted, found):
    assert nearest(values, wanted) == found


def test_another_machine_keeps_what_it_has():
    widget = MeasuredResults([synthetic()], LAYER_STEPS, batch=128)
    assert (widget.machine, widget.choice) == ("test-gpu", FULL.model_dump(exclude={"lengths"}))
    widget.machine = "cpu"
    assert widget.choice == {"dtype": "bf16", "heads": 16, "s_q": 1, "context": 16384, "batch": 1}
    widget.set_trait("dtype", "fp32")
    widget.machine = "test-gpu"
    assert (widget.dtype, widget.context) == ("bf16", 65536)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"machine": "h2000"}, "machine is 'h2000'; expected one of test-gpu, cpu"),
        ({"heads": 17}, "heads is 17; expected 16 on test-gpu"),
        ({"machine": "cpu", "dtype": "fp8_mla"}, "dtype is 'fp8_mla'; expected fp32 or bf16 on cpu"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MeasuredResults([synthetic()], LAYER_STEPS, **settings)


def test_toy_empty_and_double_results_are_refused():
    for broken in (synthetic(toy=True), synthetic(measurements=[])):
        with pytest.raises(ValueError, match="results of 'Test GPU' are a toy run or empty"):
            MeasuredResults([broken])
    with pytest.raises(ValueError, match="expected each machine once"):
        MeasuredResults([synthetic(), synthetic()])


def test_viewers_that_run_no_widget_get_the_answers():
    kernels = {"ours": "0.1", "<b>": "not <there>"}
    data, _ = MeasuredResults([synthetic(kernels=kernels)])._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "ours: 800 µs, 76% of what" in data["text/plain"]
    assert "\n<b>: not <there>\n" in data["text/plain"]
    assert "\n&lt;b&gt;: not &lt;there&gt;\n" in data["text/html"]
