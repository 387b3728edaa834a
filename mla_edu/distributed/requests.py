"""Data-parallel attention: each rank answers requests of its own, with all heads, and all meet in the MLPs.

So no latent is kept twice. The MLPs, experts above all, are dealt over the ranks: the hidden states of all ranks are
gathered before each, and the sums scattered back behind it. Ranks with fewer tokens are padded, and a rank without any
has to take part all the same (SGLang calls it DP attention).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mla_edu.distributed.heads import MLP, local_mlp
from mla_edu.distributed.ranks import CONTROL, Ranks, check_ranks
from mla_edu.validation import check_integer


class Meeting:
    """How many tokens each rank brings to the MLPs of a step: agreed on once, for all layers.

    Args:
        ranks: that meet.

    Attributes:
        most: tokens of the rank that brings most; 0 before ``agree``.

    Raises:
        TypeError: ``ranks`` is not a ``Ranks``.
    """

    def __init__(self, ranks: Ranks):
        check_ranks(ranks)
        self.ranks, self.most = ranks, 0

    def agree(self, num_tokens: int) -> int:
        """Tell the other ranks how many tokens this one brings, and learn ``most``; call it on all ranks.

        Raises:
            ValueError: ``num_tokens`` is negative.
            RankLost: a rank has ended, or did not come in time.
        """
        check_integer("num_tokens", num_tokens, lowest=0)
        own = torch.tensor(num_tokens, device=self.ranks.device)
        self.most = int(self.ranks.all_gather(own, CONTROL).max())
        return self.most


def check_meeting(meeting: object) -> None:
    """Raise ``TypeError`` unless ``meeting`` is one."""
    if not isinstance(meeting, Meeting):
        raise TypeError(f"meeting is a {type(meeting).__name__}; expected a Meeting")


class DataParallelMLP(nn.Module):
    """An MLP, or experts, whose inner widths are dealt over ranks that each have other tokens.

    Args:
        mlp: whole, the same on all ranks.
        meeting: of the ranks; its ``agree`` comes before each step.

    Raises:
        TypeError: ``mlp`` is neither a ``SwiGLU`` nor a ``MixtureOfExperts``, or ``meeting`` not a ``Meeting``.
    """

    def __init__(self, mlp: MLP, meeting: Meeting):
        super().__init__()
        check_meeting(meeting)
        self.meeting, self.local = meeting, local_mlp(mlp, meeting.ranks)

    def forward(self, x: Float[Tensor, "... hidden"]) -> Float[Tensor, "... hidden"]:
        """As the whole one, on this rank's tokens: none, or up to as many as was agreed.

        Raises:
            ValueError: there are more.
            RankLost: a rank has ended, or did not come in time.
        """
        tokens, ranks = x.reshape(-1, x.shape[-1]), self.meeting.ranks
        missing = self.meeting.most - len(tokens)
        if missing < 0:
            raise ValueError(f"x has {len(tokens)} tokens; expected at most the {self.meeting.most} agreed on")
        padded = torch.cat((tokens, tokens.new_zeros(missing, x.shape[-1])))
        parts = self.local(ranks.all_gather(padded, "mlp").flatten(0, 1)).unflatten(0, (ranks.size, -1))
        return ranks.reduce_scatter(parts, "mlp")[: len(tokens)].view(x.shape)
