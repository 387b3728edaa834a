"""What all cases share: small layers, ragged lengths, and what one case has found on a rank."""

import torch

from mla_edu import GQAConfig, GroupedQueryAttention, MLAConfig, MultiHeadLatentAttention
from mla_edu.testing import randomize, relative_error

HIDDEN = 24  # any number of tokens' states divides by 1, 2, 3 and 4 ranks: nothing is padded
YARN = {"rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 8, "mscale": 0.9, "mscale_all_dim": 1.3}
PAGE = 12  # divides likewise
LENGTHS = (0, 1, 3, 8, 12, 23, 24)  # none, fewer than ranks, multiples of any number of ranks, full pages


def mla_layer(heads, dtype=torch.float64, **options):
    widths = {"q_lora_rank": 9, "kv_lora_rank": 10, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 7}
    config = MLAConfig(hidden_size=HIDDEN, num_attention_heads=heads, **widths | options)
    return randomize(MultiHeadLatentAttention(config, dtype=dtype), seed=heads).requires_grad_(False)


def gqa_layer(heads, kv_heads, **options):
    config = GQAConfig(
        hidden_size=HIDDEN, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=6, **options
    )
    layer = GroupedQueryAttention(config, dtype=torch.float64)
    return randomize(layer, seed=heads).requires_grad_(False)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def poisoned(cache):
    for memory in cache.memory:
        memory.fill_(0xFF if memory.dtype == torch.uint8 else torch.nan)
    return cache


def fill(layer, cache, texts, lengths):
    """Every sequence with as many tokens as it should have, in chunks of sequences that take turns for pages."""
    for start in range(0, max(lengths), 12):
        for sequence, length in enumerate(lengths):
            chunk = texts[sequence : sequence + 1, start : min(start + 12, length)]
            if chunk.shape[1]:
                with cache.table.step(chunk.shape[1], [sequence]):
                    layer(chunk, cache)


class Case:
    """What one case has found on this rank."""

    def __init__(self, ranks):
        self.ranks, self.error, self.bytes = ranks, 0.0, []
        ranks.received.clear()

    def equal(self, actual, expected):
        self.error = max(self.error, relative_error(actual, expected))

    def exact(self, actual, expected):
        assert actual == expected, f"{actual} instead of {expected}"

    def counted(self, expected, width=2):
        """What passed since the last call, beside what the formulas say, in numbers of ``width`` bytes."""
        counted = {name: count for name, count in self.ranks.received.items() if name != "control" and count}
        expected = {name: count * width // 2 for name, count in expected.items() if count}
        if width == 8 and "lse" in expected:
            expected["lse"] //= 2  # float64 for fp32
        self.bytes.append((counted, expected))
        self.ranks.received.clear()
