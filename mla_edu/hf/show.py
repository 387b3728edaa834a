"""Values of a file in the words of an error: one short line, however large or deep they are."""

import reprlib
from collections.abc import Mapping
from typing import Any

DEEPEST = 16  # objects and lists within one another
DIGITS = 40
TOO_LARGE = 10**DIGITS

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother, _repr.maxlong = 3, 80, 60, 60


def shown(value: object) -> str:
    """``repr`` of a value that ``check_sane`` has seen, cut to a line."""
    text = _repr.repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


def check_sane(values: Mapping[str, Any], where: str) -> None:
    """Refuse what no ``config.json`` holds, before anything is computed from it.

    Raises:
        ValueError: a name is no text; a value is nested deeper than ``DEEPEST``, an integer of more than ``DIGITS``
            digits, or of a kind that JSON does not have.
    """
    for key, value in values.items():
        if not isinstance(key, str):
            raise ValueError(f"{where}: {str(key)[:40]} is a name; expected text")
        waiting = [(value, 1)]
        while waiting:
            found, depth = waiting.pop()
            if depth > DEEPEST:
                raise ValueError(f"{where}: {shown(key)} is nested deeper than {DEEPEST}; expected a plain value")
            if isinstance(found, int) and abs(found) >= TOO_LARGE:
                raise ValueError(f"{where}: {shown(key)} holds a number of more than {DIGITS} digits; expected fewer")
            if isinstance(found, Mapping):
                waiting += [(inner, depth + 1) for inner in found.values()]
            elif isinstance(found, list | tuple):
                waiting += [(inner, depth + 1) for inner in found]
            elif found is not None and not isinstance(found, str | int | float):
                raise ValueError(f"{where}: {shown(key)} holds a {type(found).__name__}; expected what JSON can hold")
