"""The numbers of a ``config.json`` under one name each, typed and checked."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mla_edu.hf.families import Family
from mla_edu.hf.show import shown
from mla_edu.validation import EvenNonNegativeInt, Flag, NonNegativeInt, PositiveInt

Json = dict[str, Any]
Size = Annotated[PositiveInt, Field(le=10**12)] | None  # None: the file does not say, and the family does not define
Count = Annotated[PositiveInt, Field(le=10**6)] | None  # of things that are listed one by one
Names = Annotated[list[str], Field(strict=True, min_length=1)] | None
Numbers = list[Annotated[int, Field(strict=True)]] | None
Even = Annotated[EvenNonNegativeInt, Field(le=10**12)] | None  # rotation turns pairs


def _also(*names: str) -> Any:
    """A field that older families know under other names."""
    return Field(default=None, validation_alias=AliasChoices(*names))


class Dimensions(BaseModel):
    """What a model's file says of its attention, its cache and the types of its layers.

    Names are those of transformers' config classes; those of ``AliasChoices`` are read where the family has them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_hidden_layers: Count = _also("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    hidden_size: Size = _also("hidden_size", "n_embd", "d_model")
    num_attention_heads: Size = _also("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
    num_key_value_heads: Size = _also("num_key_value_heads", "num_kv_heads")
    head_dim: Size = None
    v_head_dim: Size = None
    max_position_embeddings: Size = _also("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length")
    multi_query: Flag | None = None
    multi_query_attention: Flag | None = None
    multi_query_group_num: Size = None
    n_head_kv: Size = None
    kv_channels: Size = None
    attn_config: Json | None = None
    num_experts_per_tok: Size = None
    block_configs: list[Json] | None = None
    heads_of_layers: tuple[PositiveInt, ...] | None = None  # key/value heads of each layer that has any
    use_mla: Flag | None = None
    new_decoder_architecture: Flag | None = None

    kv_lora_rank: Size = None
    q_lora_rank: Size = None
    qk_nope_head_dim: Size = None
    qk_rope_head_dim: Even = None

    sliding_window: Size = None
    use_sliding_window: Flag | None = None
    max_window_layers: NonNegativeInt | None = None
    attention_chunk_size: Size = None
    no_rope_layer_interval: Size = None
    num_kv_shared_layers: NonNegativeInt | None = None
    swa_num_key_value_heads: Size = None
    swa_head_dim: Size = None
    swa_v_head_dim: Size = None
    swa_kv_lora_rank: Size = None
    swa_qk_nope_head_dim: Size = None
    swa_qk_rope_head_dim: Even = None
    local_attention: Size = None
    sliding_window_size: Size = None
    global_head_dim: Size = None
    num_global_key_value_heads: Size = None
    attention_k_eq_v: Flag | None = None
    per_layer_config: dict[str, Json] | None = None

    index_head_dim: Size = None
    index_kpool: Size = None
    index_topk_freq: NonNegativeInt | None = None
    index_skip_topk_offset: NonNegativeInt | None = None
    index_topk_pattern: Names | str = None
    indexer_types: Names = None
    sparse_attention_config: Json | None = None
    use_dsa: Flag | None = None
    compress_ratios: Numbers = None
    compress_rates: dict[str, PositiveInt] | None = None

    linear_num_heads: Size = None
    linear_head_dim: Size = None
    linear_num_key_heads: Size = None
    linear_num_value_heads: Size = None
    linear_key_head_dim: Size = None
    linear_value_head_dim: Size = None
    linear_conv_kernel_dim: Size = _also("linear_conv_kernel_dim", "short_conv_kernel_size")
    linear_attn_config: Json | None = None
    conv_L_cache: Size = None
    conv_kernel_size: Size = None  # of four convolutions in each layer: keys, values, and two of the residual stream
    lightning_heads: Size = None
    mamba_n_heads: Size = _also("mamba_n_heads", "mamba_num_heads", "n_mamba_heads")
    mamba_d_head: PositiveInt | Literal["auto"] | None = _also("mamba_d_head", "mamba_head_dim")
    mamba_d_ssm: Size = None
    mamba_d_state: Size = _also("mamba_d_state", "ssm_state_size")
    mamba_n_groups: Size = _also("mamba_n_groups", "n_groups", "mamba_ngroups")
    mamba_d_conv: Size = _also("mamba_d_conv", "conv_kernel")
    mamba_expand: Size = None

    layer_types: Names = _also("layer_types", "layers_block_type")
    global_attn_every_n_layers: Size = None
    full_attention_interval: Size = None
    layer_group_size: Size = None
    first_k_dense_replace: NonNegativeInt | None = None
    prefix_dense_sliding_window_pattern: Size = None
    local_layer_ids: Numbers = None
    total_ut_steps: Size = None
    num_layers_per_stack: Size = None
    H_cycles: Size = None
    L_cycles: Size = None
    sliding_window_pattern: PositiveInt | str | None = None
    no_rope_layers: Numbers = None
    hybrid_layer_pattern: Numbers = None
    hybrid_override_pattern: str | None = None
    full_attn_idxs: Numbers = None
    attn_layer_indices: Numbers = None
    attention_head_dim: Size = None
    attn_layer_period: Size = None
    attn_layer_offset: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _two_parts_of_a_key(self) -> Self:
        if self.kv_lora_rank and self.qk_rope_head_dim is None:
            raise ValueError(f"kv_lora_rank is {self.kv_lora_rank}; expected qk_rope_head_dim beside it")
        return self

    def need(self, key: str) -> int:
        """The number under ``key``.

        Raises:
            ValueError: the file does not give it.
        """
        value = getattr(self, key)
        if value is None:
            raise ValueError(f"{key} is None; expected a positive number")
        assert isinstance(value, int)
        return value

    @property
    def is_mla(self) -> bool:
        """Whether the layers cache latents."""
        return self.kv_lora_rank is not None


ALIASES = {
    field: tuple(str(name) for name in info.validation_alias.choices if name != field)
    for field, info in Dimensions.model_fields.items()
    if isinstance(info.validation_alias, AliasChoices)
}


def check(values: Mapping[str, Any], name: str) -> Dimensions:
    """The values as ``Dimensions``.

    Raises:
        ValueError: one of them is of another type, or out of range; names it and the model.
    """
    try:
        return Dimensions.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        expected = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        if not fault["loc"]:
            raise ValueError(f"{expected}, in the config.json of {name!r}") from None
        key = str(fault["loc"][0])
        if fault["type"] in ("int_type", "greater_than"):
            expected = "expected a positive number"
        raise ValueError(f"{key} is {shown(values.get(key))}; {expected}, as in every {name!r} model") from None


def complete(dims: Dimensions, family: Family, name: str) -> Dimensions:
    """``dims`` with the numbers that follow from others filled in.

    Raises:
        ValueError: a number from which others follow is missing.
    """
    filled: dict[str, Any] = {}
    listed = dims.layer_types or dims.hybrid_override_pattern
    if dims.num_hidden_layers is None and listed:
        filled["num_hidden_layers"] = len(listed)
    for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
        if getattr(dims, key) is None and key not in filled:
            raise ValueError(f"{key} is None; expected a positive number, as in every {name!r} model")
    heads, hidden_size = dims.need("num_attention_heads"), dims.need("hidden_size")
    if dims.num_key_value_heads is None:
        filled["num_key_value_heads"] = heads
    width = "v_head_dim" if dims.is_mla else "head_dim"
    if getattr(dims, width) is None:
        filled[width] = hidden_size // heads
    if (width in filled or family.whole_heads) and hidden_size % heads:
        raise ValueError(f"hidden_size is {hidden_size}; expected a multiple of num_attention_heads, {heads}")
    if dims.mamba_n_heads and dims.mamba_d_head in (None, "auto"):
        inner = dims.mamba_d_ssm or dims.need("mamba_expand") * hidden_size
        filled["mamba_d_head"] = inner // dims.mamba_n_heads
    return dims.model_copy(update=filled)
