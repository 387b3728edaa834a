"""Muon (Jordan et al. 2024), and which matrices it steps: each linear map of a model by itself."""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mla_edu.layers.mamba2 import Mamba2
from mla_edu.layers.mla import MultiHeadLatentAttention
from mla_edu.layers.moe import Experts

Split = Callable[[Tensor], Sequence[Tensor]]


def whole(matrix: Tensor) -> Sequence[Tensor]:
    """A matrix that is one linear map."""
    return (matrix,)


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` without weight decay (Jordan et al. 2024), in the matrices' own type.

    torch computes in bfloat16. On a processor that has no instructions for it, its steps take many times as long.

    Args:
        params: matrices or stacks of them; those without a gradient stay.
        lr: how far a step goes, in the spectral norm of a matrix that is no taller than wide.
        splits: for a parameter that holds several linear maps, a function from it to views of each of them, matrices
            or stacks of matrices.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, splits: dict[Tensor, Split] | None = None):
        super().__init__(params, {"lr": lr})
        self.splits = splits or {}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take one step along the gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 0.05)
                split = self.splits.get(weight, whole)
                for matrix, direction in zip(split(weight), split(weight.grad.lerp(average, 0.95)), strict=True):
                    rows, columns = matrix.shape[-2:]
                    matrix.add_(_nearly_orthogonal(direction), alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def _nearly_orthogonal(matrix: Float[Tensor, "*stack rows columns"]) -> Float[Tensor, "*stack rows columns"]:
    """With singular values near one: five Newton-Schulz steps of degree five."""
    if matrix.shape[-2] > matrix.shape[-1]:
        return _nearly_orthogonal(matrix.mT).mT
    matrix = matrix / matrix.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    times = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    for _ in range(5):
        gram = matrix @ matrix.mT
        matrix = times(matrix, times(gram, gram, gram, beta=-4.775, alpha=2.0315), matrix, beta=3.4445)
    return matrix


def fused_maps(model: nn.Module) -> dict[Tensor, Split]:
    """The parameters of a model that hold several linear maps, with the views of each.

    Keys apart from values, the latent from the rotary key, the gate from the rest, expert from expert.
    """
    found: dict[Tensor, Split] = {}
    for module in model.modules():
        if isinstance(module, MultiHeadLatentAttention):
            config = module.config
            found[module.kv_a_proj_with_mqa.weight] = _rows(config.kv_lora_rank, config.qk_rope_head_dim)
            found[module.kv_b_proj.weight] = _of_heads(
                config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
            )
        elif isinstance(module, Mamba2):
            mamba = module.config
            directions = mamba.n_groups * mamba.state_size
            widths = (mamba.inner_width, mamba.inner_width, directions, directions, mamba.num_heads)
            found[module.in_proj.weight] = _rows(*widths)
        elif isinstance(module, Experts):
            found[module.gate_up_proj] = _halves
    return found


def _rows(*widths: int) -> Split:
    return lambda matrix: matrix.split(widths)


def _of_heads(heads: int, *widths: int) -> Split:
    return lambda matrix: matrix.unflatten(0, (heads, -1)).split(widths, dim=1)


def _halves(stack: Tensor) -> Sequence[Tensor]:
    return stack.chunk(2, dim=1)


def optimizers_of(model: nn.Module, muon_rate: float, adam_rate: float) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices within the layers, AdamW for embedding, head, routers, norms and what is no matrix."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        by_adamw = weight.ndim < 2 or name.endswith(("gate.weight", "conv1d.weight"))
        (matrices if name.startswith(("layers.", "mtp.")) and not by_adamw else others).append(weight)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "muon": Muon(matrices, lr=muon_rate, splits=fused_maps(model)),
        "adamw": torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    }
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers
