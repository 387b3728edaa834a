"""The results of chapter 16: what each kernel took on a machine, beside the least that the machine allows.

``measured_results.js`` computes the same in the browser, with functions of the same names.
"""

import html
import json
import math
from collections.abc import Sequence
from typing import Any

import anywidget
import traitlets

from mla_edu.bench.grid import FLOPS_PER_SCORE, LAYER, Case
from mla_edu.bench.results import Limits, Results
from mla_edu.book.widgets.measured_board import START, Choice, board, digits, size, step_key
from mla_edu.book.widgets.parts import source
from mla_edu.cost import BYTES_PER_NUMBER, kv_cache_bytes

SIZES = {
    "token_bytes": {
        dtype: kv_cache_bytes(LAYER, 1, dtype="fp8_mla" if dtype == "fp8" else dtype) for dtype in BYTES_PER_NUMBER
    },
    "row_bytes": 2 * (2 * LAYER.kv_lora_rank + LAYER.qk_rope_head_dim),
    "flops_per_score": FLOPS_PER_SCORE,
    "bytes_per_number": BYTES_PER_NUMBER,
}


def nearest(values: Sequence[int | str], wanted: int | str) -> int | str:
    """``wanted`` where it is among the values; else the nearest in ratio (formats by their bytes), the first of two."""

    def distance(value: int | str) -> float:
        return abs(math.log2(BYTES_PER_NUMBER.get(value, value) / BYTES_PER_NUMBER.get(wanted, wanted)))

    return wanted if wanted in values else min(values, key=distance)


def times(machine: dict[str, Any], choice: Choice) -> dict[str, float | str]:
    """Of each kernel the microseconds, or in words why there are none."""
    cells = machine["steps"].get(step_key(choice), [0] * len(machine["kernels"]))
    shown = [cell if cell > 0 else machine["reasons"][-cell] for cell in cells]
    return dict(zip(machine["kernels"], shown, strict=True))


def quantities(machine: dict[str, Any], choice: Choice) -> dict[str, float | None]:
    """The numbers of one choice, those of our kernel None where it has no time.

    Returns:
        ``microseconds`` and ``share`` of the limit; ``limit``, the least microseconds; ``cache_bytes``; for a kernel,
        whose bytes and operations are known, also ``gb_per_s``, ``tflop_per_s`` and ``intensity`` in FLOP/byte.
    """
    found = times(machine, choice)[machine["kernels"][0]]
    ours = None if isinstance(found, str) else found
    if machine["kind"] == "layer":
        limit = machine["least"][step_key(choice)]
        cache_bytes = choice["batch"] * choice["context"] * SIZES["token_bytes"][choice["dtype"]]
        return {"microseconds": ours, "share": ours and limit / ours, "limit": limit, "cache_bytes": cache_bytes}
    case = Case(**choice)
    limit = Limits(**machine["limits"]).microseconds(case)
    return {
        "microseconds": ours,
        "share": ours and limit / ours,
        "limit": limit,
        "cache_bytes": case.cache_bytes,
        "gb_per_s": ours and case.bytes / ours / 1e3,
        "tflop_per_s": ours and case.flops / ours / 1e6,
        "intensity": case.flops / case.bytes,
    }


def pace(machine: dict[str, Any], choice: Choice) -> str:
    """Which of the two limits of a kernel is the larger time: that of "memory" or of "arithmetic"."""
    limits, case = machine["limits"], Case(**choice)
    memory = case.bytes / limits["copy_bytes_per_s"] >= case.flops / limits["matmul_flop_per_s"]
    return "memory" if memory else "arithmetic"


def duration(microseconds: float) -> str:
    """As 85.1 µs or 7.04 ms."""
    return f"{digits(microseconds / 1e3)} ms" if microseconds >= 1e3 else f"{digits(microseconds)} µs"


def percent(share: float) -> str:
    """As 83%, and below ten per cent with two digits."""
    return f"{round(100 * share):,}%" if share >= 0.0995 else f"{100 * share:#.2g}%"


def ratio(number: float) -> str:
    """As 53x, 1.9x or 0.75x."""
    return f"{number:.0f}x" if number >= 9.95 else f"{number:#.2g}x"


