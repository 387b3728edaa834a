"""What attention costs: bytes of cache, floating-point operations, and the time that a machine needs for both.

The one home of each formula: layers, widgets and benchmarks ask here, and the pages' JavaScript is compared with it.
Pure Python, no torch; integers wherever the answer is one. A multiply-add counts as two operations. Bytes are decimal
where they have a prefix: 1 GB is 10**9 bytes.
"""

from mla_edu.cost.compute import (
    Cost,
    Mode,
    absorption_crossover,
    attention_cost,
    attention_macs,
    attention_macs_per_score,
    cheaper_mode,
    expansion_macs_per_token,
    kernel_cost,
    num_attention_parameters,
    num_scores,
    projection_cost,
)
from mla_edu.cost.formats import (
    FP8_BLOCK,
    CacheFormat,
    NumberFormat,
    bytes_per_number,
    cache_format,
    fp8_row_bytes,
    number_format,
)
from mla_edu.cost.machine import Rates, pace, rates, ridge, roofline, step_seconds
from mla_edu.cost.memory import (
    Fit,
    fit,
    index_cache_bytes,
    kv_cache_bytes,
    sequence_bytes,
    state_bytes,
    weight_bytes,
)

__all__ = [
    "FP8_BLOCK",
    "CacheFormat",
    "Cost",
    "Fit",
    "Mode",
    "NumberFormat",
    "Rates",
    "absorption_crossover",
    "attention_cost",
    "attention_macs",
    "attention_macs_per_score",
    "bytes_per_number",
    "cache_format",
    "cheaper_mode",
    "expansion_macs_per_token",
    "fit",
    "fp8_row_bytes",
    "index_cache_bytes",
    "kernel_cost",
    "kv_cache_bytes",
    "num_attention_parameters",
    "num_scores",
    "number_format",
    "pace",
    "projection_cost",
    "rates",
    "ridge",
    "roofline",
    "sequence_bytes",
    "state_bytes",
    "step_seconds",
    "weight_bytes",
]
