"""Bytes: of caches, of weights, and what of them fits on which GPUs."""

import math
from bisect import bisect_right
from dataclasses import dataclass

from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.cost.formats import FP8_BLOCK, CacheFormat, NumberFormat, bytes_per_number, fp8_row_bytes, number_format
from mla_edu.hf import CacheGroup, ModelSpec
from mla_edu.registry import GPUSpec, get_gpu, get_model
from mla_edu.validation import check_integer

Layer = GQAConfig | MLAConfig


def _model(model: str | ModelSpec) -> ModelSpec:
    return get_model(model) if isinstance(model, str) else model


def _groups(model_or_config: str | ModelSpec | Layer, role: str) -> list[CacheGroup]:
    if isinstance(model_or_config, GQAConfig | MLAConfig):
        window = model_or_config.sliding_window if isinstance(model_or_config, GQAConfig) else None
        elements = model_or_config.elements_per_token
        groups: tuple[CacheGroup, ...] = (CacheGroup(role="kv", layers=1, elements=elements, window=window),)
    elif isinstance(model_or_config, str | ModelSpec):
        groups = _model(model_or_config).cache
    else:
        raise TypeError(
            f"model_or_config is a {type(model_or_config).__name__}; "
            "expected a name of the registry, a ModelSpec, a GQAConfig or an MLAConfig"
        )
    return [group for group in groups if group.role == role]


def _fp8_mla_row(model_or_config: str | ModelSpec | Layer) -> int:
    layer = model_or_config if isinstance(model_or_config, GQAConfig | MLAConfig) else _model(model_or_config)
    if isinstance(layer, GQAConfig) or layer.kv_lora_rank is None or layer.qk_rope_head_dim is None:
        name = f"a model such as {layer.name}" if isinstance(layer, ModelSpec) else "a layer"
        raise ValueError(f"dtype is 'fp8_mla' for {name} of kind {layer.kind!r}; expected 'mla'")
    return fp8_row_bytes(layer.kv_lora_rank, layer.qk_rope_head_dim)


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
        dtype: "fp32", "fp16", "bf16", "fp8" (one byte a number, no scales), or "fp8_mla" (FlashMLA's layout, see
            ``fp8_row_bytes``).

    Raises:
        TypeError: ``model_or_config`` is none of the four.
        ValueError: unknown model or dtype, a number out of range, or "fp8_mla" for what is not MLA.
    """
    check_integer("num_tokens", num_tokens, lowest=0)
    check_integer("batch_size", batch_size)
    groups = _groups(model_or_config, "kv")
    if dtype == "fp8_mla":
        per_token = _fp8_mla_row(model_or_config)
        return batch_size * per_token * sum(group.layers * group.num_entries(num_tokens) for group in groups)
    return batch_size * bytes_per_number(dtype) * sum(group.num_elements(num_tokens) for group in groups)


def index_cache_bytes(model: str | ModelSpec, num_tokens: int, batch_size: int = 1, dtype: CacheFormat = "bf16") -> int:
    """Bytes of the keys that a sparse-attention indexer scores; 0 for a model without one.

    In fp8 ("fp8" or "fp8_mla") each 128 numbers have one fp32 scale, as in DeepSeek-V3.2's reference code: 132 bytes
    for a key of 128.

    Raises:
        ValueError: unknown model or dtype, or a number out of range.
    """
    check_integer("num_tokens", num_tokens, lowest=0)
    check_integer("batch_size", batch_size)
    total = 0
    for group in _groups(model, "index"):
        if dtype in ("fp8", "fp8_mla"):
            per_entry = group.elements + 4 * math.ceil(group.elements / FP8_BLOCK)
        else:
            per_entry = group.elements * bytes_per_number(number_format(dtype))
        total += group.layers * group.num_entries(num_tokens) * per_entry
    return batch_size * total


def state_bytes(model: str | ModelSpec, batch_size: int = 1, dtype: NumberFormat = "fp32") -> int | None:
    """Bytes of what does not grow with the sequence: recurrent states, unfinished blocks; None where not known.

    Such states are usually kept in fp32, whatever the cache's format.

    Raises:
        ValueError: unknown model or dtype, or a number out of range.
    """
    check_integer("batch_size", batch_size)
    elements = _model(model).state_elements
    return None if elements is None else batch_size * elements * bytes_per_number(dtype)


def weight_bytes(model: str | ModelSpec, dtype: NumberFormat = "bf16") -> int | None:
    """Bytes of all weights; None where the number of parameters is not known.

    Raises:
        ValueError: unknown model or dtype.
    """
    parameters = _model(model).num_parameters
    return None if parameters is None else parameters * bytes_per_number(dtype)


def sequence_bytes(model: str | ModelSpec, num_tokens: int, dtype: CacheFormat = "bf16") -> int:
    """All that one sequence holds: keys, values or latents, index keys, and the state as far as it is known.

    Raises:
        ValueError: unknown model or dtype, or a number out of range.
    """
    cache = kv_cache_bytes(model, num_tokens, 1, dtype) + index_cache_bytes(model, num_tokens, 1, dtype)
    return cache + (state_bytes(model) or 0)


@dataclass(frozen=True)
class Fit:
    """What fits into the memory of the fewest GPUs that hold a model's weights."""

    num_gpus: int
    free_bytes: int  # beside the weights; activations and buffers would take a share of it
    max_sequences: int | None  # of the given length; None: no limit, since such a sequence holds nothing
    max_tokens: int | None  # in each sequence of the given batch; None: no limit, since the cache stops growing


MOST_TOKENS = 2**40


def fit(
    model: str | ModelSpec,
    gpu: str | GPUSpec,
    num_tokens: int,
    batch_size: int = 1,
    dtype: CacheFormat = "bf16",
    weights_dtype: NumberFormat = "bf16",
) -> Fit | None:
    """How many GPUs hold the weights, and how much cache fits beside them.

    Returns:
        None where the number of parameters is not known.

    Raises:
        ValueError: unknown model, GPU or dtype, or a number out of range.
    """
    spec, card = _model(model), get_gpu(gpu) if isinstance(gpu, str) else gpu
    per_sequence = sequence_bytes(spec, num_tokens, dtype)
    check_integer("batch_size", batch_size)
    weights = weight_bytes(spec, weights_dtype)
    if weights is None:
        return None
    num_gpus = math.ceil(weights / card.memory)
    free = num_gpus * card.memory - weights
    most = bisect_right(range(MOST_TOKENS), free, key=lambda n: batch_size * sequence_bytes(spec, n, dtype)) - 1
    return Fit(
        num_gpus=num_gpus,
        free_bytes=free,
        max_sequences=free // per_sequence if per_sequence else None,
        max_tokens=None if most == MOST_TOKENS - 1 else max(most, 0),
    )
