"""The widgets of the book, under a name that is short to import."""

from mla_edu.book.widgets import *  # noqa: F403
from mla_edu.book.widgets import __all__ as __all__
