"""Tensor parallelism: the heads of attention and the widths of MLPs are dealt over the ranks.

Each rank computes with its own heads and its own part of an MLP, and all add up what comes out. Queries, keys and
values are split by heads; a latent has none, so that every rank computes and keeps all of it (Shoeybi et al. 2019,
arXiv:1909.08053, sec. 3).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.distributed.ranks import Ranks, check_ranks
from mla_edu.layers.gqa import GroupedQueryAttention
from mla_edu.layers.mla import AnyCache, Mode, MultiHeadLatentAttention
from mla_edu.layers.mlp import SwiGLU
from mla_edu.layers.moe import MixtureOfExperts
from mla_edu.validation import check_integer

Layer = MultiHeadLatentAttention | GroupedQueryAttention
MLP = SwiGLU | MixtureOfExperts
AnyConfig = TypeVar("AnyConfig", MLAConfig, GQAConfig)
Module = TypeVar("Module", bound=nn.Module)


def share_of(weight: Shaped[Tensor, "..."], rank: int, size: int, dim: int = 0) -> Shaped[Tensor, "..."]:
    """A rank's part of what lies along a dimension, with zeros behind it where other ranks have one more."""
    parts = weight.tensor_split(size, dim)
    own = parts[rank]
    shape = list(own.shape)
    shape[dim] = parts[0].shape[dim] - shape[dim]
    return torch.cat((own, own.new_zeros(shape)), dim)


