"""What is known of a model's cache: how many layers keep how many numbers for which tokens."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.validation import NonNegativeInt, PositiveInt

WeightFormat = Literal["fp32", "fp16", "bf16", "fp8", "fp4", "int4"]


class CacheGroup(BaseModel):
    """Layers that cache alike: ``layers * elements`` numbers for each stored entry.

    An entry stands for one token; for one block of ``stride`` tokens where the model pools them. A layer with a
    ``window`` keeps at most the last ``window`` tokens, the newest included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["kv", "index"]  # keys, values and latents; or the keys that a sparse-attention indexer scores
    layers: PositiveInt
    elements: PositiveInt  # numbers per entry in one layer
    window: PositiveInt | None = None
    stride: PositiveInt = 1
    heads: PositiveInt = 1  # key/value heads, which GPUs can share out; 1 where all query heads need the whole entry

    def num_entries(self, num_tokens: int) -> int:
        """Entries that one layer holds after ``num_tokens`` tokens; an unfinished block of ``stride`` is no entry."""
        kept = num_tokens if self.window is None else min(num_tokens, self.window)
        return kept // self.stride

    def num_elements(self, num_tokens: int) -> int:
        """Numbers that all layers of the group hold after ``num_tokens`` tokens of one sequence."""
        return self.layers * self.elements * self.num_entries(num_tokens)


class Weights(BaseModel):
    """The formats in which a model's makers publish its weights by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attention: WeightFormat
    others: WeightFormat  # experts, MLPs, embeddings
    source: str


class ModelSpec(BaseModel):
    """A model as far as its cache goes. Immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # lower case, e.g. "deepseek-v3"
    title: str  # as its makers write it
    hf_id: str | None = None  # repository on Hugging Face
    kind: Literal["mha", "mqa", "gqa", "mla", "csa"]  # csa: DeepSeek-V4's compressed sparse attention
    num_parameters: int | None = None  # as its makers round it; None where no source gives it
    weights: Weights | None = None  # None where no source was found
    num_attention_heads: PositiveInt | None = None  # of queries
    num_layers: PositiveInt  # layers as transformers counts them, cached or not
    max_position_embeddings: int | None = None
    config: GQAConfig | MLAConfig | None = (
        None  # one full-attention layer; None where it is not known or of another kind
    )
    no_config: str | None = None  # why config is None, where it is
    kv_lora_rank: PositiveInt | None = None  # of MLA, also where the rest of the layer is not known
    qk_rope_head_dim: NonNegativeInt | None = None
    cache: tuple[CacheGroup, ...]
    # Numbers per sequence that do not grow with its length: recurrent and convolution states, and the unfinished block
    # of a pooled cache. None where a width is not known.
    state_elements: NonNegativeInt | None
    state_heads: PositiveInt = 1  # heads of the recurrent layers, among which GPUs can share out the state
    shared_state_elements: NonNegativeInt = 0  # of state_elements, what no head divides: unfinished blocks
    status: Literal["verified", "class_default", "secondary", "config"]  # config: read from a config.json
    where: str
    sources: tuple[str, ...] = ()
    why: str  # how the cache is counted, and why so
    notes: str | None = None
    cautions: tuple[str, ...] = ()  # what a reader of its figures should know, each a clause without a full stop

    @model_validator(mode="before")
    @classmethod
    def _widths_of_its_layer(cls, values: dict[str, Any]) -> dict[str, Any]:
        config = values.get("config")
        if not isinstance(config, MLAConfig):
            return values
        return {"kv_lora_rank": config.kv_lora_rank, "qk_rope_head_dim": config.qk_rope_head_dim, **values}
