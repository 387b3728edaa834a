"""Bytes of caches: keys, values or latents, index keys, states."""

import math

from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.cost.formats import (
    CSA_WIDTH,
    FP8_BLOCK,
    ROWS,
    CacheFormat,
    NumberFormat,
    RowFormat,
    bytes_per_number,
    cache_format,
    mla_row_bytes,
    number_format,
)
from mla_edu.hf import CacheGroup, ModelSpec
from mla_edu.registry import get_model
from mla_edu.validation import check_integer

Layer = GQAConfig | MLAConfig


def find_model(model: str | ModelSpec) -> ModelSpec:
    """A model by its name, or as it is.

    Raises:
        TypeError: ``model`` is neither a name nor a ``ModelSpec``.
        ValueError: unknown model.
    """
    if not isinstance(model, str | ModelSpec):
        raise TypeError(f"model is a {type(model).__name__}; expected a name of the registry or a ModelSpec")
    return get_model(model) if isinstance(model, str) else model


def check_layer(config: object, *kinds: type) -> None:
    """Raise ``TypeError`` unless ``config`` is that of a layer of these kinds; of any attention without them."""
    kinds = kinds or (GQAConfig, MLAConfig)
    if not isinstance(config, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"config is a {type(config).__name__}; expected a {expected}")


def _groups(model_or_config: str | ModelSpec | Layer, role: str) -> list[CacheGroup]:
    if isinstance(model_or_config, GQAConfig | MLAConfig):
        window = model_or_config.sliding_window if isinstance(model_or_config, GQAConfig) else None
        elements = model_or_config.elements_per_token
        groups: tuple[CacheGroup, ...] = (CacheGroup(role="kv", layers=1, elements=elements, window=window),)
    elif isinstance(model_or_config, str | ModelSpec):
        groups = find_model(model_or_config).cache
    else:
        raise TypeError(
            f"model_or_config is a {type(model_or_config).__name__}; "
            "expected a name of the registry, a ModelSpec, a GQAConfig or an MLAConfig"
        )
    return [group for group in groups if group.role == role]


def _row_bytes(model_or_config: str | ModelSpec | Layer, dtype: RowFormat) -> int:
    """Bytes of an entry in a row format; raises ``ValueError`` where the attention is of another kind."""
    layer = model_or_config if isinstance(model_or_config, GQAConfig | MLAConfig) else find_model(model_or_config)
    if ROWS[dtype].kind == "mla" and isinstance(layer, MLAConfig | ModelSpec):
        if layer.kv_lora_rank is not None and layer.qk_rope_head_dim is not None:
            return mla_row_bytes(layer.kv_lora_rank, layer.qk_rope_head_dim, dtype)
    elif ROWS[dtype].kind == layer.kind:
        widths = {group.elements for group in _groups(layer, "kv")}
        if widths == {CSA_WIDTH}:
            return ROWS[dtype].bytes
        raise ValueError(f"dtype is {dtype!r} for entries of {', '.join(map(str, widths))}; expected {CSA_WIDTH}")
    name = f"a model such as {layer.name}" if isinstance(layer, ModelSpec) else "a layer"
    raise ValueError(f"dtype is {dtype!r} for {name} of kind {layer.kind!r}; expected {ROWS[dtype].kind!r}")


def entry_bytes(model_or_config: str | ModelSpec | Layer, group: CacheGroup, dtype: CacheFormat) -> int:
    """Bytes of one entry of one layer: a token, or a block of them where the model pools.

    In 8 bits or fewer each 128 numbers of an index key have one fp32 scale, as in DeepSeek-V3.2's reference code: 132
    bytes for a key of 128.

    Raises:
        TypeError: ``model_or_config`` or ``group`` is of another kind.
        ValueError: unknown model or dtype, or a row format for attention of another kind.
    """
    if not isinstance(group, CacheGroup):
        raise TypeError(f"group is a {type(group).__name__}; expected a CacheGroup")
    cache_format(dtype)
    if group.role == "index" and (dtype == "fp8" or dtype in ROWS):
        return group.elements + 4 * math.ceil(group.elements / FP8_BLOCK)
    if dtype in ROWS:
        return _row_bytes(model_or_config, dtype)
    return group.elements * bytes_per_number(number_format(dtype))