def local_config(config: AnyConfig, ranks: Ranks) -> AnyConfig:
    """A layer with this rank's heads: as many on each rank, some being padding where they do not divide.

    Raises:
        ValueError: there are more ranks than heads, or key/value heads of a ``GQAConfig`` neither divide by the ranks
            nor divide them.
    """
    size = check_integer("ranks", ranks.size, highest=config.num_attention_heads)
    if isinstance(config, MLAConfig):
        return config.model_copy(update={"num_attention_heads": -(-config.num_attention_heads // size)})
    kv_heads = config.num_key_value_heads
    if kv_heads % size and size % kv_heads:
        raise ValueError(f"num_key_value_heads is {kv_heads}; expected a multiple or a divisor of the {size} ranks")
    own_kv, sharing = max(kv_heads // size, 1), max(size // kv_heads, 1)
    if sharing > config.group_size:
        raise ValueError(f"ranks is {size}; expected at most the {config.num_attention_heads} query heads")
    own = own_kv * -(-config.group_size // sharing)
    return config.model_copy(update={"num_attention_heads": own, "num_key_value_heads": own_kv})


def local_layer(layer: Layer, ranks: Ranks) -> Layer:
    """The layer that computes with this rank's heads; what all ranks return adds up to what ``layer`` returns.

    Heads that are padding have weights of zero: what they attend to, W_O takes nothing of it.

    Raises:
        ValueError: as ``local_config``.
    """
    if isinstance(layer, MultiHeadLatentAttention):
        return _filled(
            MultiHeadLatentAttention(local_config(layer.config, ranks), dtype=_dtype(layer), device="meta"),
            {name: _mla_share(name, weight, layer.config, ranks) for name, weight in layer.state_dict().items()},
        )
    return _filled(
        GroupedQueryAttention(local_config(layer.config, ranks), dtype=_dtype(layer), device="meta"),
        {name: _gqa_share(name, weight, layer.config, ranks) for name, weight in layer.state_dict().items()},
    )


def _mla_share(name: str, weight: Tensor, config: MLAConfig, ranks: Ranks) -> Tensor:
    heads = config.num_attention_heads
    if name in ("q_proj.weight", "q_b_proj.weight", "kv_b_proj.weight"):
        return share_of(weight.unflatten(0, (heads, -1)), ranks.rank, ranks.size).flatten(0, 1)
    return _output_share(name, weight, heads, ranks)


def _gqa_share(name: str, weight: Tensor, config: GQAConfig, ranks: Ranks) -> Tensor:
    kv_heads, size = config.num_key_value_heads, ranks.size
    sharing = max(size // kv_heads, 1)  # ranks that hold the same key/value head, and share out its query heads
    whole, within = (ranks.rank // sharing, size // sharing), (ranks.rank % sharing, sharing)
    if name.startswith(("k_proj", "v_proj")):
        return share_of(weight.unflatten(0, (kv_heads, -1)), *whole).flatten(0, 1)
    if name.startswith("q_proj"):
        groups = share_of(weight.unflatten(0, (kv_heads, config.group_size, -1)), *whole)
        return share_of(groups, *within, dim=1).flatten(0, 2)
    if name == "o_proj.weight":
        groups = share_of(weight.unflatten(1, (kv_heads, config.group_size, -1)), *whole, dim=1)
        return share_of(groups, *within, dim=2).flatten(1, 3)
    return _output_share(name, weight, config.num_attention_heads, ranks)


def _output_share(name: str, weight: Tensor, heads: int, ranks: Ranks) -> Tensor:
    if name == "o_proj.weight":
        return share_of(weight.unflatten(1, (heads, -1)), ranks.rank, ranks.size, dim=1).flatten(1, 2)
    if name == "o_proj.bias" and ranks.rank:  # added once
        return torch.zeros_like(weight)
    return weight


def local_mlp(mlp: MLP, ranks: Ranks) -> MLP:
    """The MLP that computes with this rank's part of the width inside, of each expert where there are experts.

    Raises:
        TypeError: ``mlp`` is neither a ``SwiGLU`` nor a ``MixtureOfExperts``.
    """
    if isinstance(mlp, SwiGLU):
        hidden, inner = mlp.down_proj.weight.shape
        local = SwiGLU(hidden, -(-inner // ranks.size), dtype=_dtype(mlp), device="meta")
        return _filled(local, _swiglu_shares(mlp, ranks))
    if not isinstance(mlp, MixtureOfExperts):
        raise TypeError(f"mlp is a {type(mlp).__name__}; expected a SwiGLU or a MixtureOfExperts")
    inner = -(-mlp.config.moe_intermediate_size // ranks.size)
    config = mlp.config.model_copy(update={"moe_intermediate_size": inner, "n_shared_experts": 0})
    weights = {name: weight for name, weight in mlp.state_dict().items() if name.startswith("gate.")}
    halves = mlp.experts.gate_up_proj.chunk(2, dim=1)
    weights["experts.gate_up_proj"] = torch.cat([share_of(each, ranks.rank, ranks.size, dim=1) for each in halves], 1)
    weights["experts.down_proj"] = share_of(mlp.experts.down_proj, ranks.rank, ranks.size, dim=2)
    experts = _filled(MixtureOfExperts(config, dtype=_dtype(mlp), device=mlp.experts.down_proj.device), weights)
    if mlp.shared_experts is not None:
        shared = local_mlp(mlp.shared_experts, ranks)
        assert isinstance(shared, SwiGLU)
        experts.shared_experts = shared
    return experts


def _swiglu_shares(mlp: SwiGLU, ranks: Ranks) -> dict[str, Tensor]:
    dims = {"gate_proj.weight": 0, "up_proj.weight": 0, "down_proj.weight": 1}
    return {name: share_of(weight, ranks.rank, ranks.size, dims[name]) for name, weight in mlp.state_dict().items()}


def _filled(module: Module, weights: Mapping[str, Tensor]) -> Module:
    module.load_state_dict({name: weight.contiguous() for name, weight in weights.items()}, assign=True)
    return module.requires_grad_(False)


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def check_same_layer(layer: nn.Module, ranks: Ranks) -> None:
    """Raise ``ValueError`` unless the layers of all ranks have one configuration and dtype.

    ``TypeError`` is for what is no layer, or no ``Ranks``. Weights are not compared.
    """
    if not isinstance(layer, MultiHeadLatentAttention | GroupedQueryAttention):
        expected = "a MultiHeadLatentAttention or a GroupedQueryAttention"
        raise TypeError(f"layer is a {type(layer).__name__}; expected {expected}")
    check_ranks(ranks)
    ranks.check_same(layer=type(layer).__name__, dtype=_dtype(layer), **layer.config.model_dump())


class TensorParallelAttention(nn.Module):
    """An attention layer whose heads are dealt over the ranks; what they make is added up behind W_O.

    Every rank keeps the latents of all tokens, or the keys and values of its own heads: make the cache for
    ``layer.config``. Each rank is given the same hidden states and returns the same bits.

    Args:
        layer: whole, the same on all ranks; a ``MultiHeadLatentAttention`` or a ``GroupedQueryAttention``.
        ranks: among which its heads are dealt.

    Attributes:
        local: the layer of this rank's heads.
        config: of ``local``.

    Raises:
        TypeError: ``layer`` is none of the two, or ``ranks`` not a ``Ranks``.
        ValueError: there are more ranks than heads, or the ranks have layers of different configurations.
    """

    def __init__(self, layer: Layer, ranks: Ranks):
        super().__init__()
        check_same_layer(layer, ranks)
        self.ranks, self.local = ranks, local_layer(layer, ranks)
        self.config = self.local.config

    def forward(
        self, hidden_states: Float[Tensor, "batch seq hidden"], cache: AnyCache | None = None, mode: Mode = "auto"
    ) -> Float[Tensor, "batch seq hidden"]:
        """As the whole layer: the arguments and errors are its own.

        Raises:
            ValueError: ``mode`` is given for a ``GroupedQueryAttention`` too.
            RankLost: a rank has ended, or did not come in time.
        """
        if isinstance(self.local, MultiHeadLatentAttention):
            out = self.local(hidden_states, cache, mode)
        elif mode != "auto":
            raise ValueError(f"mode is {mode!r}; expected 'auto' for a GroupedQueryAttention")
        else:
            out = self.local(hidden_states, cache)  # type: ignore[arg-type]
        return self.ranks.all_reduce(out, "attention")

    if TYPE_CHECKING:  # torch types a call of any module as one of any arguments

        def __call__(self, hidden_states: Tensor, cache: AnyCache | None = None, mode: Mode = "auto") -> Tensor:
            """As ``forward``."""


class TensorParallelMLP(nn.Module):
    """An MLP, or experts, whose inner widths are dealt over the ranks; what they make is added up.

    Args:
        mlp: whole, the same on all ranks.
        ranks: among which it is dealt.

    Raises:
        TypeError: ``mlp`` is neither a ``SwiGLU`` nor a ``MixtureOfExperts``, or ``ranks`` not a ``Ranks``.
    """

    def __init__(self, mlp: MLP, ranks: Ranks):
        super().__init__()
        check_ranks(ranks)
        self.ranks, self.local = ranks, local_mlp(mlp, ranks)

    def forward(self, x: Float[Tensor, "... hidden"]) -> Float[Tensor, "... hidden"]:
        """As the whole one, on the same tokens on every rank."""
        return self.ranks.all_reduce(self.local(x), "mlp")
