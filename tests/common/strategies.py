"""Random configurations for Hypothesis, one place for all tests."""

from hypothesis import strategies as st

from mla_edu import GQAConfig, MLAConfig


@st.composite
def gqa_configs(draw: st.DrawFn) -> GQAConfig:
    """Small layers of every kind, with widths that are no powers of two."""
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
        rope_scaling=draw(st.sampled_from(SCALINGS)),
        qkv_bias=(bias := draw(st.booleans())),
        o_bias=bias,
    )


SCALINGS = [
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


@st.composite
def mla_configs(draw: st.DrawFn) -> MLAConfig:
    """Small layers with every option, and with widths that are no powers of two and differ from each other."""
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
