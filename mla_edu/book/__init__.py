"""What the book's notebooks share: one style of figure, one style of table, one line about the machine."""

from mla_edu.book.figures import KEY, NEUTRAL, QUERY, ROPE, VALUE, Picture, figure, show
from mla_edu.book.machine import environment
from mla_edu.book.tables import Table, table

__all__ = ["KEY", "NEUTRAL", "QUERY", "ROPE", "VALUE", "Picture", "Table", "environment", "figure", "show", "table"]
