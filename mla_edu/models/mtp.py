"""DeepSeek-V3's multi-token prediction (MTP): one more layer, which guesses the token after the next."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mla_edu.cache.layer import LayerCache
from mla_edu.cache.table import Step
from mla_edu.layers.inputs import check_hidden_states, check_tokens
from mla_edu.models.config import ModelConfig


class MTPModule(nn.Module):
    """Takes what a model made of token i, and token i + 1; what it makes of them predicts token i + 2.

    Both are normed and put side by side, the embedding first: the report writes the hidden state first, the published
    weights expect it second. One map of twice the width and one decoder layer follow, then a norm of the module's own.
    Embedding and head are the model's. The result is of the kind of the model's hidden states, so that the module can
    go on from its own guesses: hidden state and guess of one call are what the next one takes.

    Args:
        config: of the model; kept as ``mtp.config``.
        layer: of the kind of the model's last one.
        dtype: of the weights; None for torch's default.
        device: of the weights; None for torch's default.

    Sources: DeepSeek-V3 report, sec. 2.2; ``MtpModel`` of transformers 5.23, which takes the hidden states behind the
    model's final norm and hands its own on behind its norm.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: nn.Module,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.config = config
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = nn.RMSNorm(hidden, eps=eps, dtype=dtype, device=device)
        self.hnorm = nn.RMSNorm(hidden, eps=eps, dtype=dtype, device=device)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False, dtype=dtype, device=device)
        self.layer = layer
        self.norm = nn.RMSNorm(hidden, eps=eps, dtype=dtype, device=device)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        next_tokens: Int[Tensor, "batch seq"],
        embedding: nn.Embedding,
        cache: LayerCache | None = None,
        steps: Sequence[Step] = (),
    ) -> Float[Tensor, "batch seq hidden"]:
        """What ``model.logits`` turns into guesses of the token after each of ``next_tokens``.

        Positions are those of ``hidden_states``, one less than transformers counts: attention sees differences alone.

        Args:
            hidden_states: of tokens i, from ``model.hidden_states`` or from here.
            next_tokens: tokens i + 1.
            embedding: the model's ``embed_tokens``.
            cache: of the module's layer, for ``config.part(-1)``; the new tokens are appended. Over the model's table
                it takes part in the model's step, or makes one in which the model's own caches get nothing: truncate
                the table before the model goes on.
            steps: as of ``model.hidden_states``.

        Raises:
            TypeError: ``cache`` is of another kind than the layer's.
            ValueError: shapes or dtype do not fit, a token is not of the vocabulary, or there is no room; the cache is
                left as it was.
        """
        check_hidden_states(hidden_states, self.config.hidden_size, self.norm.weight)
        check_tokens(next_tokens, self.config.vocab_size)
        if next_tokens.shape != hidden_states.shape[:2]:
            expected = list(hidden_states.shape[:2])
            raise ValueError(f"next_tokens has shape {list(next_tokens.shape)}; expected {expected}, as hidden_states")
        embedded = embedding(next_tokens) * self.config.embedding_scale
        x = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden_states)), dim=-1))
        out: Tensor = self.norm(self.layer(x.to(hidden_states.dtype), cache, steps))  # under autocast x is narrower
        return out

    if TYPE_CHECKING:  # torch types a call of any module as one of any arguments

        def __call__(
            self,
            hidden_states: Tensor,
            next_tokens: Tensor,
            embedding: nn.Embedding,
            cache: LayerCache | None = None,
            steps: Sequence[Step] = (),
        ) -> Tensor:
            """As ``forward``."""
