"""Layouts: how a model and its cache are spread over GPUs, and what each GPU then holds.

"On a GPU" means the fullest one of the layout. What several GPUs must hold is counted on each: a latent, which no head
divides, lies on every GPU of a tensor-parallel group.
"""

from dataclasses import dataclass

from mla_edu.config import GQAConfig
from mla_edu.cost.compute import attention_parameters, num_attention_parameters
from mla_edu.cost.formats import CacheFormat, bytes_of_weights, weight_format
from mla_edu.cost.memory import entry_bytes, find_model
from mla_edu.hf import CacheGroup, ModelSpec, WeightFormat, Weights
from mla_edu.validation import check_integer

STATE_BYTES = 4  # of a number of a recurrent state: fp32


@dataclass(frozen=True)
class Parallelism:
    """How many GPUs share what. Of one pipeline stage: tensor * data * context GPUs.

    Each of ``data`` groups answers its own sequences and has all heads. In a group, the weights of the heads are shared
    out over tensor * context GPUs; the cache's key/value heads over ``tensor`` of them, its tokens over ``context`` of
    them, token by token in turn. So vLLM's ``--tensor-parallel-size 8 --decode-context-parallel-size 2`` is tensor 4,
    context 2 here.

    Args:
        tensor: GPUs among which the cache's heads are dealt; each holds the whole of what all heads share.
        data: groups, each with its own sequences and its own copy of the attention's weights (data-parallel attention).
        context: GPUs among which the tokens of each sequence are dealt.
        pipeline: stages, each with its own layers.
        experts: GPUs of a stage that share one copy of everything but attention: experts, MLPs, embeddings; None: all.

    Raises:
        ValueError: a number is not positive, or ``experts`` does not divide a stage's GPUs.
    """

    tensor: int = 1
    data: int = 1
    context: int = 1
    pipeline: int = 1
    experts: int | None = None

    def __post_init__(self) -> None:
        for name in ("tensor", "data", "context", "pipeline"):
            check_integer(name, getattr(self, name))
        if self.experts is not None:
            check_integer("experts", self.experts)
            if self.stage % self.experts:
                raise ValueError(f"experts is {self.experts}; expected a divisor of a stage's GPUs, {self.stage}")

    @property
    def group(self) -> int:
        """GPUs of a stage that work on the same sequences, and share out the weights of the heads."""
        return self.tensor * self.context

    @property
    def stage(self) -> int:
        """GPUs of one pipeline stage."""
        return self.group * self.data

    @property
    def num_gpus(self) -> int:
        """All GPUs."""
        return self.stage * self.pipeline

    def __str__(self) -> str:
        sizes = {"tp": self.tensor, "dp": self.data, "cp": self.context, "pp": self.pipeline}
        named = [f"{name} {size}" for name, size in sizes.items() if size > 1]
        return " ".join([*named, *([f"ep {self.experts}"] if self.experts else [])]) or "one GPU"


def layouts(num_gpus: int) -> dict[str, Parallelism]:
    """The three plain ways to use so many GPUs: "tensor", "data" (data-parallel attention) and "context".

    Raises:
        ValueError: ``num_gpus`` is not positive.
    """
    check_integer("num_gpus", num_gpus)
    return {name: Parallelism(**{name: num_gpus}) for name in ("tensor", "data", "context")}


def layout_of(
    num_gpus: int, tensor: int = 1, data: int = 1, context: int = 1, pipeline: int = 1, experts: int | None = None
) -> Parallelism:
    """A layout of ``num_gpus`` GPUs.

    Raises:
        ValueError: its sizes do not multiply to ``num_gpus``, or one is out of range.
    """
    check_integer("num_gpus", num_gpus)
    layout = Parallelism(tensor, data, context, pipeline, experts)
    if layout.num_gpus != num_gpus:
        sizes = f"{tensor} x {data} x {context} x {pipeline}"
        raise ValueError(f"tensor x data x context x pipeline is {sizes}; expected a product of {num_gpus} GPUs")
    return layout


