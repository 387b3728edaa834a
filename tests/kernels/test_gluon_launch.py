"""Gluon is taken unasked only where the committed times show it to be faster."""

import pytest

from mla_edu.bench.first_look import read_first_look
from mla_edu.bench.results import measured_gpus

pytest.importorskip("triton.experimental.gluon")
from mla_edu.kernels.gluon_launch import FASTER_ON, MANY_ROWS


def looks_at(gpu):
    return [look for look in [read_first_look()] if look.machine.name == gpu]


def best_times(look, kernels):
    """The least microseconds on each step of any form of a kernel."""
    best = {}
    for each in look.timings:
        if each.kernel.split(" ")[0] in kernels:
            best[each.step] = min(each.microseconds, best.get(each.step, each.microseconds))
    return best


@pytest.mark.parametrize("gpu", FASTER_ON)
def test_gluon_was_faster_on_every_common_step_with_many_rows(gpu):
    common = []
    for look in looks_at(gpu):
        triton, gluon = best_times(look, ("triton-0.1", "triton-even", "triton")), {}
        for kernel in ("gluon-first", "gluon"):
            gluon |= look.times(kernel)
        common += [
            (step, gluon[step].microseconds, triton[step])
            for step in gluon
            if step in triton and step.heads > MANY_ROWS
        ]
    for results in measured_gpus():
        if results.machine.name == gpu:
            ours, gluon = results.times(), results.times("ours-gluon")
            common += [
                (case, gluon[case].time, ours[case].time) for case in gluon if case in ours and case.rows > MANY_ROWS
            ]
    assert len(common) >= 2
    assert all(gluon_time < triton_time for _, gluon_time, triton_time in common), common


@pytest.mark.parametrize("gpu", FASTER_ON)
def test_with_64_rows_gluon_reads_faster_on_both_sides_of_what_triton_was_timed_on(gpu):
    """At 64 rows no step is common: Triton has 32 sequences of 8k tokens, Gluon 32 of 4k and of 16k."""
    (look,) = looks_at(gpu)
    triton = [each for each in look.timings if each.kernel.startswith("triton") and each.step.heads == 64]
    gluon = [each for each in look.times("gluon-first").values() if (each.step.heads, each.step.batch) == (64, 32)]
    assert {each.step.context for each in triton} == {8192}
    assert sorted(each.step.context for each in gluon) == [4096, 16_384]
    assert min(each.gb_per_s for each in gluon) > max(each.gb_per_s for each in triton)


@pytest.mark.parametrize("gpu", FASTER_ON)
def test_with_few_rows_gluon_was_slower(gpu):
    (look,) = looks_at(gpu)
    triton, gluon = look.times("triton"), look.times("gluon")
    few = [step for step in gluon if step in triton and step.heads <= MANY_ROWS]
    assert few and all(triton[step].microseconds < gluon[step].microseconds for step in few)
