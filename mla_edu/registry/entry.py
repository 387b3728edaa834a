"""The schema of ``models.yaml``: what is written down of one real model."""

import functools
from decimal import Decimal
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from mla_edu.hf.attention import attention_config
from mla_edu.hf.dimensions import Dimensions, check, complete
from mla_edu.hf.families import UNKNOWN, AttentionFacts, Family, get_family
from mla_edu.hf.layout import LAYER_TYPES, cache_groups, state_elements, state_heads, unfinished_elements
from mla_edu.hf.spec import ModelSpec, Weights
from mla_edu.validation import Flag, NonNegativeInt, PositiveInt, PositiveNumber


class Remarks(BaseModel):
    """What an entry's values hold besides ``Dimensions``, under the names of a ``config.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: PositiveInt | None = None
    rope_theta: PositiveNumber | None = None
    rope_theta_local: PositiveNumber | None = None  # of the layers with a window
    rope_scaling: dict[str, Any] | None = None
    mla_use_nope: Flag | None = None
    index_n_heads: PositiveInt | None = None
    index_topk: PositiveInt | None = None
    compress_ratio_counts: dict[str, PositiveInt] | None = None  # layers with each ratio, those for MTP included
    compress_rope_theta: PositiveNumber | None = None
    num_nextn_predict_layers: NonNegativeInt | None = None  # for multi-token prediction
    params_total: str | None = None  # "671B", as its makers round it; what follows the first word is a remark
    params_active: str | None = None


class Entry(BaseModel):
    """One model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # lower case, e.g. "deepseek-v3"
    title: str  # as its makers write it
    hf_id: str | None  # repository on Hugging Face
    kind: Literal["mha", "mqa", "gqa", "mla", "csa"]
    family: str | None  # of transformers 5.23, whose layer it has: says what `values` does not; None: `attention` does
    attention: AttentionFacts | None = None
    no_config: str | None = None  # why one of its layers is not described
    # verified: read from a config file, official code or a paper, named in `where` and `sources`; class_default: of the
    # transformers 5.23.0 config class for that checkpoint; secondary: only a secondary source was found
    status: Literal["verified", "class_default", "secondary"]
    where: str
    sources: tuple[str, ...]
    values: dict[str, Any]  # as in Dimensions and Remarks
    layers: dict[str, PositiveInt]  # how many layers of each type, by transformers' names
    index_layers: NonNegativeInt = 0  # how many own an indexer
    bytes_per_token_16bit: PositiveInt | None  # of the first token, keys, values and latents; the tests recompute it
    why: str  # how the cache is counted, and why so
    notes: str | None = None
    weights: Weights | None = None  # left out where no source says in which format they are published

    @model_validator(mode="after")
    def _known(self) -> Self:
        if (self.family is None) is (self.attention is None):
            raise ValueError(f"family is {self.family!r} and attention {self.attention!r}; expected one of them")
        if self.family is not None and get_family(self.family) is UNKNOWN:
            raise ValueError(f"family is {self.family!r}; expected one of families.yaml")
        if unknown := set(self.layers) - set(LAYER_TYPES):
            raise ValueError(f"layers has {', '.join(unknown)}; expected {', '.join(LAYER_TYPES)}")
        return self

    @functools.cached_property
    def remarks(self) -> Remarks:
        """The values that are no dimensions."""
        return Remarks(**{name: value for name, value in self.values.items() if name not in Dimensions.model_fields})

    def spec(self) -> ModelSpec:
        """The model as the cost model sees it."""
        family = Family(rule="full", attention=self.attention) if self.family is None else get_family(self.family)
        dims = complete(check(self.values, self.name), family, self.name)
        config, no_config = None, self.no_config
        if no_config is None:
            try:
                config = attention_config(self.values, dims, family, self.layers)
            except ValueError as error:
                no_config = str(error)
        return ModelSpec(
            **self.model_dump(include={"name", "title", "hf_id", "kind", "status", "where", "sources", "why", "notes"}),
            weights=self.weights,
            num_parameters=parse_count(self.remarks.params_total),
            num_attention_heads=dims.num_attention_heads,
            num_layers=dims.need("num_hidden_layers"),
            max_position_embeddings=dims.max_position_embeddings,
            config=config,
            no_config=no_config,
            kv_lora_rank=dims.kv_lora_rank,
            qk_rope_head_dim=dims.qk_rope_head_dim if dims.is_mla else None,
            cache=cache_groups(dims, self.layers, self.index_layers),
            state_elements=state_elements(dims, self.layers, self.index_layers),
            state_heads=state_heads(dims, self.layers),
            shared_state_elements=unfinished_elements(dims, self.layers, self.index_layers),
        )


def parse_count(text: str | None) -> int | None:
    """``"671B"`` as 671 000 000 000; what follows the first word is a remark. None stays None."""
    if text is None:
        return None
    number = text.split()[0]
    return int(Decimal(number[:-1]) * {"M": 10**6, "B": 10**9, "T": 10**12}[number[-1]])
