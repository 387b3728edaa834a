"""What the tests and the chapters check with: relative errors, poisoned caches, random configurations."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mla_edu.config import GQAConfig, MLAConfig

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy
    from transformers import PreTrainedModel

    from mla_edu.cache.layer import LayerCache


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute expected value; infinite where ``actual`` has NaN.

    Raises:
        ValueError: the shapes differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"actual has shape {list(actual.shape)}; expected {list(expected.shape)}")
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    return math.inf if math.isnan(error) else error


def poison(cache: "LayerCache") -> None:
    """Fill all memory of a cache that holds no token with NaN: whoever reads it shows."""
    shape = cache.table.memory_shape
    places = torch.arange(math.prod(shape), device=cache.memory[0].device).view(shape)
    is_free = torch.ones_like(places, dtype=torch.bool)
    for _, (held,) in cache.table.read(places):
        is_free.view(-1)[held.flatten()] = False
    for memory in cache.memory:
        memory[is_free] = 0xFF if memory.dtype == torch.uint8 else torch.nan  # bytes of 0xFF are NaN in every format


def randomize(layer: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter of ``layer`` random values, norms and biases included; returns the layer.

    A norm weight left at 1 or a bias left at 0 would hide that it is ignored.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            width = parameter.shape[-1] if parameter.ndim > 1 else 1
            parameter.copy_(values / width**0.5)
    return layer


def gqa_configs() -> "SearchStrategy[GQAConfig]":
    """Small layers of every kind, with widths that are no powers of two."""
    from hypothesis import strategies as st

    @st.composite
    def draw_config(draw) -> GQAConfig:
        num_key_value_heads = draw(st.integers(1, 4))
        group_size = draw(st.integers(1, 4))
        num_attention_heads = num_key_value_heads * group_size
        return GQAConfig(
            # Llama's configuration class wants a multiple of the heads.
            hidden_size=num_attention_heads * draw(st.integers(2, 9)),
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads,
            head_dim=2 * draw(st.integers(1, 11)),
            rope_theta=draw(st.sampled_from([100.0, 10000.0, 500000.0])),
            rope_scaling=draw(st.sampled_from(_SCALINGS)),
            qkv_bias=(bias := draw(st.booleans())),
            o_bias=bias,
        )

    return draw_config()


_SCALINGS = [
    None,
    {"rope_type": "linear", "factor": 3.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 32, "beta_fast": 4.0},
]


def mla_configs() -> "SearchStrategy[MLAConfig]":
    """Small layers with every option, and with widths that are no powers of two and differ from each other."""
    from hypothesis import strategies as st

    @st.composite
    def draw_config(draw) -> MLAConfig:
        num_attention_heads = draw(st.integers(1, 5))
        return MLAConfig(
            # Some configuration classes of transformers want a multiple of the heads.
            hidden_size=num_attention_heads * draw(st.integers(5, 9)),
            num_attention_heads=num_attention_heads,
            q_lora_rank=draw(st.none() | st.integers(3, 13)),
            kv_lora_rank=draw(st.integers(3, 17)),
            qk_nope_head_dim=draw(st.integers(1, 9)),
            qk_rope_head_dim=2 * draw(st.integers(1, 5)),
            v_head_dim=draw(st.integers(3, 9)),
            rope_theta=draw(st.sampled_from([100.0, 10000.0, 500000.0])),
            rope_scaling=draw(st.sampled_from([None, *MLA_YARN])),
            rope_interleave=draw(st.booleans()),
            attention_bias=draw(st.booleans()),
        )

    return draw_config()


MLA_YARN = [
    {
        "rope_type": "yarn",
        "factor": 5.0,
        "original_max_position_embeddings": 8,
        "beta_fast": 4.0,
        "mscale": mscale,
        "mscale_all_dim": mscale_all_dim,
    }
    for mscale, mscale_all_dim in [(1.0, 1.0), (0.707, 0.707), (0.8, 1.3), (None, None), (None, 0.9), (0.9, None)]
]


# What every model of a family has, whatever its config.json says: the families that our MLA is compared with.
MLA_FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"rope_interleave": True},
    "deepseek_v3": {},
    "deepseek_v32": {"rope_interleave": True},
    "glm4_moe_lite": {},
    "glm_moe_dsa": {"rope_interleave": True},
    "kimi_linear": {"rope_theta": None, "rope_scaling": None, "rope_interleave": True},
    "longcat_flash": {"rope_interleave": True, "mla_scale_q_lora": True, "mla_scale_kv_lora": True},
    "minicpm3": {"rope_interleave": False},
    "mistral4": {"rope_scaling": MLA_YARN[0], "llama_4_scaling_beta": 0.3},
    "youtu": {},
}


def family_config(family: str, config: MLAConfig) -> MLAConfig:
    """``config``, with what every model of the family has: see ``MLA_FAMILIES``."""
    fixed = MLA_FAMILIES[family]
    if family in ("deepseek_v32", "glm_moe_dsa", "longcat_flash"):  # their queries are always compressed
        fixed = {"q_lora_rank": config.q_lora_rank or 5, **fixed}
    return MLAConfig(**config.model_dump() | fixed)


def family_model(family: str, config: MLAConfig, seed: int = 0) -> "PreTrainedModel":
    """A tiny model of transformers in float64 with random weights, whose attention layers are of ``config``.

    It has three layers, of which ``kimi_linear`` has full attention in the last only, and ``longcat_flash`` two blocks
    of two.

    Args:
        family: one of ``MLA_FAMILIES``.
        config: from ``family_config``.
        seed: of the weights.
    """
    from transformers import AutoConfig, AutoModel

    rope = config.rope_scaling.model_dump(exclude_none=True) if config.rope_scaling else {"rope_type": "default"}
    rope["rope_theta"] = config.rope_theta
    if family == "mistral4":
        rope["llama_4_scaling_beta"] = config.llama_4_scaling_beta
    widths = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    options = {name: getattr(config, name) for name in ("hidden_size", "num_attention_heads", *widths)}
    options |= {"attention_bias": config.attention_bias, "num_key_value_heads": config.num_attention_heads}
    options |= {"vocab_size": 11, "num_hidden_layers": 3, "attn_implementation": "eager", "rms_norm_eps": 0.1}
    options["pad_token_id"] = None
    options |= {"intermediate_size": 8, "moe_intermediate_size": 4, "first_k_dense_replace": 3}
    if family not in ("deepseek_v2", "deepseek_v3", "longcat_flash", "minicpm3", "mistral4", "youtu"):
        options["mlp_layer_types"] = ["dense"] * 3
    match family:
        case "kimi_linear":
            options["layer_types"] = ["linear_attention", "linear_attention", "full_attention"]
            options |= {"linear_num_heads": 2, "linear_head_dim": 4}
        case "longcat_flash":
            options |= {"num_layers": 2, "n_routed_experts": 2, "zero_expert_num": 1, "moe_topk": 2}
            del options["num_hidden_layers"]
    if family != "kimi_linear":
        options |= {"rope_parameters": rope, "rope_interleave": config.rope_interleave}
    if family in ("glm4_moe_lite", "longcat_flash"):
        options["head_dim"] = config.qk_rope_head_dim  # the width that these two rotate
    model = AutoModel.from_config(AutoConfig.for_model(family, **options), dtype=torch.float64)
    return randomize(model, seed)


@torch.no_grad()
def family_attention(model: "PreTrainedModel", layer: int, hidden_states: Tensor) -> Tensor:
    """The output of the model's own attention layer on ``hidden_states``, under a causal mask written out here.

    Args:
        model: from ``family_model``, or a larger one of the same families.
        layer: the index that transformers uses in its cache.
        hidden_states: ``[batch, seq, hidden]``.
    """
    batch, seq, _ = hidden_states.shape
    if model.config.model_type == "longcat_flash":
        attention = model.layers[layer // 2].self_attn[layer % 2]
    else:
        attention = model.layers[layer].self_attn
    positions = torch.arange(seq, device=hidden_states.device)[None]
    future = positions.mT < positions
    mask = hidden_states.new_zeros(batch, 1, seq, seq).masked_fill(future, float("-inf"))
    rotary = model.rotary_emb(hidden_states, positions) if hasattr(model, "rotary_emb") else None
    return attention(hidden_states, attention_mask=mask, position_embeddings=rotary, position_ids=positions)[0]
