"""Parts of a grid, measured one after the other, as one file: of one machine, one kernel and one set of versions."""

from collections.abc import Mapping
from typing import Any

from mla_edu.bench.results import Machine, Measurement, Results


def check_same(
    earlier: Results, machine: Machine, versions: Mapping[str, str], sources: str, kernels: Mapping[str, str]
) -> None:
    """Raise unless what is about to be measured can stand beside what was.

    Args:
        earlier: results of other parts.
        machine: that is measured now.
        versions: of the package and of what it runs on.
        sources: ``kernel_sources()``.
        kernels: those that run now, and their versions.

    Raises:
        ValueError: something differs, with both values.
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
    """Both in one. What is found replaces what was; but no time goes because a second run had none left for it."""
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
