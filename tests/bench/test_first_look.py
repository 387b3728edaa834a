"""The file of a first look: what it refuses, what it says of a step, and that the committed one is whole."""

import json

import pytest

from mla_edu.bench.first_look import FILE, Prediction, Step, read_first_look
from mla_edu.bench.grid import Case


@pytest.fixture
def written(tmp_path):
    """``written(change)`` reads the committed file after a change of its JSON."""

    def change_and_read(change):
        content = json.loads(FILE.read_text(encoding="utf-8"))
        change(content)
        path = tmp_path / "look.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return read_first_look(path)

    return change_and_read


def test_the_committed_file_names_its_machine_and_versions():
    look = read_first_look()
    assert look.machine.name == "NVIDIA H100 80GB HBM3" and look.date == "2026-11-26"
    assert {"python", "torch", "triton", "ptxas"} <= set(look.versions)
    assert {each.look for each in look.timings} == set(look.looks)
    assert {each.kernel for each in look.timings} == set(look.kernels)
    measured = [each.copy_bytes_per_s for each in look.looks.values() if each.copy_bytes_per_s]
    assert len(measured) == 3 and all(2.4e12 < rate < 2.5e12 for rate in measured)


@pytest.mark.parametrize(("dtype", "heads"), [("bf16", 16), ("fp8_mla", 128)])
def test_a_step_moves_and_computes_what_the_benchmarks_case_does(dtype, heads):
    case = Case(heads=heads, s_q=1, context=4096, batch=32, dtype=dtype)
    assert Step(heads=heads, batch=32, context=4096, dtype=dtype).cost == case.cost


def test_of_unequal_sequences_only_their_own_tokens_count():
    step = Step(heads=16, batch=3, context=100, sequences=(100, 1, 7))
    assert step.cost.flops == 2 * 16 * 108 * (576 + 512)
    assert step.cost.bytes == 1152 * 108 + 3 * 16 * 2 * (576 + 512)
    assert str(step) == "16 heads, 3, one long"


def test_one_kernel_no_other_kernels_times():
    look = read_first_look()
    step = Step(heads=16, batch=32, context=16_384)
    assert look.times("triton-0.1")[step].microseconds == pytest.approx(218.88, abs=0.01)
    assert look.times("triton-even")[step].look == "even shares"  # the first of two runs
    with pytest.raises(ValueError, match=r"kernel is 'flash'; expected triton-0\.1"):
        look.times("flash")


def test_a_prediction_says_on_which_side_it_missed():
    both, least = Prediction(name="a", quantity="b", low=1, high=2), Prediction(name="a", quantity="b", low=1)
    assert [both.says_of(value) for value in (0.9, 1, 2, 2.1)] == ["came out lower", "held", "held", "came out higher"]
    assert [least.says_of(value) for value in (0.9, 9)] == ["came out lower", "held"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["timings"].append(c["timings"][0]), "has two times on 16 heads"),
        (lambda c: c["timings"][0].update(kernel="ours"), "timing is of 'ours' in 'version 0.1 and peers'"),
        (lambda c: c["timings"][0].update(microseconds=0), "timings.0.microseconds: Input should be greater than 0"),
        (lambda c: c["timings"][0]["step"].update(sequences=[5]), "sequences are 1 of 5 tokens at most; expected 32"),
        (lambda c: c.pop("machine"), "machine: Field required"),
        (lambda c: c.update(page_size=32), "page_size is 32; expected 64"),
    ],
)
def test_a_file_that_cannot_be_is_refused(written, change, message):
    with pytest.raises(ValueError, match=message):
        written(change)
