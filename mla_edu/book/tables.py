"""The one style of table of the book's notebooks."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows that a notebook displays: HTML on a page, aligned columns where there is none."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in (self.header, *self.rows)
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        numeric = [all(map(_NUMBER.fullmatch, column)) for column in zip(*self.rows, strict=True)]

        def row(tag: str, cells: tuple[str, ...]) -> str:
            classes = [' class="number"' if is_number else "" for is_number in numeric]
            parts = (f"<{tag}{c}>{html.escape(cell)}</{tag}>" for c, cell in zip(classes, cells, strict=True))
            return f"<tr>{''.join(parts)}</tr>"

        body = "\n".join(row("td", cells) for cells in self.rows)
        head = row("th", self.header)
        return f'<table class="mla-table">\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>'


_UNIT = r"[kKMGT]?i?B(?:/s)?|[GTP]?FLOPs?(?:/s)?|[nµm]?s"
_NUMBER = re.compile(rf"[-+]?[\d,.]*%?|[-+]?[\d,.]+ (?:{_UNIT})|—")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table for a notebook; integers get thousands separators, other cells ``str``.

    Raises:
        ValueError: a row has not as many cells as the header.
    """

    def text(cell: object) -> str:
        return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)

    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {list(row)} has {len(row)} cells; expected {len(header)}, as the header")
    return Table(tuple(header), tuple(tuple(map(text, row)) for row in rows))
