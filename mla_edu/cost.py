"""What attention costs: bytes of cache, floating-point operations, and the time that a GPU needs for both.

Pure Python; integers wherever the answer is one. A multiply-add counts as two operations. Bytes are decimal where they
have a prefix: 1 GB is 10**9 bytes.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.hf import CacheGroup, ModelSpec
from mla_edu.registry import GPUSpec, get_gpu, get_model

BYTES_PER_NUMBER = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
FP8_BLOCK = 128  # numbers that share one fp32 scale in the fp8 layouts of DeepSeek
Layer = GQAConfig | MLAConfig


def _positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a positive integer")


def _not_negative(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {value!r}; expected an integer of at least 0")


def bytes_per_number(dtype: str) -> int:
    """Bytes of one number in ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"fp8"``.

    Raises:
        ValueError: no such format.
    """
    if dtype not in BYTES_PER_NUMBER:
        raise ValueError(f"dtype is {dtype!r}; expected fp32, fp16, bf16 or fp8 (for a cache of MLA also fp8_mla)")
    return BYTES_PER_NUMBER[dtype]


# --- bytes of the cache


def fp8_mla_token_bytes(config: MLAConfig | ModelSpec) -> int:
    """One token of one MLA layer in FlashMLA's fp8 layout: 656 bytes for a latent of 512 and a rotary key of 64.

    The latent in fp8, one fp32 scale per 128 of its numbers, the rotary key in bf16: d_c + 4 d_c / 128 + 2 d_h^R.

    Raises:
        ValueError: not an MLA layer, or its latent is no multiple of 128 wide.
    """
    if config.kind != "mla" or config.kv_lora_rank is None or config.qk_rope_head_dim is None:
        raise ValueError(f"dtype 'fp8_mla' was given for a layer of kind {config.kind!r}; expected 'mla'")
    if config.kv_lora_rank % FP8_BLOCK:
        raise ValueError(f"kv_lora_rank is {config.kv_lora_rank}; expected a multiple of {FP8_BLOCK} for 'fp8_mla'")
    return config.kv_lora_rank + 4 * (config.kv_lora_rank // FP8_BLOCK) + 2 * config.qk_rope_head_dim


def _model(model: str | ModelSpec) -> ModelSpec:
    return get_model(model) if isinstance(model, str) else model


def _groups(model_or_config: str | ModelSpec | Layer, role: str) -> list[CacheGroup]:
    if isinstance(model_or_config, GQAConfig | MLAConfig):
        window = getattr(model_or_config, "sliding_window", None)
        groups = [CacheGroup(role="kv", layers=1, elements=model_or_config.elements_per_token, window=window)]
    elif isinstance(model_or_config, str | ModelSpec):
        groups = _model(model_or_config).cache
    else:
        raise TypeError(
            f"model_or_config is a {type(model_or_config).__name__}; "
            "expected a name of the registry, a ModelSpec, a GQAConfig or an MLAConfig"
        )
    return [group for group in groups if group.role == role]


def kv_cache_bytes(
    model_or_config: str | ModelSpec | Layer, num_tokens: int, batch_size: int = 1, dtype: str = "bf16"
) -> int:
    """Bytes of keys, values and latents after ``num_tokens`` tokens in each of ``batch_size`` sequences.

    A layer stores 2 n_g d_h numbers for a token (MHA: n_g = n_h; MQA: 1), MLA d_c + d_h^R (DeepSeek-V2 paper, Table 1).
    Windows cap the tokens that a layer keeps. ``index_cache_bytes`` and ``state_bytes`` count the rest.

    Args:
        model_or_config: a name of the registry or a ``ModelSpec``: all layers; a layer's config: that layer.
        dtype: "fp32", "fp16", "bf16", "fp8" (one byte a number, no scales), or "fp8_mla" (FlashMLA's layout).

    Raises:
        ValueError: unknown model or dtype, a number out of range, or "fp8_mla" for what is not MLA.
    """
    _not_negative("num_tokens", num_tokens)
    _positive("batch_size", batch_size)
    groups = _groups(model_or_config, "kv")
    if dtype != "fp8_mla":
        return batch_size * bytes_per_number(dtype) * sum(group.num_elements(num_tokens) for group in groups)
    layer = model_or_config if isinstance(model_or_config, GQAConfig | MLAConfig) else _model(model_or_config)
    if isinstance(layer, ModelSpec) and layer.kind != "mla" and layer.config is None:
        raise ValueError(f"dtype is 'fp8_mla'; expected another for {layer.name}, which is not MLA")
    per_token = fp8_mla_token_bytes(layer)
    return batch_size * per_token * sum(group.layers * group.num_entries(num_tokens) for group in groups)


def index_cache_bytes(model: str | ModelSpec, num_tokens: int, batch_size: int = 1, dtype: str = "bf16") -> int:
    """Bytes of the keys that a sparse-attention indexer scores; 0 for a model without one.

    In fp8 ("fp8" or "fp8_mla") each 128 numbers have one fp32 scale, as in DeepSeek-V3.2's reference code: 132 bytes
    for a key of 128.
    """
    _not_negative("num_tokens", num_tokens)
    _positive("batch_size", batch_size)
    total = 0
    for group in _groups(model, "index"):
        if dtype in ("fp8", "fp8_mla"):
            per_entry = group.elements + 4 * math.ceil(group.elements / FP8_BLOCK)
        else:
            per_entry = group.elements * bytes_per_number(dtype)
        total += group.layers * group.num_entries(num_tokens) * per_entry
    return batch_size * total


def state_bytes(model: str | ModelSpec, batch_size: int = 1, dtype: str = "fp32") -> int | None:
    """Bytes of what does not grow with the sequence: recurrent states, unfinished blocks; None where not known.

    Such states are usually kept in fp32, whatever the cache's format.
    """
    _positive("batch_size", batch_size)
    elements = _model(model).state_elements
    return None if elements is None else batch_size * elements * bytes_per_number(dtype)


# --- operations of one layer


@dataclass(frozen=True)
class Cost:
    """Floating-point operations, and bytes that must come from memory. Costs of successive steps add up."""

    flops: int
    bytes: int

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: operations per byte."""
        return self.flops / self.bytes if self.bytes else math.inf

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def num_scores(num_cached: int, num_new: int, window: int | None = None) -> int:
    """Query-key pairs of one head: query i of ``num_new`` sees the cached tokens, itself and the new ones before it.

    Without a window num_new * num_cached + num_new (num_new + 1) / 2; with one, at most ``window`` keys per query.
    """
    if window is None:
        return num_new * num_cached + num_new * (num_new + 1) // 2
    growing = max(0, min(num_new, window - num_cached))  # queries that see fewer keys than the window holds
    return growing * num_cached + growing * (growing + 1) // 2 + (num_new - growing) * window


def attention_macs_per_score(config: Layer, mode: str | None = None) -> int:
    """Multiply-adds of all heads for one query and one key: the score and the weighted value.

    GQA: n_h * 2 d_h. MLA expanded: n_h (d_h + d_h^R + d_h); absorbed: n_h (2 d_c + d_h^R), since key and value are
    the latent itself.
    """
    heads = config.num_attention_heads
    if isinstance(config, GQAConfig):
        return heads * 2 * config.head_dim
    if mode == "absorbed":
        return heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    return heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)


