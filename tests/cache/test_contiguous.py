import pytest
import torch

from mla_edu import GQAConfig, MLAConfig
from mla_edu.cache import KVCache, LatentCache
from mla_edu.cost import kv_cache_bytes
from mla_edu.testing import poison

CONFIG = GQAConfig(hidden_size=24, num_attention_heads=6, num_key_value_heads=3, head_dim=10)


def new_tokens(count, seed=0, batch=2):
    return torch.randn(2, batch, count, 3, 10, generator=torch.Generator().manual_seed(seed))


def test_what_is_appended_comes_back_in_order():
    cache = KVCache(CONFIG, batch_size=2, max_seq_len=9, dtype=torch.float32)
    poison(cache)
    chunks = [new_tokens(count, seed) for seed, count in enumerate((4, 1, 3))]
    for k, v in chunks:
        keys, values = cache.append(k, v)
    assert cache.length == 8
    assert torch.equal(keys, torch.cat([k for k, _ in chunks], dim=1))
    assert torch.equal(values, torch.cat([v for _, v in chunks], dim=1))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_takes_the_bytes_that_the_cost_model_says(dtype):
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    cache = KVCache(CONFIG, batch_size=3, max_seq_len=17, dtype=torch_dtype)
    assert cache.nbytes == kv_cache_bytes(CONFIG, 17, batch_size=3, dtype=dtype)


def test_stored_numbers_carry_no_gradient():
    cache = KVCache(CONFIG, batch_size=2, max_seq_len=9, dtype=torch.float32)
    keys, _ = cache.append(*new_tokens(2).requires_grad_())
    assert not keys.requires_grad


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        (
            new_tokens(6)[0],
            new_tokens(6)[1],
            "6 new tokens after 4 cached ones; expected at most max_seq_len = 9",
        ),
        (new_tokens(1)[0], new_tokens(2)[1], r"values has shape \[2, 2, 3, 10\]; expected \[2, 1, 3, 10\]"),
        (
            new_tokens(1)[0, ..., :8],
            new_tokens(1)[1],
            r"keys has shape \[2, 1, 3, 8\]; expected \[2, 1, 3, 10\]",
        ),
        (new_tokens(1, batch=1)[0], new_tokens(1, batch=1)[1], "batch size is 1; expected 2"),
        (new_tokens(1)[0], new_tokens(1)[1].double(), "torch.float64 on cpu; expected torch.float32"),
        (
            new_tokens(1)[0].to("meta"),
            new_tokens(1)[1],
            "torch.float32 on meta; expected torch.float32 on cpu",
        ),
    ],
)
def test_what_does_not_fit_leaves_the_cache_as_it_was(keys, values, message):
    cache = KVCache(CONFIG, batch_size=2, max_seq_len=9, dtype=torch.float32)
    cache.append(*new_tokens(4))
    before = cache.keys.clone(), cache.values.clone()
    with pytest.raises(ValueError, match=message):
        cache.append(keys, values)
    assert cache.length == 4
    assert all(map(torch.equal, (cache.keys[:, :4], cache.values[:, :4]), (b[:, :4] for b in before)))


def test_bad_sizes_and_configurations_are_named():
    with pytest.raises(ValueError, match="max_seq_len is 0; expected at least 1"):
        KVCache(CONFIG, max_seq_len=0)
    mla = MLAConfig(
        hidden_size=8,
        num_attention_heads=2,
        q_lora_rank=None,
        kv_lora_rank=4,
        qk_nope_head_dim=2,
        qk_rope_head_dim=2,
        v_head_dim=2,
    )
    with pytest.raises(TypeError, match="config is a MLAConfig; expected a GQAConfig"):
        KVCache(mla)
    with pytest.raises(TypeError, match="config is a GQAConfig; expected a MLAConfig"):
        LatentCache(CONFIG)
    with pytest.raises(ValueError, match="batch_size is 0; expected at least 1"):
        LatentCache(mla, batch_size=0)


# The latent cache


V3 = MLAConfig(
    hidden_size=7168,
    num_attention_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
MLA = MLAConfig(
    hidden_size=24,
    num_attention_heads=3,
    q_lora_rank=None,
    kv_lora_rank=7,
    qk_nope_head_dim=5,
    qk_rope_head_dim=6,
    v_head_dim=9,
)


def new_rows(count, seed=0, batch=2):
    rows = torch.randn(batch, count, 13, generator=torch.Generator().manual_seed(seed))
    return rows[..., :7], rows[..., 7:]


def test_it_holds_576_numbers_per_token_of_deepseek_v3_and_nothing_else():
    cache = LatentCache(V3, batch_size=2, max_seq_len=10)
    assert cache.rows.shape == (2, 10, 576)
    assert cache.nbytes == 2 * 10 * 576 * 2
    tensors = {v.untyped_storage().data_ptr() for v in vars(cache).values() if isinstance(v, torch.Tensor)}
    assert tensors == {cache.rows.untyped_storage().data_ptr()}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_takes_the_bytes_of_a_latent_that_the_cost_model_says(dtype):
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    cache = LatentCache(MLA, batch_size=3, max_seq_len=17, dtype=torch_dtype)
    assert cache.nbytes == kv_cache_bytes(MLA, 17, batch_size=3, dtype=dtype)


def test_rows_come_back_in_order_latent_first_as_views():
    cache = LatentCache(MLA, batch_size=2, max_seq_len=9, dtype=torch.float32)
    poison(cache)
    chunks = [new_rows(count, seed) for seed, count in enumerate((4, 1, 3))]
    for c_kv, k_pe in chunks:
        rows = cache.append(c_kv, k_pe)
    assert cache.length == 8
    assert rows.shape == (2, 8, 13)
    assert rows.data_ptr() == cache.rows.data_ptr()
    assert torch.equal(rows, torch.cat([torch.cat(chunk, dim=-1) for chunk in chunks], dim=1))
    assert torch.equal(cache.c_kv[:, :8], rows[..., :7])
    assert torch.equal(cache.k_pe[:, :8], rows[..., 7:])
    assert cache.rows[:, 8:].isnan().all()


def test_stored_rows_carry_no_gradient():
    cache = LatentCache(MLA, batch_size=2, max_seq_len=9, dtype=torch.float32)
    c_kv, k_pe = new_rows(2)
    assert not cache.append(c_kv.clone().requires_grad_(), k_pe).requires_grad


@pytest.mark.parametrize(
    ("c_kv", "k_pe", "message"),
    [
        (*new_rows(6), "6 new tokens after 4 cached ones; expected at most max_seq_len = 9"),
        (new_rows(1)[0], new_rows(2)[1], r"k_pe has shape \[2, 2, 6\]; expected \[2, 1, 6\]"),
        (new_rows(1)[0][..., :6], new_rows(1)[1], r"c_kv has shape \[2, 1, 6\]; expected \[2, 1, 7\]"),
        (*new_rows(1, batch=1), "batch size is 1; expected 2"),
        (new_rows(1)[0], new_rows(1)[1].double(), "torch.float64 on cpu; expected torch.float32"),
        (new_rows(1)[0].to("meta"), new_rows(1)[1], "torch.float32 on meta; expected torch.float32 on cpu"),
    ],
)
def test_rows_that_do_not_fit_leave_the_cache_as_it_was(c_kv, k_pe, message):
    cache = LatentCache(MLA, batch_size=2, max_seq_len=9, dtype=torch.float32)
    before = cache.append(*new_rows(4)).clone()
    with pytest.raises(ValueError, match=message):
        cache.append(c_kv, k_pe)
    assert cache.length == 4
    assert torch.equal(cache.rows[:, :4], before)
