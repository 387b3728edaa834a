"""Widgets of the book: alive in Jupyter and Colab through anywidget, and on the static page through its own host."""

from mla_edu.widgets.kv_cache_explorer import KVCacheExplorer

__all__ = ["KVCacheExplorer"]
