"""Operations of one attention layer, and the bytes that it must read for them."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.cost.formats import CacheFormat, NumberFormat, bytes_per_number
from mla_edu.cost.memory import Layer, check_layer, kv_cache_bytes
from mla_edu.validation import check_flag, check_integer

Mode = Literal["expanded", "absorbed"]  # keys and values rebuilt per head, or attention over the latent


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


def _check_mode(config: Layer, mode: str | None) -> None:
    check_layer(config)
    if isinstance(config, MLAConfig) and mode not in ("expanded", "absorbed"):
        raise ValueError(f"mode is {mode!r}; expected 'expanded' or 'absorbed' for an MLA layer")
    if isinstance(config, GQAConfig) and mode is not None:
        raise ValueError(f"mode is {mode!r}; expected None for a layer of kind {config.kind!r}")


def _window(config: Layer) -> int | None:
    return config.sliding_window if isinstance(config, GQAConfig) else None


def num_scores(num_cached: int, num_new: int, window: int | None = None) -> int:
    """Query-key pairs of one head: query i of ``num_new`` sees the cached tokens, itself and the new ones before it.

    Without a window num_new * num_cached + num_new (num_new + 1) / 2; with one, at most ``window`` keys per query.

    Raises:
        ValueError: a number is out of range.
    """
    check_integer("num_cached", num_cached, lowest=0)
    check_integer("num_new", num_new, lowest=0)
    if window is not None:
        check_integer("window", window)
    if window is None:
        return num_new * num_cached + num_new * (num_new + 1) // 2
    growing = max(0, min(num_new, window - num_cached))  # queries that see fewer keys than the window holds
    return growing * num_cached + growing * (growing + 1) // 2 + (num_new - growing) * window


def attention_macs_per_score(config: Layer, mode: Mode | None = None) -> int:
    """Multiply-adds of all heads for one query and one key: the score and the weighted value.

    GQA: n_h * 2 d_h. MLA expanded: n_h (d_h + d_h^R + d_v); absorbed: n_h (2 d_c + d_h^R), since key and value are
    the latent itself (DeepSeek-V2 paper, sec. 2.1.2 and 2.1.3).

    Raises:
        TypeError: ``config`` is neither a ``GQAConfig`` nor an ``MLAConfig``.
        ValueError: a mode that does not fit the layer.
    """
    _check_mode(config, mode)
    if isinstance(config, GQAConfig):
        return config.num_attention_heads * 2 * config.head_dim
    if mode == "absorbed":
        return config.num_attention_heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    return config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)


def expansion_macs_per_token(config: MLAConfig) -> int:
    """Multiply-adds of W^UK and W^UV for one token, all heads: n_h d_c (d_h + d_v) (DeepSeek-V2 eq. 10, 11).

    Expanded attention spends them on every *cached* token. Absorbed attention spends as many on every *new* token: W^UK
    moves to the query, W^UV to the output (DeepSeek-V2, sec. 2.1.2).

    Raises:
        TypeError: ``config`` is not an ``MLAConfig``.
    """
    check_layer(config, MLAConfig)
    return config.num_attention_heads * config.kv_lora_rank * (config.qk_nope_head_dim + config.v_head_dim)


def attention_macs(config: Layer, num_new: int, num_keys: int, mode: Mode | None = None, *, causal: bool) -> int:
    """Multiply-adds of one layer between the query projections and the output projection, all heads.

    With s new tokens and C keys in all, MLA expanded: C d_c (d_h + d_v) per head to rebuild keys and values, and each
    score; absorbed: s d_c (d_h + d_v) per head to take queries down and results up, and each score
    (``expansion_macs_per_token``, ``attention_macs_per_score``).

    Args:
        config: the layer.
        num_new: tokens that attend, the last of the keys; 0 is allowed.
        num_keys: tokens that are attended to, the new ones included.
        mode: "expanded" or "absorbed" for MLA; must be None for GQA.
        causal: which scores count. False: the rectangle, every new token with every key, which is what a layer in plain
            PyTorch multiplies before it masks. True: the causal triangle, those that a mask (and a sliding window)
            leaves, which is what the answer needs. The two agree for a single new token without a window.

    Raises:
        TypeError: ``config`` is neither a ``GQAConfig`` nor an ``MLAConfig``, or ``causal`` neither True nor False.
        ValueError: a number out of range, or a mode that does not fit the layer.
    """
    check_integer("num_new", num_new, lowest=0)
    check_integer("num_keys", num_keys, lowest=num_new)
    _check_mode(config, mode)
    check_flag("causal", causal)
    scores = num_scores(num_keys - num_new, num_new, _window(config)) if causal else num_new * num_keys
    macs = scores * attention_macs_per_score(config, mode)
    if isinstance(config, MLAConfig):
        macs += (num_keys if mode == "expanded" else num_new) * expansion_macs_per_token(config)
    return macs


def cheaper_mode(config: MLAConfig, num_new: int, num_keys: int) -> Mode:
    """The mode in which a layer multiplies less, by the rectangle of ``attention_macs``; expanded where they are equal.

    Args:
        config: the layer.
        num_new: tokens that attend.
        num_keys: tokens that are attended to, the new ones included; of a ragged batch those of the longest sequence.

    Raises:
        TypeError: ``config`` is not an ``MLAConfig``.
        ValueError: a number out of range.
    """
    check_layer(config, MLAConfig)
    absorbed = attention_macs(config, num_new, num_keys, "absorbed", causal=False)
    return "absorbed" if absorbed < attention_macs(config, num_new, num_keys, "expanded", causal=False) else "expanded"


def absorption_crossover(config: MLAConfig, num_cached: int) -> int | None:
    """The most new tokens behind ``num_cached`` cached ones whose absorbed attention costs no more than expanded.

    By the rectangle of ``attention_macs``, where the two meet at 1/s = (2 d_c - d_h - d_v) / (d_c (d_h + d_v)) + 1/C
    for s new tokens and C keys in all: 170 with DeepSeek-V3's widths and a long cache, whatever the number of heads.
    Without cached tokens it is 0: there expanded costs less from the first token on.

    Returns:
        None where absorbed never costs more, which takes a latent with 2 d_c <= d_h + d_v.

    Raises:
        TypeError: ``config`` is not an ``MLAConfig``.
        ValueError: ``num_cached`` is out of range.
    """
    check_layer(config, MLAConfig)
    check_integer("num_cached", num_cached, lowest=0)
    up = config.qk_nope_head_dim + config.v_head_dim
    gap = 2 * config.kv_lora_rank - up
    if gap <= 0:
        return None

    def expanded_wins(new: int) -> bool:
        expanded = attention_macs(config, new, num_cached + new, "expanded", causal=False)
        return attention_macs(config, new, num_cached + new, "absorbed", causal=False) > expanded

    longest = config.kv_lora_rank * up // gap  # over a cache without end
    return bisect_right(range(1, longest + 1), False, key=expanded_wins)


def attention_cost(
    config: Layer,
    num_cached: int,
    num_new: int = 1,
    batch_size: int = 1,
    dtype: CacheFormat = "bf16",
    mode: Mode | None = None,
) -> Cost:
    """Attention of one layer for ``num_new`` tokens after ``num_cached``: scores, weighted values, and the cache read.

    Operations are those of the causal triangle of ``attention_macs``. Bytes are those of the cache: the keys and
    values, or latents, of every token in reach, the new ones included, each read once. MLA's expansion or absorption
    products are counted; their weights are counted in ``projection_cost``. The expanded keys and values are not written
    to memory here.

    Args:
        config: the layer.
        num_cached: tokens of a sequence that were there before.
        num_new: tokens that attend, causally among themselves.
        batch_size: sequences.
        dtype: of the cache.
        mode: for MLA "expanded" (keys and values rebuilt per head) or "absorbed" (attention over the latent); must be
            None for GQA.

    Raises:
        TypeError: ``config`` is neither a ``GQAConfig`` nor an ``MLAConfig``.
        ValueError: a number out of range, an unknown dtype, or a mode that does not fit the layer.
    """
    check_layer(config)
    check_integer("num_cached", num_cached, lowest=0)
    check_integer("num_new", num_new)
    one_token = kv_cache_bytes(config, 1, batch_size, dtype)
    macs = attention_macs(config, num_new, num_cached + num_new, mode, causal=True)
    window = _window(config)
    in_reach = num_cached + num_new if window is None else min(num_cached + num_new, window + num_new - 1)
    return Cost(2 * macs * batch_size, in_reach * one_token)


def kernel_cost(
    config: MLAConfig, num_rows: int, num_keys: int, batch_size: int = 1, dtype: CacheFormat = "bf16"
) -> Cost:
    """What a decode kernel computes and moves at least, between absorbed queries and results over the latent.

    Each row of queries meets each key, 2 (2 d_c + d_h^R) operations. The cache and the queries are read once, the
    results written once; queries and results are in 16 bits, 2 (d_c + d_h^R + d_c) bytes a row.

    Args:
        config: the layer, whose widths count; the heads are in ``num_rows``.
        num_rows: heads times new tokens of one sequence.
        num_keys: cached tokens of each sequence, the new ones included.
        batch_size: sequences.
        dtype: of the cache.

    Raises:
        TypeError: ``config`` is not an ``MLAConfig``.
        ValueError: a number out of range, or an unknown dtype.
    """
    check_layer(config, MLAConfig)
    for name, value in {"num_rows": num_rows, "num_keys": num_keys, "batch_size": batch_size}.items():
        check_integer(name, value)
    one_head = config.model_copy(update={"num_attention_heads": 1})
    flops = 2 * num_rows * num_keys * attention_macs_per_score(one_head, "absorbed")
    around = 2 * num_rows * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    return Cost(batch_size * flops, kv_cache_bytes(config, num_keys, batch_size, dtype) + batch_size * around)


class AttentionParameters(NamedTuple):
    """Weights of one attention layer, by what GPUs can share them out among."""

    per_head: int  # for each query head: its query, its output; of MLA the up-projections of its key and value too
    per_kv_head: int  # for each key/value head; 0 for MLA
    common: int  # needed whole by whoever computes any head: MLA's down-projections, the output's bias


def attention_parameters(config: Layer) -> AttentionParameters:
    """Weights of one attention layer's projections; biases of queries, keys, values and output where it has them.

    GQA: d (2 n_h + 2 n_g) d_h. MLA: the query path, d (d_c + d_h^R), the up-projections n_h d_c (d_h + d_v), and the
    output (DeepSeek-V2 eq. 9-17). The norms of the latents, and an indexer's weights, are not counted.

    Raises:
        TypeError: ``config`` is neither a ``GQAConfig`` nor an ``MLAConfig``.
    """
    check_layer(config)
    d = config.hidden_size
    if isinstance(config, GQAConfig):
        head = d * config.head_dim
        bias = config.head_dim * config.qkv_bias
        return AttentionParameters(2 * head + bias, 2 * (head + bias), d * config.o_bias)
    query, rank = config.qk_nope_head_dim + config.qk_rope_head_dim, config.q_lora_rank
    up = expansion_macs_per_token(config) // config.num_attention_heads
    return AttentionParameters(
        per_head=(d if rank is None else rank) * query + up + config.v_head_dim * d,
        per_kv_head=0,
        common=d * (rank or 0) + d * (config.kv_lora_rank + config.qk_rope_head_dim),
    )


def num_attention_parameters(config: Layer) -> int:
    """All weights of ``attention_parameters``.

    Raises:
        TypeError: ``config`` is neither a ``GQAConfig`` nor an ``MLAConfig``.
    """
    per_head, per_kv_head, common = attention_parameters(config)
    kv_heads = config.num_key_value_heads if isinstance(config, GQAConfig) else 0
    return config.num_attention_heads * per_head + kv_heads * per_kv_head + common


def projection_cost(config: Layer, num_new: int = 1, batch_size: int = 1, dtype: NumberFormat = "bf16") -> Cost:
    """The products of one layer's projections: one multiply-add per weight and token; weights are read once a step.

    For MLA without the up-projections' products, which ``attention_cost`` counts in either mode; their weights are read
    here. The bytes do not grow with the batch: that is why batching pays.

    Raises:
        TypeError: ``config`` is neither a ``GQAConfig`` nor an ``MLAConfig``.
        ValueError: a number out of range, or an unknown dtype.
    """
    check_layer(config)
    check_integer("num_new", num_new)
    check_integer("batch_size", batch_size)
    parameters = num_attention_parameters(config)
    products = parameters - (expansion_macs_per_token(config) if isinstance(config, MLAConfig) else 0)
    return Cost(2 * products * num_new * batch_size, parameters * bytes_per_number(dtype))
