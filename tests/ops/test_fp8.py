"""The fp8 token: its layout byte by byte, its error, and what a number that it holds comes back as."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mla_edu import MLAConfig
from mla_edu.cost import fp8_row_bytes, kv_cache_bytes
from mla_edu.ops.fp8 import pack_fp8, unpack_fp8

V3 = MLAConfig(
    hidden_size=7168,
    num_attention_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)


def rows(seed=0, tokens=5, rank=512, rope=64):
    return torch.randn(tokens, rank + rope, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_a_token_of_deepseek_v3_takes_656_bytes_as_the_cost_model_says():
    assert pack_fp8(rows(), 512).shape == (5, 656)
    assert fp8_row_bytes(512, 64) == kv_cache_bytes(V3, 1, dtype="fp8_mla") == 656


def test_bytes_lie_where_the_layout_says():
    row = torch.zeros(576)
    row[0], row[127], row[128], row[511], row[512], row[575] = 448.0, -1.0, 896.0, 2.0**-9, 3.0, -5.0
    packed = pack_fp8(row, 512)
    assert packed[0] == 0x7E and packed[127] == 0xB8  # 448 and -1 in e4m3
    assert packed[128] == 0x7E
    assert packed[512:528].view(torch.float32).tolist() == [1.0, 2.0, 1.0, 2.0**-17]
    assert packed[528:].view(torch.bfloat16).tolist() == [3.0] + [0.0] * 62 + [-5.0]


@given(st.integers(0, 1000), st.sampled_from([1e-20, 1e-3, 1.0, 300.0]), st.sampled_from([128, 256, 512]))
def test_latents_keep_three_bits_and_rotary_keys_all(seed, size, rank):
    original = (rows(seed, rank=rank).float() * size).bfloat16()
    back = unpack_fp8(pack_fp8(original, rank), rank)
    latent = original[:, :rank].float().unflatten(-1, (-1, 128))
    error = (back[:, :rank].unflatten(-1, (-1, 128)) - latent).abs()
    smallest = latent.abs().amax(-1, keepdim=True) * 2.0 / 448 * 2.0**-10  # half of e4m3's smallest step, scaled
    assert (error <= torch.maximum(latent.abs() / 16, smallest)).all()
    assert torch.equal(back[:, rank:], original[:, rank:].float())


def test_packing_what_was_unpacked_changes_nothing():
    packed = pack_fp8(rows(), 512)
    assert torch.equal(pack_fp8(unpack_fp8(packed, 512), 512), packed)


def test_nan_does_not_come_back_as_a_number():
    bad = rows()
    bad[1, 3] = float("nan")
    assert unpack_fp8(pack_fp8(bad, 512), 512)[1, 3].isnan()


def test_what_does_not_fit_the_layout_is_named():
    with pytest.raises(ValueError, match="kv_lora_rank is 500; expected a multiple of 128"):
        pack_fp8(rows(), 500)
    with pytest.raises(ValueError, match="kv_lora_rank is 640; expected at most the row's width, 576"):
        pack_fp8(rows(), 640)
    with pytest.raises(ValueError, match="packed has 500 bytes a token; expected at least 528"):
        unpack_fp8(torch.zeros(2, 500, dtype=torch.uint8), 512)
