"""Mixture of experts in the manner of DeepSeek: routed experts, of which each token takes a few, and shared ones."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from mla_edu.cache.layer import check_config
from mla_edu.config import MoEConfig
from mla_edu.layers.inputs import check_weights
from mla_edu.layers.mlp import SwiGLU

FEW = 256  # tokens: up to here reading all experts takes a GPU at least about as long as multiplying by them


class Routing(NamedTuple):
    """Which experts each token takes, and with which weights."""

    experts: Int[Tensor, "tokens chosen"]
    weights: Float[Tensor, "tokens chosen"]
    scores: Float[Tensor, "tokens experts"]  # of all experts, without the bias


def route(
    logits: Float[Tensor, "tokens experts"], config: MoEConfig, bias: Float[Tensor, " experts"] | None = None
) -> Routing:
    """Choose experts by their scores, and weigh them.

    ``scoring_func = "softmax"`` is DeepSeek-V2's: the best groups are those with the best expert. ``"sigmoid"`` is
    V3's, and that of Kimi-K2 and GLM-4.7-Flash: the bias takes part in the choice, not in the weights, and a group
    counts by its best two experts.

    Args:
        logits: of the router, at least float32.
        config: how many are chosen, from how many groups, and how they are weighed.
        bias: added to the scores for the choice alone (V3's ``e_score_correction_bias``).

    Sources: DeepSeek-V2 paper, eq. 20 to 22 and sec. 2.2.2; DeepSeek-V3 paper, eq. 12 to 16.
    """
    scores = logits.softmax(dim=-1) if config.scoring_func == "softmax" else logits.sigmoid()
    choice = scores if bias is None else scores + bias
    if config.n_group > 1:
        grouped = choice.unflatten(-1, (config.n_group, -1))
        best = 1 if config.scoring_func == "softmax" else 2
        kept = grouped.topk(best).values.sum(-1).topk(config.topk_group).indices
        closed = torch.ones(grouped.shape[:-1], dtype=torch.bool, device=logits.device).scatter(-1, kept, False)
        choice = grouped.masked_fill(closed[..., None], float("-inf")).flatten(-2)
    experts = choice.topk(config.num_experts_per_tok).indices
    weights = scores.gather(-1, experts)
    if config.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(experts, weights * config.routed_scaling_factor, scores)


def expert_load(routing: Routing) -> Int[Tensor, " experts"]:
    """How many tokens each expert has got."""
    return torch.bincount(routing.experts.flatten(), minlength=routing.scores.shape[-1])


def sequence_balance_loss(routing: Routing, batch_size: int) -> Float[Tensor, ""]:
    """How unevenly the experts are used within a sequence: 1 if evenly, more otherwise; the mean over the batch.

    Args:
        routing: of ``batch_size`` sequences of equal length, one after the other.
        batch_size: sequences.

    Source: DeepSeek-V3 paper, eq. 17 to 20, without its factor alpha; with softmax scores DeepSeek-V2 paper, eq. 23
    to 25.
    """
    num_experts, chosen = routing.scores.shape[-1], routing.experts.shape[-1]
    taken = torch.zeros_like(routing.scores).scatter(-1, routing.experts, 1.0).unflatten(0, (batch_size, -1))
    frequency = taken.mean(dim=1) * (num_experts / chosen)
    share = (routing.scores / routing.scores.sum(-1, keepdim=True)).unflatten(0, (batch_size, -1)).mean(dim=1)
    loss: Tensor = (frequency * share).sum(-1).mean()
    return loss


class Router(nn.Module):
    """Logits of the experts, at least in float32, and the bias that V3 balances them with."""

    e_score_correction_bias: Tensor | None

    def __init__(
        self, config: MoEConfig, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ):
        super().__init__()
        self.config = config
        shape = (config.n_routed_experts, config.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
        nn.init.normal_(self.weight, std=config.hidden_size**-0.5)
        biased = config.scoring_func == "sigmoid"
        bias = torch.zeros(config.n_routed_experts, dtype=torch.float32, device=device) if biased else None
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x: Float[Tensor, "tokens hidden"]) -> Routing:
        """The experts of each token."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        bias = self.e_score_correction_bias
        with torch.autocast(x.device.type, enabled=False):  # which would take the product in 16 bits all the same
            logits = linear(x.to(dtype), self.weight.to(dtype))
        return route(logits, self.config, None if bias is None else bias.to(dtype))

    @torch.no_grad()
    def balance(self, load: Int[Tensor, " experts"], rate: float) -> None:
        """Move the bias by ``rate`` towards experts that got less than the mean (DeepSeek-V3 paper, sec. 2.1.2).

        Raises:
            ValueError: the router has no bias: its scores are a softmax.
        """
        if self.e_score_correction_bias is None:
            raise ValueError("scoring_func is 'softmax'; expected 'sigmoid', whose scores have a bias")
        load = load.to(self.e_score_correction_bias.dtype)
        self.e_score_correction_bias += rate * torch.sign(load.mean() - load)


class Experts(nn.Module):
    """SwiGLU experts in two stacked tensors; ``gate_up_proj`` holds the gate's rows first."""

    def __init__(
        self, config: MoEConfig, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ):
        super().__init__()
        experts, hidden, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden, dtype=dtype, device=device))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner, dtype=dtype, device=device))
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)

    def forward(self, x: Float[Tensor, "tokens hidden"], routing: Routing) -> Float[Tensor, "tokens hidden"]:
        """The weighted sum of what each token's experts make of it.

        Where the GPU has a product of groups, and for few tokens on any GPU, nothing is read back, so that a CUDA graph
        can hold it.
        """
        made = None
        if self._has_grouped_product(x):
            made = self.grouped(x, routing)
        elif x.device.type != "cpu" and len(x) <= FEW:
            made = self.gathered(x, routing) if self.gathering_is_less(routing) else self.all_at_once(x, routing)
        if made is not None:
            return (made * routing.weights[..., None].to(x.dtype)).sum(dim=1)
        chosen = routing.experts.shape[-1]
        order = routing.experts.flatten().argsort()
        tokens = order // chosen
        weights = routing.weights.flatten()[order, None].to(x.dtype)
        pieces = x[tokens].split(expert_load(routing).tolist())
        results = []
        for expert, piece in enumerate(pieces):
            if len(piece):
                gate, up = linear(piece, self.gate_up_proj[expert]).chunk(2, dim=-1)
                results.append(linear(silu(gate) * up, self.down_proj[expert]))
        return (
            torch.zeros_like(x).index_add(0, tokens, torch.cat(results) * weights) if results else torch.zeros_like(x)
        )

    def _has_grouped_product(self, x: Float[Tensor, "tokens hidden"]) -> bool:
        """Whether torch multiplies groups in one kernel: on Hopper, numbers of 16 bits in rows of 16 bytes.

        Elsewhere its ``grouped_mm`` reads the sizes of the groups back, and loops.
        """
        weight = self.down_proj
        if not (len(x) and x.is_cuda and x.dtype == weight.dtype == torch.bfloat16):
            return False
        aligned = weight.shape[1] % 8 == weight.shape[2] % 8 == 0
        hopper: bool = torch.cuda.get_device_capability(x.device)[0] == 9
        return aligned and hopper and hasattr(torch.nn.functional, "grouped_mm")  # since torch 2.10

    def grouped(self, x: Float[Tensor, "tokens hidden"], routing: Routing) -> Float[Tensor, "tokens chosen hidden"]:
        """What each token's experts make of it: the rows of an expert side by side, its weights read once."""
        experts, order = routing.experts.flatten().sort()
        numbers = torch.arange(len(self.gate_up_proj), device=x.device)
        ends = torch.searchsorted(experts, numbers, right=True, out_int32=True)
        rows = x[order // routing.experts.shape[-1]]
        gate, up = torch.nn.functional.grouped_mm(rows, self.gate_up_proj.mT, offs=ends).chunk(2, dim=-1)
        results = torch.nn.functional.grouped_mm(silu(gate) * up, self.down_proj.mT, offs=ends)
        return torch.empty_like(results).index_copy(0, order, results).view(*routing.experts.shape, -1)

    def gathering_is_less(self, routing: Routing) -> bool:
        """Whether ``gathered`` moves fewer bytes than ``all_at_once``: each chosen expert thrice, or each of all once.

        A chosen expert's weights are read, written to where the product wants them, and read again there.
        """
        return 3 * routing.experts.numel() < len(self.gate_up_proj)

    def gathered(self, x: Float[Tensor, "tokens hidden"], routing: Routing) -> Float[Tensor, "tokens chosen hidden"]:
        """What each token's experts make of it, through copies of their weights, one for each time one is chosen."""
        experts = routing.experts.flatten()
        each = x.repeat_interleave(routing.experts.shape[-1], dim=0)[..., None]
        gate, up = torch.bmm(self.gate_up_proj[experts], each).chunk(2, dim=1)
        results = torch.bmm(self.down_proj[experts], silu(gate) * up)
        return results.view(*routing.experts.shape, x.shape[-1])

    def all_at_once(self, x: Float[Tensor, "tokens hidden"], routing: Routing) -> Float[Tensor, "tokens chosen hidden"]:
        """The same, picked from what all experts make of all tokens."""
        each = x.expand(len(self.gate_up_proj), -1, -1)
        gate, up = torch.bmm(each, self.gate_up_proj.mT).chunk(2, dim=-1)
        results = torch.bmm(silu(gate) * up, self.down_proj.mT)
        tokens = torch.arange(len(x), device=x.device)[:, None]
        return results[routing.experts, tokens]


class MixtureOfExperts(nn.Module):
    """Routed and shared experts, side by side; the modules bear the names that transformers uses.

    Args:
        config: the layer's numbers; kept as ``layer.config``.
        dtype: of the weights; None for torch's default.
        device: of the weights; None for torch's default.

    Attributes:
        routing: of the tokens of the last call, for the balance and for who wants to look; None before it.

    Raises:
        TypeError: ``config`` is not a ``MoEConfig``, or ``dtype`` or ``device`` not one.
        ValueError: a layer does not compute in ``dtype``, or there is no such ``device``.
    """

    def __init__(
        self, config: MoEConfig, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ):
        super().__init__()
        check_config(config, MoEConfig)
        check_weights(dtype, device)
        self.config = config
        self.gate = Router(config, dtype=dtype, device=device)
        self.experts = Experts(config, dtype=dtype, device=device)
        width = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = SwiGLU(config.hidden_size, width, dtype=dtype, device=device) if width else None
        self.routing: Routing | None = None

    def forward(self, x: Float[Tensor, "... hidden"]) -> Float[Tensor, "... hidden"]:
        """Each token by itself."""
        tokens = x.flatten(0, -2)
        self.routing = self.gate(tokens)
        out: Tensor = self.experts(tokens, self.routing).view_as(x)
        return out if self.shared_experts is None else out + self.shared_experts(x)
