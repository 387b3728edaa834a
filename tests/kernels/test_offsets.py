"""Offsets past 2**31, of every kind: pages, rows of a page, numbers of a row, queries, block table."""

import dataclasses

import pytest
import torch

from mla_edu.kernels.problems import check_answer, random_problem
from mla_edu.kernels.tiles import Tiles

launch = pytest.importorskip("mla_edu.kernels.launch")
pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="needs the interpreter")
WHOLE, CHUNKED = Tiles(16, 16, 8, 2), Tiles(16, 16, 8, 2, 4)

# which tensor, along which dimension, how many of them, how far apart
KINDS = {
    "sequences of q": ("q", 0, {"seq_lens": [3, 9, 2, 5]}, 2**30),
    "new tokens of q": ("q", 1, {"s_q": 4}, 2**30),
    "heads of q": ("q", 2, {"num_heads": 4}, 2**30),
    "numbers of q": ("q", 3, {"kv_lora_rank": 3, "qk_rope_head_dim": 1}, 2**30),
    "pages": ("kv_cache", 0, {"page_size": 2}, 2**28),
    "rows of a page": ("kv_cache", 1, {"page_size": 4, "s_q": 2}, 2**30),
    "rows of a page that holds whole tiles": ("kv_cache", 1, {"page_size": 16}, 2**27 + 2**26),
    "numbers of a row": ("kv_cache", 2, {"kv_lora_rank": 3, "qk_rope_head_dim": 1}, 2**30),
    "sequences of the table": ("block_table", 0, {"seq_lens": [3, 9, 2, 5]}, 2**30),
    "pages of the table": ("block_table", 1, {"page_size": 2, "seq_lens": [9]}, 2**29),
    "pages of the table, that tiles cut": ("block_table", 1, {"page_size": 3, "seq_lens": [9]}, 2**29),
    "pages of the table, of whole tiles": ("block_table", 1, {"page_size": 16, "seq_lens": [80]}, 2**29),
    "lengths": ("seq_lens", 0, {"seq_lens": [3, 9, 2, 5]}, 2**30),
}


@pytest.mark.parametrize("tiles", [WHOLE, CHUNKED], ids=["whole", "chunked"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_past_2_to_the_31_are_found(far_apart, kind, tiles):
    name, dim, sizes, stride = KINDS[kind]
    widths = {"num_heads": 2, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "seq_lens": [9, 3]}
    problem = random_problem(dtype="fp16", **widths | sizes)
    moved = dataclasses.replace(problem, **{name: far_apart(getattr(problem, name), dim, stride)})
    for num_splits in (None, 1, 2):
        answer = launch.decode(*moved.tensors, **moved.options, num_splits=num_splits, tiles=tiles)
        check_answer(answer, problem.expected())


@pytest.mark.parametrize(("dim", "page_size", "stride"), [(0, 2, 2**28), (1, 4, 2**30)])
def test_scales_and_rotary_keys_of_fp8_rows_past_2_to_the_31_are_found(far_apart, dim, page_size, stride):
    problem = random_problem([9, 3], dtype="fp8_mla", kv_lora_rank=128, qk_rope_head_dim=8, page_size=page_size)
    moved = dataclasses.replace(problem, kv_cache=far_apart(problem.kv_cache, dim, stride))
    answer = launch.decode(*moved.tensors, **moved.options, num_splits=1)
    check_answer(answer, problem.expected())


def test_a_table_for_more_tokens_than_can_be_counted_is_refused():
    problem = random_problem([5], dtype="fp32", kv_lora_rank=16, qk_rope_head_dim=8, page_size=16)
    table = problem.block_table[:, :1].expand(1, 2**26 + 1)
    with pytest.raises(ValueError, match=f"block_table has room for {2**30 + 16} tokens a sequence; expected at most"):
        launch.decode(problem.q, problem.kv_cache, table, problem.seq_lens, **problem.options)
    assert torch.equal(problem.seq_lens, torch.tensor([5], dtype=torch.int32))
