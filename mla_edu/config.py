"""The numbers that define a layer, checked once, where they enter.

``GQAConfig`` covers multi-head, multi-query and grouped-query attention, ``MLAConfig`` multi-head latent attention,
``Mamba2Config`` a recurrence in its place, ``MoEConfig`` the mixture of experts behind it. All arguments are given by
name. Nothing here imports torch.
"""

from typing import Literal, Self

from pydantic import model_validator

from mla_edu.rope_scaling import RopeScaling, YarnScaling
from mla_edu.validation import (
    Checked,
    EvenNonNegativeInt,
    EvenPositiveInt,
    Flag,
    NonNegativeInt,
    NonNegativeNumber,
    PositiveInt,
    PositiveNumber,
)


class GQAConfig(Checked):
    """One layer of multi-head, multi-query or grouped-query attention.

    Raises:
        ValueError: a value is out of range; names the argument, the value and what was expected.

    Sources: MHA, Vaswani et al. 2017, sec. 3.2; MQA, Shazeer 2019; GQA, Ainslie et al. 2023, sec. 2.2.
    """

    hidden_size: PositiveInt  # width of the residual stream
    num_attention_heads: PositiveInt  # query heads
    num_key_value_heads: PositiveInt  # key/value heads; each serves a group of query heads
    head_dim: EvenPositiveInt  # width of one head; not always hidden_size / num_attention_heads
    rope_theta: PositiveNumber | None = 10000.0  # base of the rotary angles; None: no rotation
    rope_scaling: RopeScaling | None = None
    qkv_bias: Flag = False
    o_bias: Flag = False
    sliding_window: PositiveInt | None = None  # a query sees at most this many tokens, itself included

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}; "
                f"expected a divisor of num_attention_heads, {self.num_attention_heads}"
            )
        return self

    @property
    def kind(self) -> Literal["mha", "mqa", "gqa"]:
        """``"mha"`` with one key/value head per query head, ``"mqa"`` with one for all, ``"gqa"`` between."""
        if self.num_key_value_heads == self.num_attention_heads:
            return "mha"
        return "mqa" if self.num_key_value_heads == 1 else "gqa"

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def elements_per_token(self) -> int:
        """Numbers that this layer caches for one token: a key and a value per key/value head."""
        return 2 * self.num_key_value_heads * self.head_dim


class MLAConfig(Checked):
    """One layer of multi-head latent attention (DeepSeek-V2 paper, sec. 2.1).

    Raises:
        ValueError: a value is out of range; names the argument, the value and what was expected.
    """

    hidden_size: PositiveInt  # d: width of the residual stream
    num_attention_heads: PositiveInt  # n_h
    q_lora_rank: PositiveInt | None  # d_c': width of the query latent; None where queries are not compressed
    kv_lora_rank: PositiveInt  # d_c: width of the key/value latent
    qk_nope_head_dim: PositiveInt  # d_h: width of a key's part without rotation
    qk_rope_head_dim: EvenNonNegativeInt  # d_h^R: width of the rotary key, one for all heads
    v_head_dim: PositiveInt  # d_v: width of a value
    rope_theta: PositiveNumber | None = 10000.0  # base of the rotary angles; None: no rotation
    rope_scaling: RopeScaling | None = None
    rope_interleave: Flag = True  # rotation turns neighbours 2i, 2i + 1; else i, i + qk_rope_head_dim / 2
    attention_bias: Flag = False  # on q_a_proj, kv_a_proj_with_mqa and o_proj
    mla_scale_q_lora: Flag = False  # LongCat-Flash: the query latent times sqrt(hidden_size / q_lora_rank)
    mla_scale_kv_lora: Flag = False  # LongCat-Flash: the key/value latent times sqrt(hidden_size / kv_lora_rank)
    llama_4_scaling_beta: NonNegativeNumber = 0.0  # Mistral 4: growth of the queries with their position

    @model_validator(mode="after")
    def _scales_have_what_they_need(self) -> Self:
        if self.mla_scale_q_lora and self.q_lora_rank is None:
            raise ValueError("mla_scale_q_lora is True; expected a q_lora_rank with it")
        if self.llama_4_scaling_beta and not isinstance(self.rope_scaling, YarnScaling):
            raise ValueError(
                f"llama_4_scaling_beta is {self.llama_4_scaling_beta}; expected YaRN's rope_scaling with it, "
                "whose original_max_position_embeddings is the step of the growth"
            )
        return self

    @property
    def kind(self) -> Literal["mla"]:
        """``"mla"``, whatever the widths."""
        return "mla"

    @property
    def qk_head_dim(self) -> int:
        """Width of a whole query or key: the part without rotation and the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def elements_per_token(self) -> int:
        """Numbers that this layer caches for one token: the latent and the shared rotary key (Table 1)."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def expanded_elements_per_token(self) -> int:
        """Numbers that it would cache as keys and values of every head."""
        return self.num_attention_heads * (self.qk_head_dim + self.v_head_dim)