def kv_cache_bytes(
    model_or_config: str | ModelSpec | Layer, num_tokens: int, batch_size: int = 1, dtype: CacheFormat = "bf16"
) -> int:
    """Bytes of keys, values and latents after ``num_tokens`` tokens in each of ``batch_size`` sequences.

    A layer stores 2 n_g d_h numbers for a token (MHA: n_g = n_h; MQA: 1), MLA d_c + d_h^R (DeepSeek-V2 paper, Table 1).
    Windows cap the tokens that a layer keeps. ``index_cache_bytes`` and ``state_bytes`` count the rest.

    Args:
        model_or_config: a name of the registry or a ``ModelSpec``: all layers; a layer's config: that layer.
        num_tokens: in each sequence; 0 is allowed.
        batch_size: sequences.
        dtype: "fp32", "fp16", "bf16", "fp8" (one byte a number, no scales), or a row of ``formats.ROWS``: "fp8_mla"
            (FlashMLA's), "fp4_mla_432", "fp4_mla_368", "fp4_mla_352" (4 bits), and "fp8_csa" (DeepSeek-V4's).

    Raises:
        TypeError: ``model_or_config`` is not one of these.
        ValueError: unknown model or dtype, a number out of range, or a row format for attention of another kind.
    """
    return batch_size * _cache_bytes(model_or_config, "kv", num_tokens, batch_size, dtype)


def index_cache_bytes(model: str | ModelSpec, num_tokens: int, batch_size: int = 1, dtype: CacheFormat = "bf16") -> int:
    """Bytes of the keys that a sparse-attention indexer scores; 0 for a model without one.

    In 8 bits or fewer they are in fp8 with scales; see ``entry_bytes``.

    Raises:
        TypeError: ``model`` is neither a name nor a ``ModelSpec``.
        ValueError: unknown model or dtype, or a number out of range.
    """
    return batch_size * _cache_bytes(find_model(model), "index", num_tokens, batch_size, dtype)


def _cache_bytes(
    model_or_config: str | ModelSpec | Layer, role: str, num_tokens: int, batch_size: int, dtype: CacheFormat
) -> int:
    """Of one sequence; checks the number of sequences as well."""
    check_integer("num_tokens", num_tokens, lowest=0)
    check_integer("batch_size", batch_size)
    cache_format(dtype)
    return sum(
        group.layers * group.num_entries(num_tokens) * entry_bytes(model_or_config, group, dtype)
        for group in _groups(model_or_config, role)
    )


def state_bytes(model: str | ModelSpec, batch_size: int = 1, dtype: NumberFormat = "fp32") -> int | None:
    """Bytes of what does not grow with the sequence: recurrent states, unfinished blocks; None where not known.

    Such states are usually kept in fp32, whatever the cache's format.

    Raises:
        TypeError: ``model`` is neither a name nor a ``ModelSpec``.
        ValueError: unknown model or dtype, or a number out of range.
    """
    check_integer("batch_size", batch_size)
    elements = find_model(model).state_elements
    return None if elements is None else batch_size * elements * bytes_per_number(dtype)


def sequence_bytes(model: str | ModelSpec, num_tokens: int, dtype: CacheFormat = "bf16") -> int:
    """All that one sequence holds: keys, values or latents, index keys, and the state as far as it is known.

    Raises:
        TypeError: ``model`` is neither a name nor a ``ModelSpec``.
        ValueError: unknown model or dtype, or a number out of range.
    """
    spec = find_model(model)
    cache = kv_cache_bytes(spec, num_tokens, 1, dtype) + index_cache_bytes(spec, num_tokens, 1, dtype)
    return cache + (state_bytes(spec) or 0)
