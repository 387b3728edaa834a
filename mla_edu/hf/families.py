"""What every model of a family has, whatever its ``config.json`` says (``families.yaml``)."""

import functools
from typing import Any

from pydantic import BaseModel, ConfigDict

from mla_edu.files import load_yaml, parse_yaml, yaml_parts
from mla_edu.validation import Flag, PositiveInt, PositiveNumber

# Remote code, or another name, for the same attention layer.
SAME_AS = {
    "kimi_k2": "deepseek_v3",
    "deepseek_ref": "deepseek_v4",
    "gpt-sw3": "gpt2",
    "RefinedWebModel": "RefinedWeb",
}


class AttentionFacts(BaseModel):
    """One full-attention layer of a family. A flag is a constant, or the name under which the file holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    theta: PositiveNumber | None  # base of the rotary angles where the file is silent; None: no rotation, ever
    rope: dict[str, Any] | None = None  # rotary settings where the file has none
    nested_rope: Flag = False  # rope_parameters has one entry for each type of layer
    rotated_width: str | None = None  # a second name for qk_rope_head_dim
    qkv_bias: Flag | str = False  # in MLA: the bias of q_a_proj, kv_a_proj_with_mqa and o_proj
    o_bias: Flag | str = False
    unless: tuple[str, ...] = ()  # switches of the file that make another layer of it
    rope_interleave: Flag | str = True  # MLA
    scaled_latents: Flag = False  # LongCat-Flash: sqrt(hidden_size / rank) on both latents
    growing_queries: Flag = False  # Mistral 4: llama_4_scaling_beta
    rotary_share: Flag = False  # Mistral 4: partial_rotary_factor is the share of qk_rope_head_dim in a head


class Family(BaseModel):
    """One family of transformers' decoders."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str  # how the types of the layers follow where the file does not list them: layer_types.RULES
    rest: str | None = None  # of the rule "every" and "no_rope": the type of the layers that are not full
    sizes: tuple[PositiveInt, PositiveInt] | None = None  # num_hidden_layers and hidden_size of its config class
    n: PositiveInt | None = None  # one layer in n is full,
    key: str | None = None  # n's name in the file,
    at: int | None = None  # and the full one's place among the n; None: the last
    names: tuple[str, ...] = ()  # names of its own for numbers that others call otherwise: see Dimensions
    defaults: dict[str, Any] = {}  # of its config class
    never_null: tuple[str, ...] = ()  # numbers that its class computes nothing for where the file says null
    whole_heads: Flag = False  # its class refuses a hidden_size that is no multiple of the heads
    required: tuple[str, ...] = ()  # numbers that its class computes nothing for where the file is silent
    attention: AttentionFacts | None = None  # None: GQAConfig and MLAConfig cannot express its layer
    loads: Flag = False  # our layers compute what its layers compute
    per_block: PositiveInt = 1  # attention layers in one block of the file
    tensors: str = "layers.{block}.self_attn"  # what the tensors of an attention layer are called
    ignored_tensors: tuple[str, ...] = ()  # of that layer, not of attention over all tokens


UNKNOWN = Family(rule="full")


@functools.cache
def _texts() -> dict[str, str]:
    return yaml_parts("mla_edu.hf", "families.yaml", r"^([\w-]+): \{")


@functools.cache
def _remote_texts() -> dict[str, str]:
    return yaml_parts("mla_edu.hf", "remote.yaml", r"^([\w-]+): \{")


def list_families() -> list[str]:
    """Every ``model_type`` of transformers that is known, and other names for the same."""
    return [*_texts(), *(name for name, own in SAME_AS.items() if own in _texts())]


def list_remote_families() -> list[str]:
    """Every ``model_type`` that is known from its makers' own code."""
    return [*_remote_texts(), *(name for name, own in SAME_AS.items() if own in _remote_texts())]


@functools.cache
def _refused() -> dict[str, str]:
    reasons: dict[str, list[str]] = load_yaml("mla_edu.hf", "refused.yaml")
    return {name: reason for reason, names in reasons.items() for name in names}


def refusal(name: str) -> str | None:
    """Why the cache of a family of transformers is not counted; None where it is, or nothing is known of it."""
    return _refused().get(name)


def loadable_families() -> list[str]:
    """Those whose attention layer ours computes."""
    return sorted(name for name in list_families() if get_family(name).loads)


@functools.cache
def get_family(name: str) -> Family:
    """The family of a ``model_type``; ``UNKNOWN`` where nothing is known of it."""
    name = SAME_AS.get(name, name)
    texts = _texts() if name in _texts() else _remote_texts()
    return Family(**parse_yaml(texts[name])[name]) if name in texts else UNKNOWN
