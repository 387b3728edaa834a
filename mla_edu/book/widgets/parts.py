"""What the widgets of chapters have in common: checked numbers, and a browser side put together from two files."""

from pathlib import Path

HERE = Path(__file__).parent


def source(name: str) -> str:
    """Text of a widget's module or style sheet, behind the parts that all share: ``parts.js`` or ``parts.css``."""
    shared = (HERE / f"parts{Path(name).suffix}").read_text(encoding="utf-8")
    return f"{shared}\n{(HERE / name).read_text(encoding='utf-8')}"


def check_integer(name: str, value: object, lowest: int, highest: int) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer from ``lowest`` to ``highest``."""
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise ValueError(f"{name} is {value!r}; expected an integer from {lowest:,} to {highest:,}")