def expansion_macs_per_token(config: MLAConfig) -> int:
    """Multiply-adds of W^UK and W^UV for one token, all heads: n_h d_c (d_h + d_h) (DeepSeek-V2 eq. 10, 11).

    Expanded attention spends them on every *cached* token. Absorbed attention spends as many on every *new* token: W^UK
    moves to the query, W^UV to the output (DeepSeek-V2, sec. 2.1.2).
    """
    return config.num_attention_heads * config.kv_lora_rank * (config.qk_nope_head_dim + config.v_head_dim)


def attention_cost(
    config: Layer,
    num_cached: int,
    num_new: int = 1,
    batch_size: int = 1,
    dtype: str = "bf16",
    mode: str | None = None,
) -> Cost:
    """Attention of one layer for ``num_new`` tokens after ``num_cached``: scores, weighted values, and the cache read.

    Bytes are those of the cache: the keys and values, or latents, of every token in reach, the new ones included, each
    read once. MLA's expansion or absorption products are counted; their weights are counted in ``projection_cost``. The
    expanded keys and values are not written to memory here.

    Args:
        config: the layer.
        num_cached: tokens of a sequence that were there before.
        num_new: tokens that attend, causally among themselves.
        mode: for MLA "expanded" (keys and values rebuilt per head) or "absorbed" (attention over the latent); must be
            None for GQA.

    Raises:
        ValueError: a number out of range, an unknown dtype, or a mode that does not fit the layer.
    """
    _not_negative("num_cached", num_cached)
    _positive("num_new", num_new)
    _positive("batch_size", batch_size)
    if isinstance(config, MLAConfig) and mode not in ("expanded", "absorbed"):
        raise ValueError(f"mode is {mode!r}; expected 'expanded' or 'absorbed' for an MLA layer")
    if isinstance(config, GQAConfig) and mode is not None:
        raise ValueError(f"mode is {mode!r}; expected None for a layer of kind {config.kind!r}")
    window = getattr(config, "sliding_window", None)
    macs = num_scores(num_cached, num_new, window) * attention_macs_per_score(config, mode)
    if mode == "expanded":
        macs += (num_cached + num_new) * expansion_macs_per_token(config)
    elif mode == "absorbed":
        macs += num_new * expansion_macs_per_token(config)
    in_reach = num_cached + num_new if window is None else min(num_cached + num_new, window + num_new - 1)
    one_token = kv_cache_bytes(config, 1, batch_size, dtype)
    return Cost(2 * macs * batch_size, in_reach * one_token)


