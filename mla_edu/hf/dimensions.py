"""The numbers of a ``config.json`` under one name each, typed and checked."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mla_edu.hf.families import Family
from mla_edu.validation import Flag, NonNegativeInt, PositiveInt

Json = dict[str, Any]
Size = PositiveInt | None  # None: the file does not say, and the family does not define
Count = Annotated[PositiveInt, Field(le=10**6)] | None  # of things that are listed one by one
Names = Annotated[list[str], Field(strict=True, min_length=1)] | None
Numbers = list[Annotated[int, Field(strict=True)]] | None


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
    new_decoder_architecture: Flag | None = None

    kv_lora_rank: Size = None
    q_lora_rank: Size = None
    qk_nope_head_dim: Size = None
    qk_rope_head_dim: NonNegativeInt | None = None

    sliding_window: Size = None
    use_sliding_window: Flag | None = None
    max_window_layers: NonNegativeInt | None = None
    attention_chunk_size: Size = None
    no_rope_layer_interval: Size = None
    num_kv_shared_layers: NonNegativeInt | None = None
    swa_num_key_value_heads: Size = None
    swa_head_dim: Size = None
    swa_v_head_dim: Size = None
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
    sliding_window_pattern: PositiveInt | str | None = None
    no_rope_layers: Numbers = None
    hybrid_layer_pattern: Numbers = None
    hybrid_override_pattern: str | None = None
    full_attn_idxs: Numbers = None
    attn_layer_indices: Numbers = None
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
# What a null leaves open is computed from the other numbers. For other numbers of the family, null is refused.
NULLABLE = {"num_key_value_heads", "head_dim", "q_lora_rank", "sliding_window", "layer_types"}


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
        raise ValueError(f"{key} is {values.get(key)!r}; {expected}, as in every {name!r} model") from None


def read_dimensions(hf: Mapping[str, Any], family: Family, name: str) -> Dimensions:
    """The numbers of a file over those of its family, with what follows from them filled in.

    Args:
        hf: the file.
        family: ``UNKNOWN`` where transformers has none of that name: then every name of a number is read.
        name: its ``model_type``.

    Raises:
        ValueError: a number is missing, null, of another type, or out of range.
    """
    _check_given(hf, family, name)
    values = _own_values(hf, family)
    values |= _nested(check(values, name))
    if family.per_block > 1:
        values["num_hidden_layers"] = _attention_layers(values, family, name)
    dims = check(values, name)
    if name in SPECIAL:
        dims = dims.model_copy(update=SPECIAL[name](complete(dims, family, name)))
    return complete(dims, family, name)


def _check_given(hf: Mapping[str, Any], family: Family, name: str) -> None:
    """Refuse null where the family's class computes nothing for it, and a latent where it has none."""
    defined = {key for key, default in family.defaults.items() if default is not None}
    for key in [*(defined - NULLABLE), *family.never_null, *family.required]:
        if hf.get(key, None if key in family.required else "silent") is None:
            raise ValueError(f"{key} is None; expected a positive number, as in every {name!r} model")
    if family.defaults and "kv_lora_rank" not in family.defaults and hf.get("kv_lora_rank") is not None:
        raise ValueError(f"kv_lora_rank is {hf['kv_lora_rank']!r}; expected none in a {name!r} model, which has no MLA")


def _own_values(hf: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """What the file and the family say, without names of other families, which the family's class would overlook."""
    values = {**hf, **{key: value for key, value in family.defaults.items() if key not in hf}}
    strange: set[str] = set()
    if family.defaults:
        strange = {other for others in ALIASES.values() for other in others} - {*family.names, "layers_block_type"}
        width = "head_dim" if "kv_lora_rank" in family.defaults else "v_head_dim"
        strange |= {width, "num_kv_shared_layers", "index_head_dim"} - set(family.defaults)
    return {key: value for key, value in values.items() if value is not None and key not in strange}


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


def _nested(dims: Dimensions) -> dict[str, Any]:
    """Numbers that stand in a dictionary of their own."""
    ours = {"head_dim": "linear_head_dim", "num_heads": "linear_num_heads"}
    ours["short_conv_kernel_size"] = "linear_conv_kernel_dim"
    return {ours[key]: value for key, value in (dims.linear_attn_config or {}).items() if key in ours}


def _attention_layers(values: Mapping[str, Any], family: Family, name: str) -> int:
    """The layers of a family whose file counts blocks, or layers, or both."""
    said = check(values, name).num_hidden_layers
    if family.names[0] not in values and said is not None and said % family.per_block == 0:
        return said
    blocks = check({key: value for key, value in values.items() if key != "num_hidden_layers"}, name).num_hidden_layers
    if blocks is None:
        raise ValueError(f"{family.names[0]} is None; expected a positive number, as in every {name!r} model")
    if values.get("num_hidden_layers", family.per_block * blocks) != family.per_block * blocks:
        each = f"{family.per_block} in each of {blocks} blocks"
        raise ValueError(f"num_hidden_layers is {said}; expected {family.per_block * blocks}, {each}")
    return family.per_block * blocks


def _falcon(dims: Dimensions) -> dict[str, Any]:
    return {"num_key_value_heads": 1} if dims.multi_query and not dims.new_decoder_architecture else {}


def _qwen(dims: Dimensions) -> dict[str, Any]:
    """A window that is switched off is none, whatever the file lists."""
    return {"sliding_window": None} if dims.use_sliding_window is False else {}


def _gpt_bigcode(dims: Dimensions) -> dict[str, Any]:
    return {"num_key_value_heads": 1 if dims.multi_query else dims.num_attention_heads}


def _zamba2(dims: Dimensions) -> dict[str, Any]:
    """Attention over the concatenation with the embeddings."""
    return {"head_dim": 2 * dims.need("hidden_size") // dims.need("num_attention_heads")}


def _mimo(dims: Dimensions) -> dict[str, Any]:
    """Local layers have twice the heads; ``sliding_window_size`` does not count the query itself."""
    found: dict[str, Any] = {}
    if dims.swa_num_key_value_heads is None:
        found["swa_num_key_value_heads"] = 2 * dims.need("num_key_value_heads")
    if dims.sliding_window_size:
        found["sliding_window"] = dims.sliding_window_size + 1
    return found


def _gemma4(dims: Dimensions) -> dict[str, Any]:
    """The plain names are those of the local layers; the global ones stand in one of two places."""
    found: dict[str, Any] = {"swa_num_key_value_heads": dims.num_key_value_heads, "swa_head_dim": dims.head_dim}
    if dims.per_layer_config:  # as transformers saves it: the same entry for every global layer
        entry = next(iter(dims.per_layer_config.values()))
        own = check({key: entry.get(key) for key in ("head_dim", "num_key_value_heads")}, "gemma4_text")
        return found | own.model_dump(exclude_none=True)
    found["head_dim"] = dims.global_head_dim or 512
    if dims.attention_k_eq_v and dims.num_global_key_value_heads:
        found["num_key_value_heads"] = dims.num_global_key_value_heads
    return found


SPECIAL: dict[str, Callable[[Dimensions], dict[str, Any]]] = {
    "falcon": _falcon,
    "gpt_bigcode": _gpt_bigcode,
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), _qwen),
    "zamba2": _zamba2,
    "mimo_v2_flash": _mimo,
    "gemma4_text": _gemma4,
}
