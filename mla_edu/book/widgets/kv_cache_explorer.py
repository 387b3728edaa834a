"""The cache explorer: choose models, a context and GPUs; see what the KV cache costs on each, and what fits.

The browser computes with the same formulas from the registry that the widget hands it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

import traitlets

from mla_edu import cost
from mla_edu.book.tables import Table, table
from mla_edu.book.widgets.parts import Name, Number, Widget, one_of, source
from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.hf import CacheGroup, ModelSpec, WeightFormat, Weights
from mla_edu.registry import GPUSpec, get_gpu, get_model, list_gpus, list_models
from mla_edu.validation import check_integer

DTYPES: tuple[cost.CacheFormat, ...] = get_args(cost.CacheFormat)
PUBLISHED = "published"  # stands among the formats of weights for that of a model's makers
WEIGHTS: tuple[str, ...] = (PUBLISHED, *get_args(WeightFormat))
MOST_MODELS = 4
MOST_GPUS = 1024
OWN = "own"  # stands among the models for the one whose dimensions the reader gives
OWN_LIMITS = {  # lowest, highest, step, at first
    "num_layers": (1, 1000, 1, 32),
    "num_attention_heads": (1, 1024, 1, 32),
    "num_key_value_heads": (1, 1024, 1, 8),  # of no account where there is a latent
    "head_dim": (2, 1024, 2, 128),
    "kv_lora_rank": (0, 8192, 1, 0),  # 0: keys and values per head; else MLA with this latent
    "qk_rope_head_dim": (0, 1024, 2, 64),  # of no account where there is no latent
    "num_parameters": (0, 10**13, 10**6, 8 * 10**9),  # 0: not known
}


def own_model(own: Mapping[str, int]) -> ModelSpec:
    """A model of equal layers with the given dimensions; MLA where ``kv_lora_rank`` is not 0.

    Args:
        own: the names of ``OWN_LIMITS``; a missing one has its first value.

    Raises:
        ValueError: an unknown name, a value out of range, or dimensions that make no layer.
    """
    if unknown := sorted(set(own) - set(OWN_LIMITS)):
        raise ValueError(f"own has {unknown[0]!r}; expected {', '.join(OWN_LIMITS)}")
    dims = {name: own.get(name, first) for name, (_, _, _, first) in OWN_LIMITS.items()}
    for name, (lowest, highest, step, _) in OWN_LIMITS.items():
        check_integer(f"own[{name!r}]", dims[name], lowest, highest)
        if dims[name] % step:
            raise ValueError(f"own[{name!r}] is {dims[name]}; expected a multiple of {step}")
    heads, width = dims["num_attention_heads"], dims["head_dim"]
    if dims["kv_lora_rank"]:
        config: GQAConfig | MLAConfig = MLAConfig(
            hidden_size=heads * width,
            num_attention_heads=heads,
            q_lora_rank=None,
            kv_lora_rank=dims["kv_lora_rank"],
            qk_nope_head_dim=width,
            qk_rope_head_dim=dims["qk_rope_head_dim"],
            v_head_dim=width,
        )
    else:
        config = GQAConfig(
            hidden_size=heads * width,
            num_attention_heads=heads,
            num_key_value_heads=dims["num_key_value_heads"],
            head_dim=width,
        )
    groups = config.num_key_value_heads if isinstance(config, GQAConfig) else 1
    cache = CacheGroup(role="kv", layers=dims["num_layers"], elements=config.elements_per_token, heads=groups)
    return ModelSpec(
        name=OWN,
        title="Your model",
        kind=config.kind,
        num_parameters=dims["num_parameters"] or None,
        weights=Weights(attention="bf16", others="bf16", source="taken for a model that nobody publishes"),
        num_attention_heads=heads,
        num_layers=dims["num_layers"],
        config=config,
        cache=(cache,),
        state_elements=0,
        status="config",
        where="given by the reader",
        why="equal layers",
    )


def cache_dtype(model: ModelSpec, dtype: cost.CacheFormat) -> cost.CacheFormat:
    """The format that a model's cache is counted in: ``dtype``, but fp8 where that is a row of other attention."""
    row = cost.ROWS.get(cast(cost.RowFormat, dtype))
    if row is None or (row.kind == "csa" and model.kind == "csa"):
        return dtype
    rank = model.kv_lora_rank
    return dtype if row.kind == "mla" and rank is not None and rank % row.multiple == 0 else "fp8"