def sentence(machine: dict[str, Any], choice: Choice) -> str:
    """What there is to say of one choice."""
    found, taken = quantities(machine, choice), times(machine, choice)
    least, ours = duration(found["limit"]), machine["kernels"][0]
    if machine["kind"] == "datasheet":
        full = found["cache_bytes"] > machine["memory"]
        room = f" Its {size(machine['memory'])} do not hold this cache." if full else ""
        bound = f"By its datasheet a step takes at least {least}; {pace(machine, choice)} sets the pace."
        return f"{machine['title']}: not measured yet. {bound}{room}"
    layer = machine["kind"] == "layer"
    start = "A whole layer, projections included, not the kernel alone; " if layer else ""
    allows = f"what this machine's {'copy and product allow' if layer else f'{pace(machine, choice)} allows'}"
    if found["microseconds"] is None:
        return f"{start}{ours}: {taken[ours]}. {allows[0].upper()}{allows[1:]}: {least} at best."
    peers = {name: time for name, time in taken.items() if name != ours and not isinstance(time, str)}
    fastest = min(peers, key=peers.get, default=None)
    compare = f"; {ratio(peers[fastest] / found['microseconds'])} as fast as {fastest}" if peers else ""
    return f"{start}{ours}: {duration(found['microseconds'])}, {percent(found['share'])} of {allows}{compare}."


class MeasuredResults(anywidget.AnyWidget):
    """What was measured, machine by machine: every kernel's time on a step, and the least that the machine allows.

    GPUs of the registry without results are there too, with the bounds of their datasheets and no times. Its settings
    are attributes; another machine moves those that it does not have to its nearest.
    """

    _esm = source("measured_results.js")
    _css = source("measured_results.css")

    machine = traitlets.Unicode().tag(sync=True)
    dtype = traitlets.Unicode().tag(sync=True)
    heads = traitlets.Int().tag(sync=True)
    s_q = traitlets.Int().tag(sync=True)
    context = traitlets.Int().tag(sync=True)
    batch = traitlets.Int().tag(sync=True)
    results = traitlets.Unicode().tag(sync=True)  # ``board`` and sizes for the browser, in JSON

    def __init__(
        self,
        results: Sequence[Results],
        layer_steps: dict[str, Any] | None = None,
        *,
        machine: str | None = None,
        dtype: str | None = None,
        heads: int | None = None,
        s_q: int | None = None,
        context: int | None = None,
        batch: int | None = None,
    ):
        """A view of all machines. A setting that is None takes the machine's nearest to ``START``.

        Args:
            results: of the measured GPUs, as ``read_results`` reads them.
            layer_steps: what ``benchmarks/decode_step.py`` wrote: a whole layer's steps on a CPU.
            machine: "nvidia-h200" as in the name of its file, "cpu", or a GPU of the registry; None for the first.
            dtype: of the cache.
            heads: query heads.
            s_q: new tokens.
            context: cached tokens of each sequence.
            batch: sequences.

        Raises:
            ValueError: toy results, a machine that is not there, or a setting that the machine does not have.
        """
        machines = board(results, layer_steps)
        self._machines = {each["name"]: each for each in machines}
        name = machines[0]["name"] if machine is None else machine
        axes = self._axes(name)
        given = {"dtype": dtype, "heads": heads, "s_q": s_q, "context": context, "batch": batch}
        choice = {name: nearest(axes[name], START[name]) if value is None else value for name, value in given.items()}
        packed = json.dumps({"machines": machines, **SIZES}, separators=(",", ":"))
        super().__init__(machine=name, results=packed, **choice)

    def _axes(self, machine: str) -> dict[str, list]:
        if machine not in self._machines:
            raise ValueError(f"machine is {machine!r}; expected one of {', '.join(self._machines)}")
        return self._machines[machine]["axes"]

    @traitlets.validate("machine")
    def _valid_machine(self, proposal):
        self._axes(proposal["value"])
        return proposal["value"]

    @traitlets.validate(*START)
    def _valid_setting(self, proposal):
        name, value = proposal["trait"].name, proposal["value"]
        values = self._axes(self.machine)[name]
        if value not in values:
            raise ValueError(f"{name} is {value!r}; expected {' or '.join(map(str, values))} on {self.machine}")
        return value

    @traitlets.observe("machine")
    def _fit(self, change):
        axes = self._axes(change["new"])
        for name in START:
            setattr(self, name, nearest(axes[name], getattr(self, name)))

    @property
    def choice(self) -> Choice:
        """The settings other than the machine."""
        return {name: getattr(self, name) for name in START}

    @property
    def quantities(self) -> dict[str, float | None]:
        """``quantities`` of the present settings."""
        return quantities(self._machines[self.machine], self.choice)

    def _repr_mimebundle_(self, **kwargs):
        """The widget, and its answers in words for viewers that run none."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        machine = self._machines[self.machine]
        taken = times(machine, self.choice)
        lines = [
            f"{machine['title']}: {self.dtype} cache, heads {self.heads}, new tokens {self.s_q}, "
            f"cached tokens {self.context:,}, batch {self.batch}",
            sentence(machine, self.choice),
            *(f"{name}: {time if isinstance(time, str) else duration(time)}" for name, time in taken.items()),
            machine["about"],
        ]
        text = "\n".join(lines)
        return data | {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}, metadata
