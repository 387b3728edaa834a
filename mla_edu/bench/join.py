"""Parts of a grid, measured one after the other, as one file: of one machine, one kernel and one set of versions."""

from collections.abc import Mapping
from typing import Any

from mla_edu.bench.results import Machine, Measurement, Results


def check_same(
    earlier: Results, machine: Machine, versions: Mapping[str, str], sources: str, kernels: Mapping[str, str]
) -> None:
    """Check that what is about to be measured may stand in one file with what was.

    Args:
        earlier: results of other parts.
        machine: that is measured now.
        versions: of the package and of what it runs on.
        sources: ``kernel_sources()``.
        kernels: those that run now, and their versions.

    Raises:
        ValueError: the machine, a version, the kernel's sources or a kernel's version differs; names both values.
    """
    now: dict[str, Any] = {**machine.model_dump(), **versions, "sources of the kernel": sources, **kernels}
    then = {**earlier.machine.model_dump(), **earlier.versions, "sources of the kernel": earlier.sources}
    then |= {name: earlier.kernels[name] for name in kernels if earlier.times(name)}
    for name in dict.fromkeys([*then, *now]):
        if name in kernels and name not in then:
            continue  # no time of it stands in the file
        if then.get(name) != now.get(name):
            raise ValueError(
                f"{name} is {now.get(name)} and in the file of results {then.get(name)}; expected the same for all "
                "its parts: measure the whole grid, or write to another folder"
            )


def join(earlier: Results, found: Results) -> Results:
    """The results of two runs as one: each case and kernel that either has measured.

    Where both have a measurement of a case by a kernel, the later one stands, unless only the earlier one has a time
    and the later run merely did not get to it or was refused: a time gives way to another time or to a fault (a wrong
    answer, a failure). Of the machine's limits, which both have measured, the better ones stand.

    Args:
        earlier: results of other parts of the grid, or of an earlier run.
        found: results of the later run, which ``check_same`` has let pass; its date stands.

    Returns:
        A new object; the two are as they were.
    """
    cells = {(each.case, each.kernel): each for each in earlier.measurements}
    for each in found.measurements:
        known = cells.get((each.case, each.kernel))
        if known is None or known.microseconds is None or each.microseconds or _is_fault(each):
            cells[each.case, each.kernel] = each
    known_versions = {name: version for name, version in earlier.kernels.items() if earlier.times(name)}
    update = {
        "date": found.date,
        "limits": earlier.limits.better(found.limits),
        "floor_microseconds": min(earlier.floor_microseconds, found.floor_microseconds),
        "kernels": earlier.kernels | found.kernels | known_versions,
        "measurements": list(cells.values()),
    }
    return found.model_copy(update=update)


def _is_fault(measurement: Measurement) -> bool:
    return str(measurement.why_not).startswith(("wrong", "failed:"))
