"""The one look of the commands' tables."""

from rich.box import SIMPLE_HEAD
from rich.table import Table


def new_table(heading: str, *others: str) -> Table:
    """An empty table: names to the left, numbers to the right."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(heading, overflow="fold")
    for other in others:
        table.add_column(other, justify="right")
    return table
