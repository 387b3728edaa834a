"""Room: what of a cache fits beside a model's weights, on which GPUs."""

from bisect import bisect_right
from dataclasses import dataclass

from mla_edu.cost.formats import CacheFormat
from mla_edu.cost.memory import find_model
from mla_edu.cost.parallel import Parallelism, sequence_share, weight_bytes, weight_share
from mla_edu.hf import ModelSpec, WeightFormat
from mla_edu.registry import GPUSpec, get_gpu
from mla_edu.validation import check_integer

MOST_TOKENS = 2**40


@dataclass(frozen=True)
class Fit:
    """What fits beside a model's weights in a layout. Activations and buffers would take a share of the room."""

    weight_bytes: int  # on the fullest GPU
    free_bytes: int  # beside them on that GPU; below 0 where they do not fit
    max_sequences: int | None  # of the given length, on all GPUs; None: no limit, since it holds nothing
    max_tokens: int | None  # in each sequence of the given batch; None: no limit, since the cache stops growing


def _find_gpu(gpu: str | GPUSpec) -> GPUSpec:
    if not isinstance(gpu, str | GPUSpec):
        raise TypeError(f"gpu is a {type(gpu).__name__}; expected a name of the registry or a GPUSpec")
    return get_gpu(gpu) if isinstance(gpu, str) else gpu


def fit(
    model: str | ModelSpec,
    gpu: str | GPUSpec,
    num_tokens: int,
    layout: Parallelism,
    batch_size: int = 1,
    dtype: CacheFormat = "bf16",
    weights_dtype: WeightFormat | None = None,
) -> Fit | None:
    """How much cache fits beside the weights, GPU by GPU: the memory of several is no pool.

    Args:
        model: a name of the registry, or a ``ModelSpec``.
        gpu: what each of the layout's GPUs is: a name of the registry, or a ``GPUSpec``.
        num_tokens: in each sequence, for ``max_sequences``.
        layout: how the model is spread.
        batch_size: sequences at once, for ``max_tokens``.
        dtype: of the cache.
        weights_dtype: of the weights; None: as the model's makers publish them.

    Returns:
        None where the weights' bytes on a GPU are not known.

    Raises:
        TypeError: ``model``, ``gpu`` or ``layout`` is of another kind.
        ValueError: unknown model, GPU or dtype, a number out of range, or a layout that the model does not allow.
    """
    spec, card = find_model(model), _find_gpu(gpu)
    check_integer("batch_size", batch_size)
    per_sequence = sequence_share(spec, num_tokens, layout, dtype).total
    weights = weight_share(spec, layout, weights_dtype)
    if weights is None:
        return None
    free = card.memory - weights
    together = -(-batch_size // layout.data)  # sequences of the batch on one GPU

    def taken(tokens: int) -> int:
        return together * sequence_share(spec, tokens, layout, dtype).total

    most = bisect_right(range(MOST_TOKENS), free, key=taken) - 1
    return Fit(
        weight_bytes=weights,
        free_bytes=free,
        max_sequences=layout.data * max(free // per_sequence, 0) if per_sequence else None,
        max_tokens=None if most == MOST_TOKENS - 1 else max(most, 0),
    )


def fewest_gpus(model: str | ModelSpec, gpu: str | GPUSpec, weights_dtype: WeightFormat | None = None) -> int | None:
    """The fewest of 1, 2, 4, 8, ... GPUs whose memory together holds one copy of the weights.

    Returns:
        None where ``weight_bytes`` is not known.

    Raises:
        TypeError: ``model`` or ``gpu`` is of another kind.
        ValueError: unknown model, GPU or dtype.
    """
    card, weights = _find_gpu(gpu), weight_bytes(model, weights_dtype)
    if weights is None:
        return None
    return int(2 ** (-(-weights // card.memory) - 1).bit_length())