def what_if(model: ModelSpec) -> dict[str, ModelSpec]:
    """The model with another attention in each of its layers, all else equal; empty where the layers are not alike.

    A head's key and value keep their widths. MLA in place of keys and values has DeepSeek-V2's proportions, a latent of
    4 d_h and a rotary key of d_h / 2 (sec. 3.1.2 of its paper). "gqa-8" needs a number of heads that 8 divides.
    """
    config = model.config
    if config is None or any(g.elements != config.elements_per_token for g in model.cache if g.role == "kv"):
        return {}
    if isinstance(config, MLAConfig):
        key_and_value, mla = config.qk_head_dim + config.v_head_dim, config
    else:
        key_and_value = 2 * config.head_dim
        mla = MLAConfig(
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            q_lora_rank=None,
            kv_lora_rank=4 * config.head_dim,
            qk_nope_head_dim=config.head_dim,
            qk_rope_head_dim=config.head_dim // 4 * 2,
            v_head_dim=config.head_dim,
        )

    def with_elements(elements: int, heads: int, config: MLAConfig | None = None) -> ModelSpec:
        change = {"elements": elements, "heads": heads}
        cache = tuple(g.model_copy(update=change) if g.role == "kv" else g for g in model.cache)
        widths = {
            "kv_lora_rank": config and config.kv_lora_rank,
            "qk_rope_head_dim": config and config.qk_rope_head_dim,
        }
        return model.model_copy(update={"cache": cache, "config": config, **widths})

    heads = config.num_attention_heads
    variants = {"mha": with_elements(heads * key_and_value, heads)}
    if heads % 8 == 0:
        variants["gqa-8"] = with_elements(8 * key_and_value, 8)
    return variants | {"mqa": with_elements(key_and_value, 1), "mla": with_elements(mla.elements_per_token, 1, mla)}


def quantities(
    model: ModelSpec,
    gpu: GPUSpec,
    tokens: int,
    batch: int,
    dtype: cost.CacheFormat,
    gpus: int = 8,
    weights: str = PUBLISHED,
) -> dict[str, Any]:
    """What the explorer shows of one model, in bytes, tokens and pieces; None: not known, or no limit.

    ``on_each`` holds, for each of three ways to use ``gpus`` GPUs, what the fullest of them holds and how much fits;
    None for a way that would leave a GPU without a head.
    """
    own_dtype = cache_dtype(model, dtype)
    weights_dtype = None if weights == PUBLISHED else cost.weight_format(weights)
    per_sequence = cost.sequence_bytes(model, tokens, own_dtype)
    formats = cost.weight_formats(model, weights_dtype)

    def on_each(layout: cost.Parallelism) -> dict[str, int | None] | None:
        try:
            share = cost.sequence_share(model, tokens, layout, own_dtype)
        except ValueError:
            return None
        fit = cost.fit(model, gpu, tokens, layout, batch, own_dtype, weights_dtype)
        return {
            "weight_bytes": None if fit is None else fit.weight_bytes,
            "bytes_per_sequence": share.total,
            "copies": cost.cache_copies(model, layout),
            "max_sequences": None if fit is None else fit.max_sequences,
            "max_tokens": None if fit is None else fit.max_tokens,
        }

    return {
        "name": model.name,
        "dtype": own_dtype,
        "weights": formats and formats.model_dump(include={"attention", "others"}),
        "bytes_per_token": cost.kv_cache_bytes(model, 1, 1, own_dtype),
        "bytes_per_sequence": per_sequence,
        "bytes_total": batch * per_sequence,
        "tokens_per_s": 1 / cost.step_seconds(cost.Cost(0, per_sequence), gpu, "fp16") if per_sequence else None,
        "weight_bytes": cost.weight_bytes(model, weights_dtype),
        "on_each": {way: on_each(layout) for way, layout in cost.layouts(gpus).items()},
        "what_if": {kind: cost.sequence_bytes(m, tokens, cache_dtype(m, dtype)) for kind, m in what_if(model).items()},
    }


def record(model: ModelSpec) -> dict[str, Any]:
    """What the browser needs to know of a model."""
    gqa = {"num_key_value_heads", "head_dim", "qkv_bias", "o_bias"}
    latent = {"kv_lora_rank", "qk_rope_head_dim"}
    mla = {"num_attention_heads", "hidden_size", "q_lora_rank", "qk_nope_head_dim", "v_head_dim", *latent}
    sizes = {"num_parameters", "num_attention_heads", "num_layers", *latent}
    states = {"state_elements", "state_heads", "shared_state_elements"}
    record = model.model_dump(include={"name", "title", "kind", "cache", *sizes, *states})
    formats = model.weights and model.weights.model_dump(include={"attention", "others"})
    return record | {"weights": formats, "config": model.config and model.config.model_dump(include=gqa | mla)}


def _known_model(name: str) -> str:
    return name if name == OWN else get_model(name).name