def num_attention_parameters(config: Layer) -> int:
    """Weights of one attention layer's projections; biases of queries, keys, values and output where it has them.

    GQA: d (2 n_h + 2 n_g) d_h. MLA: the query path, d (d_c + d_h^R), the up-projections n_h d_c (d_h + d_h), and the
    output (DeepSeek-V2 eq. 9-17). The norms of the latents are not counted.
    """
    d, heads = config.hidden_size, config.num_attention_heads
    if isinstance(config, GQAConfig):
        queries, keys = heads * config.head_dim, config.num_key_value_heads * config.head_dim
        biases = (queries + 2 * keys) * config.qkv_bias + d * config.o_bias
        return d * (2 * queries + 2 * keys) + biases
    queries = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
    rank = config.q_lora_rank
    query_path = d * queries if rank is None else d * rank + rank * queries
    down = d * (config.kv_lora_rank + config.qk_rope_head_dim)
    return query_path + down + expansion_macs_per_token(config) + heads * config.v_head_dim * d


def projection_cost(config: Layer, num_new: int = 1, batch_size: int = 1, dtype: str = "bf16") -> Cost:
    """The products of one layer's projections: one multiply-add per weight and token; weights are read once a step.

    For MLA without the up-projections' products, which ``attention_cost`` counts in either mode; their weights are read
    here. The bytes do not grow with the batch: that is why batching pays.
    """
    _positive("num_new", num_new)
    _positive("batch_size", batch_size)
    parameters = num_attention_parameters(config)
    products = parameters - (expansion_macs_per_token(config) if isinstance(config, MLAConfig) else 0)
    return Cost(2 * products * num_new * batch_size, parameters * bytes_per_number(dtype))


# --- one GPU, and several


def _peak(gpu: GPUSpec, dtype: str) -> int:
    if dtype not in gpu.flops:
        raise ValueError(f"dtype is {dtype!r}; expected one that {gpu.name} has: {', '.join(gpu.flops)}")
    return gpu.flops[dtype]


def _gpu(gpu: str | GPUSpec) -> GPUSpec:
    return get_gpu(gpu) if isinstance(gpu, str) else gpu


def ridge(gpu: str | GPUSpec, dtype: str = "bf16") -> float:
    """Operations per byte from which a GPU's arithmetic, not its memory, sets the pace (Williams et al. 2009)."""
    gpu = _gpu(gpu)
    return _peak(gpu, dtype) / gpu.bandwidth


def roofline(cost: Cost, gpu: str | GPUSpec, dtype: str = "bf16") -> float:
    """Attainable FLOP per second: min(peak, intensity * bandwidth)."""
    gpu = _gpu(gpu)
    return min(_peak(gpu, dtype), cost.intensity * gpu.bandwidth)


def step_seconds(cost: Cost, gpu: str | GPUSpec, dtype: str = "bf16") -> float:
    """Least time for a cost, were memory and arithmetic to overlap perfectly: max(flops / peak, bytes / bandwidth)."""
    gpu = _gpu(gpu)
    return max(cost.flops / _peak(gpu, dtype), cost.bytes / gpu.bandwidth)


def weight_bytes(model: str | ModelSpec, dtype: str = "bf16") -> int | None:
    """Bytes of all weights; None where the number of parameters is not known."""
    parameters = _model(model).num_parameters
    return None if parameters is None else parameters * bytes_per_number(dtype)


def sequence_bytes(model: str | ModelSpec, num_tokens: int, dtype: str = "bf16") -> int:
    """All that one sequence holds: keys, values or latents, index keys, and the state as far as it is known."""
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
    dtype: str = "bf16",
    weights_dtype: str = "bf16",
) -> Fit | None:
    """How many GPUs hold the weights, and how much cache fits beside them.

    Returns:
        None where the number of parameters is not known.

    Raises:
        ValueError: unknown model, GPU or dtype, or a number out of range.
    """
    model, gpu = _model(model), _gpu(gpu)
    per_sequence = sequence_bytes(model, num_tokens, dtype)
    _positive("batch_size", batch_size)
    weights = weight_bytes(model, weights_dtype)
    if weights is None:
        return None
    num_gpus = math.ceil(weights / gpu.memory)
    free = num_gpus * gpu.memory - weights
    most = bisect_right(range(MOST_TOKENS), free, key=lambda n: batch_size * sequence_bytes(model, n, dtype)) - 1
    return Fit(
        num_gpus=num_gpus,
        free_bytes=free,
        max_sequences=free // per_sequence if per_sequence else None,
        max_tokens=None if most == MOST_TOKENS - 1 else max(most, 0),
    )