class MoEConfig(Checked):
    """One mixture-of-experts layer in the manner of DeepSeek.

    Raises:
        ValueError: a value is out of range; names the argument, the value and what was expected.

    Sources: DeepSeek-V2 paper, sec. 2.2; DeepSeek-V3 paper, sec. 2.1.2.
    """

    hidden_size: PositiveInt  # width of the residual stream
    n_routed_experts: PositiveInt  # of which each token takes some
    num_experts_per_tok: PositiveInt  # that a token takes
    moe_intermediate_size: PositiveInt  # width inside an expert
    n_shared_experts: NonNegativeInt = 0  # that every token takes; they are one MLP, so many times as wide
    n_group: PositiveInt = 1  # groups of neighbouring experts
    topk_group: PositiveInt = 1  # groups that a token may choose from
    scoring_func: Literal["softmax", "sigmoid"] = "sigmoid"  # of V2, and of V3, which adds a bias before choosing
    norm_topk_prob: Flag = True  # the weights of the chosen experts are divided by their sum
    routed_scaling_factor: PositiveNumber = 1.0  # of the weights, after that

    @model_validator(mode="after")
    def _choice_is_possible(self) -> Self:
        experts, groups = self.n_routed_experts, self.n_group
        if experts % groups:
            raise ValueError(f"n_group is {groups}; expected a divisor of n_routed_experts, {experts}")
        if self.topk_group > groups:
            raise ValueError(f"topk_group is {self.topk_group}; expected at most n_group, {groups}")
        if groups > 1 and self.scoring_func == "sigmoid" and experts // groups < 2:
            raise ValueError(
                f"n_group is {groups}; expected groups of at least 2 of the {experts} experts, since a group is "
                "scored by its best two"
            )
        if self.num_experts_per_tok > (within := self.topk_group * experts // groups):
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}; expected at most the {within} experts of "
                f"topk_group = {self.topk_group} groups"
            )
        return self


class Mamba2Config(Checked):
    """One Mamba-2 layer (Dao and Gu 2024), whose state has one size however long the text.

    Raises:
        ValueError: a value is out of range; names the argument, the value and what was expected.
    """

    hidden_size: PositiveInt  # width of the residual stream
    num_heads: PositiveInt  # states
    head_dim: PositiveInt  # numbers that a head takes in for a token
    state_size: PositiveInt  # directions in which they are kept: a head's state has head_dim * state_size numbers
    n_groups: PositiveInt = 1  # the heads of a group share the directions of writing and reading
    conv_kernel: PositiveInt = 4  # tokens that the convolution before the state sees
    conv_bias: Flag = True
    norm_eps: PositiveNumber = 1e-5  # of the norm behind the gate

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.num_heads % self.n_groups:
            raise ValueError(f"n_groups is {self.n_groups}; expected a divisor of num_heads, {self.num_heads}")
        return self

    @property
    def kind(self) -> Literal["mamba2"]:
        """``"mamba2"``, whatever the widths."""
        return "mamba2"

    @property
    def inner_width(self) -> int:
        """Numbers that all heads take in for a token."""
        return self.num_heads * self.head_dim

    @property
    def conv_width(self) -> int:
        """Numbers for each token that pass the convolution: what is taken in, and both directions."""
        return self.inner_width + 2 * self.n_groups * self.state_size

    @property
    def state_elements(self) -> int:
        """Numbers that this layer keeps of a sequence: the states, and the last inputs of the convolution."""
        return self.inner_width * self.state_size + self.conv_width * (self.conv_kernel - 1)
