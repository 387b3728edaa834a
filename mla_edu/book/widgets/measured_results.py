"""What each kernel took on a machine, beside the least that the machine allows."""

import math
from collections.abc import Sequence
from typing import Any

import traitlets

from mla_edu.bench.grid import LAYER
from mla_edu.bench.results import Results
from mla_edu.book.widgets.measured_board import START, Choice, board, step_key
from mla_edu.book.widgets.parts import Widget, source
from mla_edu.cost import Cost, Rates, cache_format, kernel_cost, kv_cache_bytes, pace, step_seconds
from mla_edu.words import duration, percent, ratio


def nearest(values: Sequence[int | str], wanted: int | str) -> int | str:
    """``wanted`` where it is among the values; else the nearest in ratio (formats by their bytes), the first of two."""

    def number(value: int | str) -> int:
        return value if isinstance(value, int) else kv_cache_bytes(LAYER, 1, dtype=cache_format(value))

    def distance(value: int | str) -> float:
        return abs(math.log2(number(value) / number(wanted)))

    return wanted if wanted in values else min(values, key=distance)


def times(machine: dict[str, Any], choice: Choice) -> dict[str, float | str]:
    """Of each kernel the microseconds, or in words why there are none."""
    cells = machine["steps"].get(step_key(choice), [0] * len(machine["kernels"]))
    shown = [cell if cell > 0 else machine["reasons"][-cell] for cell in cells]
    return dict(zip(machine["kernels"], shown, strict=True))


def quantities(machine: dict[str, Any], choice: Choice) -> dict[str, Any]:
    """The numbers of one choice, those of our kernel None where it has no time.

    Returns:
        ``microseconds`` and ``share`` of the limit; ``limit``, the least microseconds; ``cache_bytes``; for a kernel,
        whose bytes and operations are known, also ``gb_per_s``, ``tflop_per_s`` and ``intensity`` in FLOP/byte.
    """
    found = times(machine, choice)[machine["kernels"][0]]
    ours = None if isinstance(found, str) else found
    layer = machine["kind"] == "layer"
    limit = machine["least"][step_key(choice)] if layer else 1e6 * step_seconds(*bound(machine, choice))
    common = {
        "microseconds": ours,
        "share": ours and limit / ours,
        "limit": limit,
        "cache_bytes": kv_cache_bytes(LAYER, choice["context"], choice["batch"], cache_format(choice["dtype"])),
    }
    if layer:
        return common
    cost, _ = bound(machine, choice)
    return common | {
        "gb_per_s": ours and cost.bytes / ours / 1e3,
        "tflop_per_s": ours and cost.flops / ours / 1e6,
        "intensity": cost.intensity,
    }


def bound(machine: dict[str, Any], choice: Choice) -> tuple[Cost, Rates]:
    """What a kernel must do for a choice, and how fast the machine can."""
    rows, dtype = choice["heads"] * choice["s_q"], cache_format(choice["dtype"])
    return kernel_cost(LAYER, rows, choice["context"], choice["batch"], dtype), Rates(**machine["rates"])


def sentence(machine: dict[str, Any], choice: Choice) -> str:
    """What there is to say of one choice."""
    found, taken = quantities(machine, choice), times(machine, choice)
    least, ours = duration(found["limit"]), machine["kernels"][0]
    layer = machine["kind"] == "layer"
    start = "A whole layer, projections included, not the kernel alone; " if layer else ""
    allows = f"what this machine’s {'copy and product allow' if layer else f'{pace(*bound(machine, choice))} allows'}"
    if found["microseconds"] is None:
        return f"{start}{ours}: {taken[ours]}. {allows[0].upper()}{allows[1:]}: {least} at best."
    peers = {name: time for name, time in taken.items() if name != ours and not isinstance(time, str)}
    fastest, time = min(peers.items(), key=lambda peer: peer[1], default=("", 0.0))
    compare = f"; {ratio(time / found['microseconds'])} as fast as {fastest}" if peers else ""
    return f"{start}{ours}: {duration(found['microseconds'])}, {percent(found['share'])} of {allows}{compare}."


class MeasuredResults(Widget):
    """What was measured, machine by machine: every kernel's time on a step, and the least that the machine allows.

    Its settings are attributes; another machine moves those that it does not have to its nearest.
    """

    _esm = source("measured_results.js")
    _css = source("measured_results.css")

    machine = traitlets.Unicode().tag(sync=True)
    dtype = traitlets.Unicode().tag(sync=True)
    heads = traitlets.Int().tag(sync=True)
    s_q = traitlets.Int().tag(sync=True)
    context = traitlets.Int().tag(sync=True)
    batch = traitlets.Int().tag(sync=True)

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
            layer_steps: from ``layer_steps``: a whole layer's steps on a CPU.
            machine: "nvidia-h200" as in the name of its file, or "cpu"; None for the first.
            dtype: of the cache.
            heads: query heads.
            s_q: new tokens.
            context: cached tokens of each sequence.
            batch: sequences.

        Raises:
            ValueError: toy results or none, a machine that is not there, or a setting that the machine does not have.
        """
        machines = board(results, layer_steps)
        self._machines = {each["name"]: each for each in machines}
        name = machines[0]["name"] if machine is None else machine
        axes = self._axes(name)
        given = {"dtype": dtype, "heads": heads, "s_q": s_q, "context": context, "batch": batch}
        choice = {name: nearest(axes[name], START[name]) if value is None else value for name, value in given.items()}
        layer = LAYER.model_dump(include={"kv_lora_rank", "qk_rope_head_dim"})
        super().__init__({"machines": machines, "layer": layer}, machine=name, **choice)

    def _axes(self, machine: str) -> dict[str, list[Any]]:
        if machine not in self._machines:
            raise ValueError(f"machine is {machine!r}; expected one of {', '.join(self._machines)}")
        axes: dict[str, list[Any]] = self._machines[machine]["axes"]
        return axes

    @traitlets.validate("machine")
    def _valid_machine(self, proposal: Any) -> str:
        machine: str = proposal["value"]
        self._axes(machine)
        return machine

    @traitlets.validate(*START)
    def _valid_setting(self, proposal: Any) -> int | str:
        name: str = proposal["trait"].name
        value: int | str = proposal["value"]
        values = self._axes(self.machine)[name]
        if value not in values:
            raise ValueError(f"{name} is {value!r}; expected {' or '.join(map(str, values))} on {self.machine}")
        return value

    @traitlets.observe("machine")
    def _fit(self, change: Any) -> None:
        axes = self._axes(change["new"])
        for name in START:
            setattr(self, name, nearest(axes[name], getattr(self, name)))

    @property
    def choice(self) -> Choice:
        """The settings other than the machine."""
        return {name: getattr(self, name) for name in START}

    @property
    def quantities(self) -> dict[str, Any]:
        """``quantities`` of the present settings."""
        return quantities(self._machines[self.machine], self.choice)

    def text(self) -> str:
        """The settings, what there is to say of them, and each kernel's time."""
        machine = self._machines[self.machine]
        taken = times(machine, self.choice)
        lines = [
            f"{machine['title']}: {self.dtype} cache, heads {self.heads}, new tokens {self.s_q}, "
            f"cached tokens {self.context:,}, batch {self.batch}",
            sentence(machine, self.choice),
            *(f"{name}: {time if isinstance(time, str) else duration(time)}" for name, time in taken.items()),
            machine["about"],
        ]
        return "\n".join(lines)
