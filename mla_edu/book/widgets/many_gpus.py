"""One model on many GPUs: what each of them keeps, what it receives in a step, and how many tokens fit."""

from typing import cast

from mla_edu import cost
from mla_edu.book.widgets.kv_cache_explorer import cache_dtype, record
from mla_edu.book.widgets.parts import Name, Number, Widget, one_of, source
from mla_edu.config import MLAConfig
from mla_edu.hf import ModelSpec
from mla_edu.registry import GPUSpec, get_gpu, get_model, list_gpus, list_models
from mla_edu.words import size

WAYS = {"tensor": "heads", "data": "sequences", "context": "tokens"}  # what each layout deals out
DTYPES: dict[cost.CacheFormat, str] = {"bf16": "bf16", "fp8": "fp8, no scales", "fp8_mla": "fp8, 656-byte row"}
MOST_GPUS = 32


def shown_models() -> list[str]:
    """The models that can be counted in every layout: MLA of known widths, no index keys, published weights."""

    def is_known(spec: ModelSpec) -> bool:
        known = isinstance(spec.config, MLAConfig) and all(group.role == "kv" for group in spec.cache)
        return known and cost.weight_share(spec, cost.Parallelism(data=2)) is not None

    return [name for name in list_models() if is_known(get_model(name))]


def quantities(
    model: ModelSpec, gpu: GPUSpec, gpus: int, layout: str, tokens: int, batch: int, dtype: cost.CacheFormat
) -> dict[str, int | None]:
    """What the fullest GPU holds and receives; every value is None where a GPU would have no head.

    Returns:
        ``weight_bytes`` and ``cache_bytes``, of all sequences that it takes part in; ``copies``, GPUs that keep the
        same cache; ``state_bytes`` and ``attention_bytes``, received in a step; ``max_sequences`` of this length on all
        GPUs, and ``max_tokens`` in each sequence of the batch.
    """
    spread, own_dtype = cost.layouts(gpus)[layout], cache_dtype(model, dtype)
    try:
        room = cost.fit(model, gpu, tokens, spread, batch, own_dtype)
    except ValueError:
        names = ("weight_bytes", "cache_bytes", "copies", "state_bytes", "attention_bytes")
        return dict.fromkeys((*names, "max_sequences", "max_tokens"))
    assert room is not None, model.name
    received = cost.step_bytes(model, spread, batch)
    together = -(-batch // spread.data)
    return {
        "weight_bytes": room.weight_bytes,
        "cache_bytes": together * cost.sequence_share(model, tokens, spread, own_dtype).total,
        "copies": cost.cache_copies(model, spread),
        "state_bytes": received.states,
        "attention_bytes": received.attention,
        "max_sequences": room.max_sequences,
        "max_tokens": room.max_tokens,
    }


def _known_model(name: str) -> str:
    known, names = get_model(name).name, shown_models()
    if known not in names:
        raise ValueError(f"model is {name!r}; expected one of {', '.join(names)}")
    return known


class ManyGPUs(Widget):
    """What each of many GPUs keeps of a model and its caches, and what it receives in a decode step."""

    _esm = source("traffic.js", "many_gpus.js")
    _css = source("many_gpus.css")

    model = Name(_known_model)
    gpu = Name(lambda name: get_gpu(name).name)
    gpus = Number(1, MOST_GPUS)
    layout_name = one_of("layout_name", tuple(WAYS))
    tokens = Number(1, 2**20)
    batch = Number(1, 2**12)
    dtype = one_of("dtype", tuple(DTYPES))

    def __init__(
        self,
        model: str = "deepseek-v3",
        gpu: str = "h200",
        gpus: int = 8,
        layout: str = "tensor",
        tokens: int = 131_072,
        batch: int = 4,
        dtype: str = "bf16",
    ):
        """A view with these settings.

        Args:
            model: a name that ``shown_models`` has; its weights are counted as its makers publish them.
            gpu: a name of the registry.
            gpus: how many, 1 to 32.
            layout: what is dealt out: ``"tensor"`` heads, ``"data"`` sequences, ``"context"`` tokens.
            tokens: in each sequence, at most 1,048,576.
            batch: sequences at once, at most 4,096.
            dtype: of the cache: ``"bf16"``, ``"fp8"`` or ``"fp8_mla"``, FlashMLA's row.

        Raises:
            ValueError: an unknown name, or a number out of range.
        """
        data = {
            "models": [record(get_model(name)) for name in shown_models()],
            "gpus": [get_gpu(name).model_dump(include={"name", "title", "memory"}) for name in list_gpus()],
            "dtypes": list(DTYPES.items()),
        }
        settings = {"model": model, "gpu": gpu, "gpus": gpus, "layout_name": layout, "tokens": tokens, "batch": batch}
        super().__init__(data, **settings, dtype=dtype)

    @property
    def quantities(self) -> dict[str, int | None]:
        """``quantities`` of the present settings."""
        dtype = cast(cost.CacheFormat, self.dtype)
        spec, gpu = get_model(self.model), get_gpu(self.gpu)
        return quantities(spec, gpu, self.gpus, self.layout_name, self.tokens, self.batch, dtype)

    def text(self) -> str:
        """The settings, and what the fullest GPU holds and receives."""
        spec, found = get_model(self.model), self.quantities
        said = (
            f"{spec.title} on {self.gpus} × {get_gpu(self.gpu).title}, {WAYS[self.layout_name]} dealt out; "
            f"{self.batch:,} × {self.tokens:,} tokens, {self.dtype} cache"
        )
        weights, cache, states, attention = (
            found[name] for name in ("weight_bytes", "cache_bytes", "state_bytes", "attention_bytes")
        )
        if weights is None or cache is None or states is None or attention is None:
            return f"{said}\nmore GPUs than heads: {self.gpus} for {spec.num_attention_heads}"
        return (
            f"{said}\non each GPU: weights {size(weights)}, cache {size(cache)}, copies of it: {found['copies']}\n"
            f"received in a step: {size(states)} of hidden states, {size(attention)} for attention\n"
            f"fit beside the weights: {found['max_sequences']:,} such sequences; "
            f"or {found['max_tokens']:,} tokens in each of {self.batch:,}"
        )
