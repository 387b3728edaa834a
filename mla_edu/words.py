"""Numbers in words, as the command line, the tables and the widgets write them; ``words.js`` does the same."""

import re
from decimal import Decimal

from mla_edu.validation import shown


def digits(number: float) -> str:
    """Three significant digits, and no fewer before the point: 0.750, 85.1, 1,230."""
    return f"{round(number):,}" if number >= 99.95 else f"{number:#.3g}"


def size(num_bytes: float) -> str:
    """Bytes with a decimal unit: 512 B, 70.3 kB, 4.80 TB."""
    units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"]
    while num_bytes >= 999.5 and len(units) > 1:
        num_bytes, units = num_bytes / 1000, units[1:]
    return f"{num_bytes:.0f} B" if units[0] == "B" else f"{digits(num_bytes)} {units[0]}"


def duration(microseconds: float) -> str:
    """Time with a unit: 85.1 µs, 7.04 ms."""
    return f"{digits(microseconds / 1e3)} ms" if microseconds >= 999.5 else f"{digits(microseconds)} µs"


def percent(share: float) -> str:
    """A share: 83%, and below ten per cent with two digits."""
    return f"{round(100 * share):,}%" if share >= 0.0995 else f"{100 * share:#.2g}%"


def ratio(number: float) -> str:
    """How many times: 53×, 1.9×, 0.75×."""
    return f"{number:.0f}×" if number >= 9.95 else f"{number:#.2g}×"


def parse_parameters(text: str, option: str) -> int:
    """``"8b"`` (8 000 000 000), ``"1.7B"``, ``"270m"`` or the number itself: parameters, in powers of 1000.

    Raises:
        ValueError: anything else, zero, a fraction, and more than 10**15.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,12})?)([kmbt]?)", text.strip().casefold(), flags=re.ASCII)
    number = match and Decimal(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}[match[2]]
    if number is None or number != int(number) or not 1 <= number <= 10**15:
        raise ValueError(f"{option} is {shown(text)}; expected a number of parameters such as 8b, 1.7b or 270m")
    return int(number)


def parse_count(text: str, option: str) -> int:
    """``"4096"``, ``"128k"`` (131 072) or ``"1m"`` (1 048 576) as a number.

    Raises:
        ValueError: anything else, zero, and numbers of more than 12 digits.
    """
    match = re.fullmatch(r"([1-9]\d{0,11})([km]?)", text.strip().casefold(), flags=re.ASCII)
    if match is None:
        raise ValueError(
            f"{option} is {shown(text)}; expected a positive integer of at most 12 digits, such as 4096, 128k or 1m"
        )
    return int(match[1]) * {"": 1, "k": 2**10, "m": 2**20}[match[2]]
