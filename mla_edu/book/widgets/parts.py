"""What all widgets have in common: checked settings, one answer, and a browser side put together from shared files."""

import html
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from mla_edu.validation import check_integer

HERE = Path(__file__).parent
SHARED = {".js": ("words.js", "formulas.js", "parts.js", "view.js"), ".css": ("parts.css",)}


def source(*names: str) -> str:
    """Text of a widget's module or style sheet, from its files and those that all share before them."""
    files = (*SHARED[Path(names[0]).suffix], *names)
    return "\n".join((HERE / each).read_text(encoding="utf-8") for each in files)


class Number(traitlets.TraitType[int, int]):
    """A setting: an integer from ``lowest`` to ``highest``; the browser learns both."""

    def __init__(self, lowest: int, highest: int):
        super().__init__(default_value=lowest)
        self.lowest, self.highest = lowest, highest
        self.tag(sync=True)

    def validate(self, obj: Any, value: object) -> int:
        """``value``, or ``ValueError``."""
        return check_integer(self.name or "value", value, self.lowest, self.highest)


class Name(traitlets.TraitType[str, str]):
    """A setting: a name, which ``read`` makes the usual one or refuses with ``ValueError``."""

    def __init__(self, read: Callable[[str], str]):
        super().__init__(default_value="")
        self.read = read
        self.tag(sync=True)

    def validate(self, obj: Any, value: str) -> str:
        """The usual name of ``value``, or ``ValueError``."""
        return self.read(value)


def one_of(name: str, choices: tuple[str, ...]) -> Name:
    """The setting ``name`` as one of a few words."""

    def read(value: str) -> str:
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; expected {', '.join(choices[:-1])} or {choices[-1]}")
        return value

    return Name(read)


class Widget(anywidget.AnyWidget):
    """A view whose settings are attributes: setting one moves the view, and the view sets them.

    Its answer, for the settings of the moment, is ``quantities``. Viewers that run no widget get ``text`` or ``html``.
    """

    data = traitlets.Unicode().tag(sync=True)  # all that the browser computes from, in JSON: short in a notebook

    def __init__(self, data: Mapping[str, Any], **settings: Any):
        """A view with these settings.

        Args:
            data: for the browser; the limits of all numbers are added.
            settings: a value for each.
        """
        numbers = {name: trait for name, trait in self.traits().items() if isinstance(trait, Number)}
        limits = {name: (trait.lowest, trait.highest) for name, trait in numbers.items()}
        super().__init__(**settings, data=json.dumps({**data, "limits": limits}, separators=(",", ":")))

    @property
    def quantities(self) -> Any:
        """The numbers that the view shows."""
        raise NotImplementedError

    def text(self) -> str:
        """The settings and the answer in words."""
        raise NotImplementedError

    def html(self) -> str:
        """The same for viewers that know HTML."""
        return f"<pre>{html.escape(self.text())}</pre>"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        view, metadata = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]
        return view | {"text/plain": self.text(), "text/html": self.html()}, metadata
