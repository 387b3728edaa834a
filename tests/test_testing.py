import math

import pytest
import torch

import mla_edu
from mla_edu import GQAConfig, MLAConfig
from mla_edu.cache import KVCache, LatentCache, PagedLatentCache, PageTable
from mla_edu.testing import below, poison, randomize, relative_error

WIDTHS = {"q_lora_rank": None, "kv_lora_rank": 7, "qk_nope_head_dim": 5, "qk_rope_head_dim": 6, "v_head_dim": 9}
MLA = MLAConfig(hidden_size=24, num_attention_heads=3, **WIDTHS)


def test_relative_error_is_relative_and_sees_nan():
    assert relative_error(torch.tensor([1e-6, 2.2e-6]), torch.tensor([1e-6, 2e-6])) == pytest.approx(0.1)
    assert relative_error(torch.tensor([math.nan, 1.0]), torch.ones(2)) == math.inf
    with pytest.raises(ValueError, match=r"actual has shape \[1\]; expected \[2\]"):
        relative_error(torch.ones(1), torch.ones(2))


def test_poison_spoils_all_that_holds_no_token_and_nothing_else():
    gqa = GQAConfig(hidden_size=24, num_attention_heads=3, num_key_value_heads=3, head_dim=8)
    pages = PagedLatentCache(MLA, PageTable(num_pages=3, page_size=2, batch_size=2))
    for cache in (KVCache(gqa, 2, max_seq_len=5), LatentCache(MLA, 2, max_seq_len=5), pages):
        for memory in cache.memory:
            memory.zero_()
        for sequence, length in ((0, 3), (1, 1)):
            with cache.step(length, [sequence]):
                pass
        poison(cache)
        assert all(not part.isnan().any() for _, parts in cache.table.read(*cache.memory) for part in parts)
        assert all(
            memory[..., 0].isnan().sum() == memory[..., 0].numel() - 4 * memory[0, 0, ..., 0].numel()
            for memory in cache.memory
        )


def test_randomize_leaves_no_norm_at_one_and_repeats_itself():
    first, second = (randomize(mla_edu.MultiHeadLatentAttention(MLA), seed=3) for _ in range(2))
    assert (first.kv_a_layernorm.weight != 1).all()
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@pytest.mark.parametrize(
    ("error", "bound", "words"),
    [
        (0.0, None, "below 1e-12"),
        (3e-16, None, "below 1e-12"),
        (9e-14, None, "below 1e-12"),
        (2e-13, None, "below 1e-05"),
        (8e-7, None, "below 1e-05"),
        (8e-7, 1e-5, "below 1e-05"),
        (3e-16, 1e-9, "below 1e-12 (bound 1e-09)"),
        (0.023, None, "2e-02"),
        (0.004, 0.01, "4e-03 (bound 1e-02)"),
        (math.inf, None, "inf"),
    ],
)
def test_an_error_is_said_with_room_for_other_processors(error, bound, words):
    assert below(error, bound) == words


def test_an_error_past_its_bound_is_said_as_it_is():
    with pytest.raises(AssertionError, match="the error is 2.0e-05; expected less than 1e-05"):
        below(2e-5, 1e-5)
    with pytest.raises(AssertionError, match="the error is nan"):
        below(math.nan, 1e-5)
