"""From a model's dimensions and the types of its layers to the groups of its cache.

Names of dimensions and of layer types are those of transformers' config classes.
"""

from collections.abc import Mapping
from typing import Any

from mla_edu.hf.spec import CacheGroup

WINDOW_OF = {
    "full_attention": None,
    "indexed_attention": None,
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
    "hybrid": None,
    "hybrid_sliding": "sliding_window",
}
COMPRESSED = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
RECURRENT = ("linear_attention", "hybrid", "hybrid_sliding", "conv")
NO_ATTENTION = ("mlp", "moe")  # layers of the file's list that keep nothing
LAYER_TYPES = (*WINDOW_OF, *COMPRESSED, "linear_attention", "conv", *NO_ATTENTION)


def elements_per_token(dims: Mapping[str, Any], local: bool = False) -> int:
    """Numbers that one attention layer stores for one token.

    MLA stores the latent and the rotary key that all heads share (DeepSeek-V2 paper, Table 1). Everything else stores a
    key and a value per key/value head, whose widths may differ (``v_head_dim``), in local layers too (``swa_...``).
    """
    if "kv_lora_rank_plus_qk_rope_head_dim" in dims:
        return dims["kv_lora_rank_plus_qk_rope_head_dim"]
    if dims.get("kv_lora_rank"):
        return dims["kv_lora_rank"] + dims["qk_rope_head_dim"]
    own = {key.removeprefix("swa_"): value for key, value in dims.items() if key.startswith("swa_")} if local else {}
    dims = {**dims, **own}
    return dims["num_key_value_heads"] * (dims["head_dim"] + (dims.get("v_head_dim") or dims["head_dim"]))


def cache_groups(dims: Mapping[str, Any], layers: Mapping[str, int], index_layers: int = 0) -> tuple[CacheGroup, ...]:
    """The groups of a model with ``layers[type]`` layers of each type, ``index_layers`` of which own an indexer."""
    if set(layers) & set(COMPRESSED):
        return _compressed_groups(dims, layers)
    groups = []
    for layer_type, count in layers.items():
        if layer_type not in WINDOW_OF:
            continue
        window = WINDOW_OF[layer_type] and dims[WINDOW_OF[layer_type]]
        elements = elements_per_token(dims, local=window is not None)
        groups.append(CacheGroup(role="kv", layers=count, elements=elements, window=window))
    if index_layers:
        stride = dims.get("index_kpool", 1)
        groups.append(CacheGroup(role="index", layers=index_layers, elements=dims["index_head_dim"], stride=stride))
    return tuple(groups)


def _compressed_groups(dims: Mapping[str, Any], layers: Mapping[str, int]) -> tuple[CacheGroup, ...]:
    """DeepSeek-V4: one vector is both key and value, so an entry is ``head_dim`` numbers.

    Every layer has a sliding window; the compressed ones add an entry per complete block of tokens, and those with
    sparse attention an index key beside it (transformers 5.23, ``deepseek_v4``).
    """
    width, every = dims["head_dim"], sum(layers.values())
    groups = [CacheGroup(role="kv", layers=every, elements=width, window=dims["sliding_window"])]
    rates = COMPRESSED | dims.get("compress_rates", {})
    for layer_type in COMPRESSED:
        if count := layers.get(layer_type):
            groups.append(CacheGroup(role="kv", layers=count, elements=width, stride=rates[layer_type]))
    if sparse := layers.get("compressed_sparse_attention"):
        index = {"elements": dims["index_head_dim"], "stride": rates["compressed_sparse_attention"]}
        groups.append(CacheGroup(role="index", layers=sparse, **index))
    return tuple(groups)


def state_elements(dims: Mapping[str, Any], layers: Mapping[str, int], index_layers: int = 0) -> int | None:
    """Numbers per sequence that do not grow with its length, over all layers; None where a width is missing.

    A recurrent layer holds its state and the last inputs of its short convolution. A pooled cache holds the tokens of
    the unfinished block, counted at their most.
    """
    recurrent = sum(layers.get(layer_type, 0) for layer_type in RECURRENT)
    per_layer = _recurrent_state(dims, "conv" in layers) if recurrent else 0
    if per_layer is None:
        return None
    total = recurrent * per_layer
    rates = COMPRESSED | dims.get("compress_rates", {})
    if count := layers.get("heavily_compressed_attention"):
        # A key/value and a gate for each token of the unfinished block.
        total += count * (rates["heavily_compressed_attention"] - 1) * 2 * dims["head_dim"]
    if count := layers.get("compressed_sparse_attention"):
        # Blocks overlap: two series per token, and the last complete block's first series; the indexer has its own.
        rate = rates["compressed_sparse_attention"]
        total += count * 2 * (2 * (rate - 1) + rate) * (dims["head_dim"] + dims["index_head_dim"])
    if index_layers and dims.get("index_kpool", 1) > 1:
        total += index_layers * (dims["index_kpool"] - 1) * 2 * dims["index_head_dim"]
    return total


def _recurrent_state(dims: Mapping[str, Any], short_convolution_only: bool) -> int | None:
    """State of one recurrent layer; which kind it is shows in the names of its dimensions."""
    if short_convolution_only:  # LFM2
        return dims["hidden_size"] * dims["conv_L_cache"]
    if "linear_num_value_heads" in dims:  # gated delta net
        keys = dims["linear_num_key_heads"] * dims["linear_key_head_dim"]
        values = dims["linear_num_value_heads"] * dims["linear_value_head_dim"]
        convolution = (2 * keys + values) * dims["linear_conv_kernel_dim"]
        return dims["linear_key_head_dim"] * values + convolution
    if "linear_num_heads" in dims:  # Kimi delta attention
        width = dims["linear_num_heads"] * dims["linear_head_dim"]
        return width * dims["linear_head_dim"] + 3 * width * dims["linear_conv_kernel_dim"]
    if "mamba_n_heads" in dims:  # Mamba-2
        inner = dims["mamba_n_heads"] * dims["mamba_d_head"]
        convolution = (inner + 2 * dims["mamba_n_groups"] * dims["mamba_d_state"]) * dims["mamba_d_conv"]
        return inner * dims["mamba_d_state"] + convolution
    if "mamba_expand" in dims:  # Mamba
        inner = dims["mamba_expand"] * dims["hidden_size"]
        return inner * (dims["mamba_d_state"] + dims["mamba_d_conv"])
    return None
