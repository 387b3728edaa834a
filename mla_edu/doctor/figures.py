"""Sizes as people and programs write them."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from mla_edu.validation import MOST, shown

UNITS = {"b": 1, "bytes": 1} | {
    f"{prefix}{infix}b": base ** (power + 1)
    for power, prefix in enumerate("kmgt")
    for infix, base in (("", 1000), ("i", 1024))
}
_SIZE = re.compile(r"(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Figure:
    """A number of bytes, and how far it may be off by its own rounding."""

    bytes: int
    rounding: int = 0  # half a unit of its last digit, in bytes
    power: int = 0  # of 1000 in its unit, where that is a decimal one

    @property
    def as_binary(self) -> "Figure | None":
        """What it is where its GB is a GiB, as many programs print; None where its unit leaves no doubt."""
        scale = Fraction(1024, 1000) ** self.power
        return Figure(round(self.bytes * scale), round(self.rounding * scale)) if self.power else None


def parse_figure(text: str, name: str = "observed") -> Figure:
    """``"7.4 GiB"``, ``"1,166.62 MiB"`` or ``"70272 B"`` in bytes; kB, MB, GB, TB are powers of 1000.

    Args:
        text: a positive number and a unit.
        name: what the error calls it.

    Raises:
        ValueError: no text, no number, a comma that parts no thousands, an unknown unit, nothing, or too much.
    """
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    unit = match and UNITS.get(match[2].casefold())
    if match is None or unit is None:
        raise ValueError(f"{name} is {shown(text)}; expected a size with a unit, such as 7.4 GiB, 812 MB or 70272 B")
    number = Decimal(match[1].replace(",", ""))
    if number * unit > MOST:
        raise ValueError(f"{name} is {shown(text)}; expected at most {MOST:,} bytes")
    if number == 0:
        raise ValueError(f"{name} is {shown(text)}; expected more than nothing")
    decimals = len(match[1].partition(".")[2])
    rounding = 0 if unit == 1 else round(Decimal(unit) / 2 / 10**decimals)
    return Figure(round(number * unit), rounding, {1000**power: power for power in range(1, 5)}.get(unit, 0))
