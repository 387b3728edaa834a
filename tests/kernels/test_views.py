"""Rows joined out of their two parts: the same memory, or one clear error."""

import pytest
import torch

from mla_edu.kernels import join_rows, mla_decode
from mla_edu.kernels.problems import check_answer, random_problem

PROBLEM = random_problem([20, 0, 33], num_heads=3, s_q=2, dtype="fp32", kv_lora_rank=32, qk_rope_head_dim=8)


@pytest.mark.parametrize("strided", [False, True])
def test_slices_of_the_same_rows_are_joined_without_a_copy(strided):
    problem = random_problem([20, 33], dtype="fp32", kv_lora_rank=32, qk_rope_head_dim=8, strided=strided)
    for rows in (problem.q, problem.kv_cache, problem.kv_cache[3:5, 1], problem.q[:1]):
        joined = join_rows(*rows.split((32, 8), dim=-1))
        assert joined.data_ptr() == rows.data_ptr()
        assert (joined.shape, joined.stride()) == (rows.shape, rows.stride())


def test_a_dimension_of_one_may_have_any_stride():
    rows = torch.randn(4, 1, 40)
    latent, rotary = rows.split((32, 8), dim=-1)
    rotary = rotary.as_strided(rotary.shape, (40, 7, 1), rotary.storage_offset())
    assert torch.equal(join_rows(latent, rotary), rows)


def test_parts_of_queries_and_of_a_cache_are_decoded():
    (q_nope, q_pe), (ckv, kpe) = (rows.split((32, 8), dim=-1) for rows in (PROBLEM.q, PROBLEM.kv_cache))
    answer = mla_decode(
        join_rows(q_nope, q_pe), join_rows(ckv, kpe), *PROBLEM.tensors[2:], **PROBLEM.options, return_lse=True
    )
    check_answer(answer, PROBLEM.expected())


LATENT, ROTARY = torch.zeros(5, 7, 40).split((32, 8), dim=-1)


@pytest.mark.parametrize(
    ("rotary", "message"),
    [
        (ROTARY.clone(), r"latent \[5, 7, 32\] with strides \[280, 40, 1\] and rotary \[5, 7, 8\] with strides \[56"),
        (LATENT[..., 8:16], "are not neighbours in memory; expected slices of the same rows"),
        (ROTARY[..., 1:], "are not neighbours in memory"),
        (ROTARY.as_strided((5, 7, 8), (280, 8, 1), 32), "are not neighbours in memory"),
        (ROTARY[:4], r"torch.float32 \[5, 7, 32\] on cpu, rotary torch.float32 \[4, 7, 8\] .* expected them alike"),
        (ROTARY.half(), r"rotary torch.float16 \[5, 7, 8\] on cpu; expected them alike but for their width"),
        (ROTARY.to("meta"), "rotary torch.float32 .* on meta; expected them alike"),
    ],
)
def test_what_no_view_can_join_is_named(rotary, message):
    with pytest.raises(ValueError, match=message):
        join_rows(LATENT, rotary)
