"""Parts in one file: what a second run adds, replaces and must leave alone; what may not stand side by side."""

import pytest

from mla_edu.bench.join import check_same, join
from mla_edu.bench.results import Limits


def times_of(results, kernel="ours"):
    return {each.case: each.microseconds or each.why_not for each in results.measurements if each.kernel == kernel}


def test_new_cases_and_kernels_are_added_and_newer_times_replace_older(make_results, case):
    one, two = case(16, 70), case(32, 70)
    earlier = make_results({"ours": {one: 10.0}, "eager": {one: 30.0}}, {"sglang": "not installed"})
    found = make_results({"ours": {two: 20.0, one: 9.0}, "sglang": {two: 50.0}}, date="2026-02-03")
    joined = join(earlier, found)
    assert times_of(joined) == {one: 9.0, two: 20.0}
    assert times_of(joined, "eager") == {one: 30.0} and times_of(joined, "sglang") == {two: 50.0}
    assert joined.kernels == {"ours": "1.0", "eager": "1.0", "sglang": "1.0"} and joined.date == "2026-02-03"


@pytest.mark.parametrize(
    ("second", "stands"),
    [("out of time", 10.0), ("device lost: E", 10.0), ("wrong: out is off by 3", "wrong: out is off by 3")],
)
def test_a_time_gives_way_to_a_fault_only(make_results, case, second, stands):
    each = case(16, 70)
    joined = join(make_results({"ours": {each: 10.0}}), make_results({"ours": {each: second}}))
    assert times_of(joined) == {each: stands}


def test_a_reason_gives_way_to_anything(make_results, case):
    each = case(16, 70)
    joined = join(make_results({"ours": {each: "out of time"}}), make_results({"ours": {each: "out of memory"}}))
    assert times_of(joined) == {each: "out of memory"}


def test_a_kernel_that_is_gone_keeps_the_version_of_its_times(make_results, case):
    each = case(16, 70)
    earlier = make_results({"ours": {each: 10.0}, "sglang": {each: 20.0}})
    joined = join(earlier, make_results({"ours": {each: 9.0}}, {"sglang": "not installed"}))
    assert joined.kernels["sglang"] == "1.0" and times_of(joined, "sglang") == {each: 20.0}


def test_the_machine_is_as_fast_as_it_ever_was(make_results, case):
    parts = [
        make_results({"ours": {case(16, 70): 1.0}}, limits=Limits(copy_bytes_per_s=c, matmul_flop_per_s=m), **floor)
        for c, m, floor in ((2.0, 3.0, {"floor_microseconds": 4.0}), (1.0, 5.0, {"floor_microseconds": 6.0}))
    ]
    joined = join(*parts)
    assert joined.limits == Limits(copy_bytes_per_s=2.0, matmul_flop_per_s=5.0) and joined.floor_microseconds == 4.0


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("name", "name is Other GPU and in the file of results Test GPU"),
        ("torch", "torch is 9.9 and in the file of results 2.13.0"),
        ("ptxas", "ptxas is 13.1 and in the file of results None"),
        ("sources", "sources of the kernel is abc and in the file"),
        ("eager", "eager is 2.0 and in the file of results 1.0"),
        (None, None),
    ],
)
def test_other_machines_kernels_and_versions_are_refused(make_results, case, what, message):
    earlier = make_results({"ours": {case(16, 70): 10.0}, "eager": {case(16, 70): 9.0}}, {"sglang": "not installed"})
    machine, versions, sources = earlier.machine, dict(earlier.versions), earlier.sources
    kernels = {"ours": "1.0", "eager": "1.0", "sglang": "5.0"}  # sglang has no times in the file
    if what == "name":
        machine = machine.model_copy(update={"name": "Other GPU"})
    if what in ("torch", "ptxas"):
        versions[what] = {"torch": "9.9", "ptxas": "13.1"}[what]
    if what == "sources":
        sources = "abc"
    if what == "eager":
        kernels["eager"] = "2.0"
    if what is None:
        check_same(earlier, machine, versions, sources, kernels)
        return
    with pytest.raises(ValueError, match=message):
        check_same(earlier, machine, versions, sources, kernels)