def check_layout(model: str | ModelSpec, layout: Parallelism) -> None:
    """Refuse a layout in which a GPU would have no head, or a stage no layer.

    A number of heads that does not divide evenly is allowed: the heads are padded, and the fullest GPU is counted.

    Raises:
        TypeError: ``model`` is neither a name nor a ``ModelSpec``, or ``layout`` no ``Parallelism``.
        ValueError: unknown model, or more GPUs than heads, or more stages than layers.
    """
    spec = find_model(model)
    _check_parallelism(layout)
    heads = spec.num_attention_heads
    if heads is not None and layout.group > heads:
        raise ValueError(
            f"tensor x context is {layout.group} for {spec.name}; expected at most its {heads} query heads, "
            "since a GPU without a head would only pad"
        )
    if layout.pipeline > spec.num_layers:
        raise ValueError(f"pipeline is {layout.pipeline}; expected at most the {spec.num_layers} layers of {spec.name}")


def padded_heads(model: str | ModelSpec, layout: Parallelism) -> int:
    """Query heads that only fill up: the GPUs of a group have as many each, and their number need not divide the heads.

    0 where the heads are not known.

    Raises:
        TypeError: ``model`` is neither a name nor a ``ModelSpec``, or ``layout`` no ``Parallelism``.
        ValueError: unknown model.
    """
    heads = find_model(model).num_attention_heads
    _check_parallelism(layout)
    return 0 if heads is None else -heads % layout.group


def _check_parallelism(layout: object) -> None:
    if not isinstance(layout, Parallelism):
        raise TypeError(f"layout is a {type(layout).__name__}; expected a Parallelism")


