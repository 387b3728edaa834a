"""Widgets of the book: alive in Jupyter and Colab through anywidget, and on the static page through its own host."""

try:
    import anywidget  # noqa: F401
except ImportError:
    raise ImportError("mla_edu.book.widgets needs anywidget: pip install 'mla-edu[widgets]'") from None

from mla_edu.book.widgets.absorption_crossover import AbsorptionCrossover
from mla_edu.book.widgets.decode_roofline import DecodeRoofline
from mla_edu.book.widgets.engine_stepper import EngineStepper
from mla_edu.book.widgets.kv_cache_explorer import KVCacheExplorer
from mla_edu.book.widgets.many_gpus import ManyGPUs
from mla_edu.book.widgets.measured_results import MeasuredResults
from mla_edu.book.widgets.rope_dial import RopeDial
from mla_edu.book.widgets.softmax_stepper import SoftmaxStepper

__all__ = [
    "AbsorptionCrossover",
    "DecodeRoofline",
    "EngineStepper",
    "KVCacheExplorer",
    "ManyGPUs",
    "MeasuredResults",
    "RopeDial",
    "SoftmaxStepper",
]
