"""A decoder of a few layers: embedding, attention and SwiGLU blocks with RMSNorm before each, and a head."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mla_edu.config import GQAConfig
from mla_edu.layers.gqa import GroupedQueryAttention
from mla_edu.layers.mlp import SwiGLU


class Block(nn.Module):
    """Attention, then SwiGLU, each added to the residual stream."""

    def __init__(self, config: GQAConfig, intermediate_size: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size)
        self.attention = GroupedQueryAttention(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size)
        self.mlp = SwiGLU(config.hidden_size, intermediate_size)

    def forward(self, x: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch seq hidden"]:
        """The residual stream after the block."""
        x = x + self.attention(self.attention_norm(x))
        x = x + self.mlp(self.mlp_norm(x))
        return x


class Decoder(nn.Module):
    """A causal language model: token ids in, logits of the next token out.

    Weights start normal with standard deviation ``fan_in ** -0.5``, the last matrix of each branch at zero, so that
    every block begins as the identity.

    Args:
        config: of each attention layer.
        num_layers: blocks.
        vocab_size: tokens; 256 for bytes.
        seed: of the weights.
    """

    def __init__(self, config: GQAConfig, num_layers: int, vocab_size: int = 256, seed: int = 0):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, 8 * config.hidden_size // 3) for _ in range(num_layers))
        self.norm = nn.RMSNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, vocab_size, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
            elif weight.ndim == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator)

    def forward(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """Logits of the token after each of ``tokens``."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits
