"""The machines of the measured results."""

from collections.abc import Sequence
from typing import Any

from mla_edu.bench.results import OURS, Results, kernel_sources
from mla_edu.words import digits, size

START: dict[str, Any] = {
    "dtype": "bf16",
    "heads": 16,
    "s_q": 1,
    "context": 2**16,
    "batch": 32,
}  # the choice that is shown at first
Choice = dict[str, Any]  # a value for each name of START


def step_key(choice: Choice) -> str:
    """A choice as the name of its step."""
    return " ".join(str(choice[name]) for name in START)


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _measured(results: Results) -> dict[str, Any]:
    measurements = [each for each in results.measurements if each.case.lengths == "equal"]
    if results.toy or not measurements:
        raise ValueError(f"results of {results.machine.name!r} are a toy run or empty; expected measured times")
    machine, tried = results.machine, list(dict.fromkeys(each.kernel for each in measurements))
    kernels = list(dict.fromkeys([OURS, *results.kernels, *tried]))
    reasons = ["not measured for this choice"]

    def because(reason: str) -> int:
        if reason not in reasons:
            reasons.append(reason)
        return -reasons.index(reason)

    missing: list[float] = [0 if name in tried else because(results.kernels.get(name, reasons[0])) for name in kernels]
    steps = {step_key(each.case.model_dump()): missing.copy() for each in measurements}
    for each in measurements:
        cell = because(each.why_not) if each.why_not else float(f"{each.microseconds:.5g}")
        steps[step_key(each.case.model_dump())][kernels.index(each.kernel)] = cell
    cases = [each.case for each in measurements]
    timed = {each.kernel for each in measurements if each.microseconds}
    peers = {name: results.kernels[name] for name in kernels if name in timed - {OURS} and name in results.kernels}
    rate = results.limits.read_bytes_per_s
    read = "" if rate is None else f", a sum, which only reads, {size(rate)}/s"
    earlier = "" if results.sources == kernel_sources() else "Measured with an earlier kernel. "
    return {
        "name": machine.slug,
        "title": machine.name,
        "kind": "measured",
        "kernels": [f"{name}, a whole layer" if name == "transformers" else name for name in kernels],
        "axes": {name: sorted({getattr(case, name) for case in cases}) for name in START},
        "rates": results.limits.rates._asdict(),
        "reasons": reasons,
        "steps": steps,
        "about": (
            f"{earlier}Medians of {results.date} on {machine.name}: {machine.multiprocessors} multiprocessors, "
            f"{size(machine.memory_bytes)}, driver {machine.driver}; {_listed(results.versions | peers)}. In the same "
            f"run a copy reached {size(results.limits.copy_bytes_per_s)}/s{read} and a product "
            f"{digits(results.limits.matmul_flop_per_s / 1e12)} TFLOP/s: they set the limit."
        ),
    }


def _layer(layer_steps: dict[str, Any]) -> dict[str, Any]:
    kernels = ["absorbed", "expanded", "transformers"]
    rows = {}
    for step in layer_steps["steps"]:
        dtype = {"float32": "fp32", "bfloat16": "bf16"}[step["dtype"]]
        rows[step_key(START | {"dtype": dtype, "context": step["cached_tokens"], "batch": 1})] = step
    hardware = layer_steps["hardware"]
    return {
        "name": "cpu",
        "title": "CPU, a whole layer",
        "kind": "layer",
        "kernels": kernels,
        "axes": {
            "dtype": list(dict.fromkeys(key.split()[0] for key in rows)),
            "heads": [16],
            "s_q": [1],
            "context": sorted({step["cached_tokens"] for step in rows.values()}),
            "batch": [1],
        },
        "reasons": ["not measured for this choice"],
        "steps": {key: [float(f"{1e3 * step[f'{name}_ms']:.5g}") for name in kernels] for key, step in rows.items()},
        "least": {key: 1e3 * step["limit_ms"] for key, step in rows.items()},
        "about": (
            f"Medians on {hardware['cpu']}, {hardware['threads']} threads, {hardware['instructions']}; "
            f"{_listed(layer_steps['versions'])}. A layer of DeepSeek-V2-Lite’s size with all its projections, weights "
            "in the cache’s format; nothing is in the CPU’s caches when a step begins. The limit is measured in the "
            "same run: cached tokens and weights at the rate of a copy, or the multiply-adds at the rate of a product."
        ),
    }


def board(results: Sequence[Results], layer_steps: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every machine that was measured: the GPUs, then the CPU of ``layer_steps``.

    Returns:
        Of each machine ``name``, ``title``, ``kind`` ("measured" or "layer"), ``kernels`` (ours first),
        ``axes`` (the values of each setting), ``rates`` (as in ``Rates``; a layer has ``least``, microseconds by step),
        ``about``, and ``steps``: by step, the microseconds of each kernel, or minus a place in ``reasons``.

    Raises:
        ValueError: no results at all, those of a toy run, empty ones, or a machine that comes twice.
    """
    machines = [_measured(each) for each in results]
    names = [machine["name"] for machine in machines]
    if len(set(names)) < len(names):
        raise ValueError(f"results are of {', '.join(names)}; expected each machine once")
    machines += [] if layer_steps is None else [_layer(layer_steps)]
    if not machines:
        raise ValueError("results are empty and layer_steps is None; expected something measured")
    return machines
