"""Models whose layers are dealt over the ranks."""

import copy
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from mla_edu.distributed.context import ContextParallelAttention
from mla_edu.distributed.heads import TensorParallelAttention, TensorParallelMLP, local_config
from mla_edu.distributed.ranks import Ranks, check_ranks
from mla_edu.distributed.requests import DataParallelMLP, Meeting, check_meeting
from mla_edu.models.decoder import Decoder, DecoderLayer

Module = TypeVar("Module", bound=nn.Module)


def tensor_parallel(model: Decoder, ranks: Ranks) -> Decoder:
    """A model with the heads and the inner widths of this rank; the rest is the given model's own.

    Raises:
        TypeError: ``model`` is not a ``Decoder``, ``ranks`` not a ``Ranks``, or a layer neither attention nor an MLP.
        ValueError: more ranks than heads, or different configurations on different ranks.
    """

    def deal(layer: DecoderLayer) -> DecoderLayer:
        attention = TensorParallelAttention(getattr(layer, layer.mixer_name), ranks)
        return _with(layer, **{layer.mixer_name: attention, "mlp": TensorParallelMLP(layer.mlp, ranks)})

    return _with_layers(model, ranks, deal)


def context_parallel(model: Decoder, ranks: Ranks, *, before_absorption: bool = False) -> Decoder:
    """The same for caches whose tokens are dealt over the ranks: ``ContextParallelAttention`` in every layer.

    Raises:
        TypeError: ``model`` is not a ``Decoder``, ``ranks`` not a ``Ranks``, a layer not MLA, or ``before_absorption``
            neither True nor False.
        ValueError: more ranks than heads, or different configurations on different ranks.
    """

    def deal(layer: DecoderLayer) -> DecoderLayer:
        mixer = getattr(layer, layer.mixer_name)
        attention = ContextParallelAttention(mixer, ranks, before_absorption=before_absorption)
        return _with(layer, **{layer.mixer_name: attention, "mlp": TensorParallelMLP(layer.mlp, ranks)})

    return _with_layers(model, ranks, deal)


def data_parallel(model: Decoder, meeting: Meeting) -> Decoder:
    """A model with all heads whose MLPs are dealt over ranks that have other tokens each.

    Raises:
        TypeError: ``model`` is not a ``Decoder``, or ``meeting`` not a ``Meeting``.
        ValueError: different configurations on different ranks.
    """
    check_meeting(meeting)
    _check(model, meeting.ranks)
    layers = [_with(layer, mlp=DataParallelMLP(layer.mlp, meeting)) for layer in layers_of(model)]
    return _with(model, layers=nn.ModuleList(layers))


def _with_layers(model: Decoder, ranks: Ranks, deal: Callable[[DecoderLayer], DecoderLayer]) -> Decoder:
    _check(model, ranks)
    mtp = model.mtp
    twin = _with(
        model,
        layers=nn.ModuleList([deal(layer) for layer in layers_of(model)]),
        mtp=None if mtp is None else _with(mtp, layer=deal(mtp.layer)),  # type: ignore[arg-type]
    )
    config = model.config
    update = {
        "mla": config.mla and local_config(config.mla, ranks),
        "gqa": config.gqa and local_config(config.gqa, ranks),
    }
    twin.config = config.model_copy(update=update)
    return twin


def _check(model: object, ranks: Ranks) -> None:
    if not isinstance(model, Decoder):
        raise TypeError(f"model is a {type(model).__name__}; expected a Decoder")
    check_ranks(ranks)
    ranks.check_same(dtype=model.embed_tokens.weight.dtype, **model.config.model_dump())


def layers_of(model: Decoder) -> list[DecoderLayer]:
    """The layers of a model, from the first."""
    return list(model.layers)  # type: ignore[arg-type]


def _with(module: Module, **parts: nn.Module | None) -> Module:
    """A twin that shares everything but some of its parts."""
    twin = copy.copy(module)
    twin._modules = module._modules | parts
    return twin
