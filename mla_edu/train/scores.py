"""The largest score before the softmax, by which attention that runs away is seen early."""

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from mla_edu.layers.gqa import GroupedQueryAttention
from mla_edu.layers.mla import MultiHeadLatentAttention


class LargestScore:
    """Within it, a model's attention layers are watched: ``value`` is the largest scaled score of the first sequence.

    Args:
        model: whose calls are watched.
    """

    def __init__(self, model: nn.Module):
        self.layers = [m for m in model.modules() if isinstance(m, GroupedQueryAttention | MultiHeadLatentAttention)]
        self.value = 0.0

    def __enter__(self) -> "LargestScore":
        self.hooks = [layer.register_forward_pre_hook(self._look) for layer in self.layers]
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for hook in self.hooks:
            hook.remove()

    @torch.no_grad()
    def _look(self, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        hidden_states: Tensor = arguments[0][:1]
        seq = hidden_states.shape[1]
        positions = torch.arange(seq, device=hidden_states.device)[None]
        if isinstance(layer, MultiHeadLatentAttention):
            q = layer.absorb(*layer.queries(hidden_states, positions))
            k = torch.cat(layer.latents(hidden_states, positions), dim=-1)
            scores = torch.einsum("bshc,btc->bhst", q, k)
        else:
            assert isinstance(layer, GroupedQueryAttention)
            q, k, _ = layer.queries_keys_values(hidden_states, positions)
            scores = torch.einsum("bsgrd,btgd->bgrst", q.unflatten(2, (k.shape[2], -1)), k).flatten(1, 2)
        seen = torch.ones(seq, seq, dtype=torch.bool, device=scores.device).tril()
        largest = (scores * layer.sm_scale).masked_fill(~seen, 0).abs().max().item()
        self.value = max(self.value, largest)
