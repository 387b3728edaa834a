"""From a model's dimensions and the types of its layers to the groups of its cache.

Names of dimensions and of layer types are those of transformers' config classes.
"""

from collections import Counter
from collections.abc import Mapping

from mla_edu.hf.dimensions import Dimensions
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


def key_value_heads(dims: Dimensions, local: bool = False) -> int:
    """Key/value heads of one attention layer; 1 for a latent, which all query heads share."""
    if dims.is_mla:
        return 1
    return (local and dims.swa_num_key_value_heads) or dims.need("num_key_value_heads")


def elements_per_token(dims: Dimensions, local: bool = False) -> int:
    """Numbers that one attention layer stores for one token.

    MLA stores the latent and the rotary key that all heads share (DeepSeek-V2 paper, Table 1). Everything else stores a
    key and a value per key/value head, whose widths may differ (``v_head_dim``), in local layers too (``swa_...``).
    """
    if dims.is_mla:
        if local and dims.swa_kv_lora_rank and dims.swa_qk_rope_head_dim is not None:
            return dims.swa_kv_lora_rank + dims.swa_qk_rope_head_dim
        return dims.need("kv_lora_rank") + dims.need("qk_rope_head_dim")
    key, value = dims.need("head_dim"), dims.v_head_dim
    if local:
        key, value = dims.swa_head_dim or key, dims.swa_v_head_dim or value
    return key_value_heads(dims, local) * (key + (value or key))


def cache_groups(dims: Dimensions, layers: Mapping[str, int], index_layers: int = 0) -> tuple[CacheGroup, ...]:
    """The groups of a model with ``layers[type]`` layers of each type, ``index_layers`` of which own an indexer.

    Raises:
        ValueError: a number that one of the layers needs is missing.
    """
    if set(layers) & set(COMPRESSED):
        return _compressed_groups(dims, layers)
    groups = []
    for layer_type, count in layers.items():
        if layer_type not in WINDOW_OF:
            continue
        name = WINDOW_OF[layer_type]
        window = None if name is None else dims.need(name)
        local = window is not None
        if dims.heads_of_layers:
            width = elements_per_token(dims) // key_value_heads(dims)
            for heads, some in Counter(dims.heads_of_layers).items():
                groups.append(CacheGroup(role="kv", layers=some, elements=heads * width, heads=heads))
            continue
        elements, heads = elements_per_token(dims, local), key_value_heads(dims, local)
        groups.append(CacheGroup(role="kv", layers=count, elements=elements, window=window, heads=heads))
    if index_layers:
        stride = dims.index_kpool or 1
        elements = dims.need("index_head_dim")
        groups.append(CacheGroup(role="index", layers=index_layers, elements=elements, stride=stride))
    return tuple(groups)


def _compressed_groups(dims: Dimensions, layers: Mapping[str, int]) -> tuple[CacheGroup, ...]:
    """DeepSeek-V4: one vector is both key and value, so an entry is ``head_dim`` numbers.

    Every layer has a sliding window; the compressed ones add an entry per complete block of tokens, and those with
    sparse attention an index key beside it (transformers 5.23, ``deepseek_v4``).
    """
    width, every = dims.need("head_dim"), sum(layers.values())
    groups = [CacheGroup(role="kv", layers=every, elements=width, window=dims.need("sliding_window"))]
    rates = COMPRESSED | (dims.compress_rates or {})
    for layer_type in COMPRESSED:
        if count := layers.get(layer_type):
            groups.append(CacheGroup(role="kv", layers=count, elements=width, stride=rates[layer_type]))
    if sparse := layers.get("compressed_sparse_attention"):
        elements, stride = dims.need("index_head_dim"), rates["compressed_sparse_attention"]
        groups.append(CacheGroup(role="index", layers=sparse, elements=elements, stride=stride))
    return tuple(groups)


def state_elements(dims: Dimensions, layers: Mapping[str, int], index_layers: int = 0) -> int | None:
    """Numbers per sequence that do not grow with its length, over all layers; None where a width is missing.

    A recurrent layer holds its state and the last inputs of its short convolution. A pooled cache holds the tokens of
    the unfinished block, counted at their most.
    """
    if dims.conv_kernel_size:  # Inkling: short convolutions of keys, of values, and twice of the residual stream
        widths = {"hybrid": elements_per_token(dims), "hybrid_sliding": elements_per_token(dims, local=True)}
        inputs = sum(layers.get(kind, 0) * (width + 2 * dims.need("hidden_size")) for kind, width in widths.items())
        return inputs * dims.conv_kernel_size
    recurrent = sum(layers.get(layer_type, 0) for layer_type in RECURRENT)
    per_layer = _recurrent_state(dims, "conv" in layers) if recurrent else 0
    if per_layer is None:
        return None
    return recurrent * per_layer + unfinished_elements(dims, layers, index_layers)


def state_heads(dims: Dimensions, layers: Mapping[str, int]) -> int:
    """Heads of the recurrent layers, the fewest of any part of their state; 1 where there are none."""
    if not any(layers.get(layer_type) for layer_type in RECURRENT):
        return 1
    return dims.linear_num_key_heads or dims.linear_num_heads or dims.mamba_n_heads or 1


def unfinished_elements(dims: Dimensions, layers: Mapping[str, int], index_layers: int = 0) -> int:
    """Numbers per sequence of the unfinished blocks of a pooled cache, over all layers."""
    total = 0
    rates = COMPRESSED | (dims.compress_rates or {})
    if count := layers.get("heavily_compressed_attention"):
        # A key/value and a gate for each token of the unfinished block.
        total += count * (rates["heavily_compressed_attention"] - 1) * 2 * dims.need("head_dim")
    if count := layers.get("compressed_sparse_attention"):
        # Blocks overlap: two series per token, and the last complete block's first series; the indexer has its own.
        rate = rates["compressed_sparse_attention"]
        total += count * 2 * (2 * (rate - 1) + rate) * (dims.need("head_dim") + dims.need("index_head_dim"))
    if index_layers and dims.index_kpool:
        total += index_layers * (dims.index_kpool - 1) * 2 * dims.need("index_head_dim")
    return total


def _recurrent_state(dims: Dimensions, short_convolution_only: bool) -> int | None:
    """State of one recurrent layer; which kind it is shows in the names of its dimensions."""
    if short_convolution_only:  # LFM2
        return dims.need("hidden_size") * dims.need("conv_L_cache")
    if dims.lightning_heads:  # MiniMax: a matrix for each head, of keys by values
        return dims.lightning_heads * dims.need("head_dim") ** 2
    if dims.linear_num_value_heads:  # gated delta net
        keys = dims.need("linear_num_key_heads") * dims.need("linear_key_head_dim")
        values = dims.linear_num_value_heads * dims.need("linear_value_head_dim")
        convolution = (2 * keys + values) * dims.need("linear_conv_kernel_dim")
        return dims.need("linear_key_head_dim") * values + convolution
    if dims.linear_num_heads:  # Kimi delta attention
        width = dims.linear_num_heads * dims.need("linear_head_dim")
        return width * dims.need("linear_head_dim") + 3 * width * dims.need("linear_conv_kernel_dim")
    if dims.mamba_n_heads:  # Mamba-2
        inner, state = dims.mamba_n_heads * dims.need("mamba_d_head"), dims.need("mamba_d_state")
        return inner * state + (inner + 2 * dims.need("mamba_n_groups") * state) * dims.need("mamba_d_conv")
    if dims.mamba_expand:  # Mamba
        inner = dims.mamba_expand * dims.need("hidden_size")
        return inner * (dims.need("mamba_d_state") + dims.need("mamba_d_conv"))
    return None