def _share(whole: int, among: int) -> int:
    """The largest of the parts when ``whole`` things are dealt out."""
    return -(-whole // among)


@dataclass(frozen=True)
class SequenceShare:
    """Bytes of one sequence on a GPU that holds a part of it."""

    kv: int  # keys and values, or latents
    index: int  # keys of a sparse-attention indexer
    state: int | None  # recurrent states and unfinished blocks, in fp32; None where their size is not known

    @property
    def total(self) -> int:
        """All, as far as it is known."""
        return self.kv + self.index + (self.state or 0)


def sequence_share(
    model: str | ModelSpec, num_tokens: int, layout: Parallelism, dtype: CacheFormat = "bf16"
) -> SequenceShare:
    """What one sequence of ``num_tokens`` tokens takes on a GPU of the group that answers it.

    Raises:
        TypeError: ``model`` is neither a name nor a ``ModelSpec``, or ``layout`` no ``Parallelism``.
        ValueError: unknown model or dtype, a number out of range, or a layout that the model does not allow.
    """
    spec = find_model(model)
    check_integer("num_tokens", num_tokens, lowest=0)
    check_layout(spec, layout)

    def held(group: CacheGroup) -> int:
        entries = _share(group.num_entries(num_tokens), layout.context)
        # Whole heads, so that some lie on several GPUs where there are fewer than GPUs.
        size = entry_bytes(spec, group, dtype) * _share(group.heads, layout.tensor) // group.heads
        return _share(group.layers, layout.pipeline) * entries * size

    def total(role: str) -> int:
        return sum(held(group) for group in spec.cache if group.role == role)

    return SequenceShare(total("kv"), total("index"), _state_share(spec, layout))


def _state_share(spec: ModelSpec, layout: Parallelism) -> int | None:
    """States are shared out by heads over the whole group, since tokens cannot divide them."""
    if spec.state_elements is None:
        return None
    divided = spec.state_elements - spec.shared_state_elements
    divided = _share(divided * _share(spec.state_heads, layout.group), spec.state_heads)
    return STATE_BYTES * _share(divided + spec.shared_state_elements, layout.pipeline)


def cache_copies(model: str | ModelSpec, layout: Parallelism) -> int:
    """How many GPUs of a group hold the same keys and values, or the same latent, at most.

    Raises:
        TypeError: ``model`` is neither a name nor a ``ModelSpec``, or ``layout`` no ``Parallelism``.
        ValueError: unknown model, or a layout that it does not allow.
    """
    spec = find_model(model)
    check_layout(spec, layout)
    return max(_share(layout.tensor, group.heads) for group in spec.cache)


def weight_bytes(model: str | ModelSpec, dtype: WeightFormat | None = None) -> int | None:
    """Bytes of one copy of all weights.

    Args:
        model: a name of the registry, or a ``ModelSpec``.
        dtype: their format; None: that in which the model's makers publish it, as the registry has it.

    Returns:
        None where the number of parameters, or the format that was to be looked up, is not known.

    Raises:
        TypeError: ``model`` is neither a name nor a ``ModelSpec``.
        ValueError: unknown model or dtype.
    """
    spec = find_model(model)
    formats = weight_formats(spec, dtype)
    if spec.num_parameters is None or formats is None:
        return None
    attention = _attention_parameters(spec)
    if attention is None:
        same = formats.attention == formats.others
        return bytes_of_weights(spec.num_parameters, formats.others) if same else None
    others = max(spec.num_parameters - attention, 0)  # a rounded number of parameters may be too small
    return bytes_of_weights(attention, formats.attention) + bytes_of_weights(others, formats.others)


def weight_formats(model: str | ModelSpec, dtype: WeightFormat | None = None) -> Weights | None:
    """The formats of a model's weights: ``dtype`` of all, or those of its makers; None where these are not known.

    Raises:
        TypeError: ``model`` is neither a name nor a ``ModelSpec``; looked at where ``dtype`` is None.
        ValueError: unknown model or dtype.
    """
    if dtype is None:
        return find_model(model).weights
    name = weight_format(dtype)
    return Weights(attention=name, others=name, source="as asked")


def _attention_parameters(spec: ModelSpec) -> int | None:
    """Of all layers; None where they are not all alike, or not of a kind that is described."""
    layers = sum(group.layers for group in spec.cache if group.role == "kv")
    alike = spec.config is not None and all(
        group.elements == spec.config.elements_per_token for group in spec.cache if group.role == "kv"
    )
    if spec.config is None or not alike or layers != spec.num_layers:
        return None
    return layers * num_attention_parameters(spec.config)


def weight_share(model: str | ModelSpec, layout: Parallelism, dtype: WeightFormat | None = None) -> int | None:
    """Bytes of weights on a GPU.

    The attention's weights are shared out by heads over a group, with copies of key/value heads and of what all heads
    need; everything else over ``layout.experts`` GPUs. Where a model's attention is not known in full, all of it
    is counted as if it could be dealt evenly.

    Returns:
        None where ``weight_bytes`` is not known, or with ``data`` above 1 the attention's part of it.

    Raises:
        TypeError: ``model`` is neither a name nor a ``ModelSpec``, or ``layout`` no ``Parallelism``.
        ValueError: unknown model or dtype, or a layout that the model does not allow.
    """
    spec, formats = find_model(model), weight_formats(model, dtype)
    check_layout(spec, layout)
    parameters, attention, config = spec.num_parameters, _attention_parameters(spec), spec.config
    if weight_bytes(spec, dtype) is None or parameters is None or formats is None:
        return None
    among = (layout.experts or layout.stage) * layout.pipeline
    if attention is None or config is None:
        return bytes_of_weights(_share(parameters, among), formats.others) if layout.data == 1 else None
    per_head, per_kv_head, common = attention_parameters(config)
    kv_heads = config.num_key_value_heads if isinstance(config, GQAConfig) else 0
    heads = _share(config.num_attention_heads, layout.group)
    layer = heads * per_head + _share(kv_heads, layout.tensor) * per_kv_head + common
    held = bytes_of_weights(_share(spec.num_layers, layout.pipeline) * layer, formats.attention)
    return held + bytes_of_weights(_share(max(parameters - attention, 0), among), formats.others)