class KVCacheExplorer(Widget):
    """What the KV cache of up to four models costs, on each of several GPUs, and what fits beside their weights."""

    _esm = source("explorer_models.js", "explorer_words.js", "kv_cache_explorer.js")
    _css = source("kv_cache_explorer.css")

    models = traitlets.List(Name(_known_model)).tag(sync=True)
    tokens = Number(1, 2**20)
    batch = Number(1, 2**16)
    dtype = one_of("dtype", DTYPES)
    gpu = Name(lambda name: get_gpu(name).name)
    gpus = Number(1, MOST_GPUS)
    weights = one_of("weights", WEIGHTS)
    own = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        models: Sequence[str] = ("deepseek-v3", "llama-3.1-405b"),
        tokens: int = 131_072,
        batch: int = 1,
        dtype: str = "bf16",
        gpu: str = "h200",
        gpus: int = 8,
        weights: str = PUBLISHED,
        own: Mapping[str, int] | None = None,
    ):
        """An explorer with these settings.

        Args:
            models: one to four names of the registry; ``"own"`` is the model that ``own`` describes.
            tokens: in each sequence, at most 1,048,576.
            batch: sequences at once, at most 65,536.
            dtype: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"fp8"`` or a row of ``cost.ROWS``, such as ``"fp8_mla"`` (656
                bytes for DeepSeek-V3; fp8 where a model has other attention).
            gpu: a name that ``list_gpus`` knows.
            gpus: how many, at most 1024.
            weights: ``"published"``, or the format of all weights: ``"bf16"``, ``"fp8"``, ``"fp4"``, ...
            own: dimensions by the names of ``OWN_LIMITS``; ``kv_lora_rank`` above 0 makes it MLA.

        Raises:
            ValueError: an unknown name, or a number out of range.
        """
        if isinstance(models, str):
            raise ValueError(f"models is {models!r}; expected a list of 1 to {MOST_MODELS} names")
        of_gpu = {"name", "title", "memory", "bandwidth"}
        registry = {
            "models": [record(get_model(name)) for name in list_models()],
            "gpus": [get_gpu(name).model_dump(include=of_gpu) for name in list_gpus()],
            "own_limits": OWN_LIMITS,
        }
        settings = {"models": list(models), "tokens": tokens, "batch": batch, "dtype": dtype, "gpu": gpu}
        super().__init__(registry, **settings, gpus=gpus, weights=weights, own=dict(own or {}))

    @traitlets.validate("models")
    def _valid_models(self, proposal: Any) -> list[str]:
        names: list[str] = proposal["value"]
        if not 1 <= len(names) <= MOST_MODELS:
            raise ValueError(f"models has {len(names)} names; expected 1 to {MOST_MODELS}")
        return names

    @traitlets.validate("own")
    def _valid_own(self, proposal: Any) -> dict[str, int]:
        own: dict[str, int] = proposal["value"]
        own_model(own)
        return own

    @property
    def quantities(self) -> list[dict[str, Any]]:
        """``quantities`` of each model, in the order of ``models``.

        Of each ``name``; ``bytes_per_token``, of its first token, before any window is full; ``bytes_per_sequence``,
        keys, values or latents, index keys, and states in fp32; ``bytes_total`` of all sequences; ``tokens_per_s``, how
        often one GPU can read a sequence, weights aside; ``on_each``, by layout, what a GPU holds, ``max_sequences`` of
        this length that fit beside the weights, and ``max_tokens`` in each (None: weights not known, or no limit);
        ``what_if``, the bytes of a sequence by attention.
        """
        specs = [own_model(self.own) if name == OWN else get_model(name) for name in self.models]
        gpu, dtype = get_gpu(self.gpu), cast(cost.CacheFormat, self.dtype)
        return [quantities(spec, gpu, self.tokens, self.batch, dtype, self.gpus, self.weights) for spec in specs]

    def _question(self) -> str:
        asked = f"{self.batch:,} x {self.tokens:,} tokens; cache {self.dtype}; weights {self.weights}"
        return f"{asked}; {self.gpus:,} x {get_gpu(self.gpu).title}"

    def _answer(self) -> Table:
        columns = ("weight_bytes", "bytes_per_sequence", "copies", "max_sequences", "max_tokens")
        rows = [
            [row["name"], way, *("-" if each is None or each[column] is None else each[column] for column in columns)]
            for row in self.quantities
            for way, each in row["on_each"].items()
        ]
        return table(["model", "on each GPU", *(column.replace("_", " ") for column in columns)], rows)

    def text(self) -> str:
        """The settings, and a table of the answers."""
        return f"{self._question()}\n{self._answer()!r}"

    def html(self) -> str:
        """The settings, and a table of the answers."""
        return f"<p>{self._question()}</p>\n{self._answer()._repr_html_()}"
