"""What one layer keeps: the right bytes, in order, without gradients; and what it refuses."""

import pytest
import torch

from mla_edu.cache import KVCache, LatentCache, PagedKVCache, PagedLatentCache, PageTable, SequenceTable, StateCache
from mla_edu.config import GQAConfig, Mamba2Config, MLAConfig
from mla_edu.cost import kv_cache_bytes
from mla_edu.testing import poison

WIDTHS = {"q_lora_rank": None, "kv_lora_rank": 7, "qk_nope_head_dim": 5, "qk_rope_head_dim": 6, "v_head_dim": 9}
GQA = GQAConfig(hidden_size=24, num_attention_heads=6, num_key_value_heads=3, head_dim=10)
MLA = MLAConfig(hidden_size=24, num_attention_heads=3, **WIDTHS)
FP8 = MLA.model_copy(update={"kv_lora_rank": 128})
V3 = MLAConfig(
    hidden_size=7168, num_attention_heads=128, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128,
    qk_rope_head_dim=64, v_head_dim=128,
)  # fmt: skip
PARTS = {KVCache: ((3, 10), (3, 10)), PagedKVCache: ((3, 10), (3, 10)), LatentCache: ((7,), (6,))}
PARTS[PagedLatentCache] = PARTS[LatentCache]
KINDS = pytest.mark.parametrize("kind", PARTS)


def make(kind, batch_size=2, max_seq_len=9, dtype=torch.float32, device=None):
    config = GQA if kind in (KVCache, PagedKVCache) else MLA
    if kind in (KVCache, LatentCache):
        return kind(config, batch_size, max_seq_len, dtype, device)
    table = PageTable(num_pages=6, page_size=4, batch_size=batch_size, max_seq_len=max_seq_len, device=device)
    return kind(config, table, dtype)


def new_tokens(kind, count, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, count, *shape, generator=generator) for shape in PARTS[kind]]


def stored(cache):
    """All that a cache holds, as the parts that were appended, each ``[batch, length, ...]``."""
    read = [parts for _, parts in cache.table.read(*cache.memory)]
    parts = [torch.cat(part) for part in zip(*read, strict=True)]
    return parts if len(parts) == 2 else list(parts[0].split((7, 6), dim=-1))


@KINDS
def test_what_is_appended_comes_back_in_order(kind):
    cache = make(kind)
    poison(cache)
    chunks = [new_tokens(kind, count, seed) for seed, count in enumerate((4, 1, 3))]
    for chunk in chunks:
        cache.append(*chunk)
    assert cache.length == 8 and cache.lengths == [8, 8]
    for part, pieces in zip(stored(cache), zip(*chunks, strict=True), strict=True):
        assert torch.equal(part, torch.cat(pieces, dim=1))


@KINDS
def test_stored_numbers_carry_no_gradient(kind):
    cache = make(kind)
    cache.append(*(part.requires_grad_() for part in new_tokens(kind, 2)))
    assert not any(memory.requires_grad for memory in cache.memory)


@pytest.mark.parametrize(("kind", "config"), [(KVCache, GQA), (LatentCache, MLA)])
@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16")])
def test_a_cache_takes_the_bytes_that_the_cost_model_says(kind, config, dtype, name):
    assert make(kind, 3, 17, dtype).nbytes == kv_cache_bytes(config, 17, batch_size=3, dtype=name)


def test_pages_take_the_bytes_that_the_cost_model_says():
    table = PageTable(num_pages=5, page_size=4)
    assert PagedLatentCache(V3, table).nbytes == kv_cache_bytes(V3, 20)
    assert PagedLatentCache(V3, table, torch.uint8).nbytes == kv_cache_bytes(V3, 20, dtype="fp8_mla") == 20 * 656
    assert PagedKVCache(GQA, table).nbytes == kv_cache_bytes(GQA, 20)


def test_a_latent_cache_holds_576_numbers_per_token_of_deepseek_v3_and_nothing_else():
    cache = LatentCache(V3, batch_size=2, max_seq_len=10)
    assert cache.rows.shape == (2, 10, 576)
    assert cache.nbytes == 2 * 10 * 576 * 2
    tensors = {v.untyped_storage().data_ptr() for v in vars(cache).values() if isinstance(v, torch.Tensor)}
    assert tensors == {cache.rows.untyped_storage().data_ptr()}


def test_latents_of_equally_long_sequences_are_read_as_a_view_latent_first():
    cache = make(LatentCache)
    cache.append(*new_tokens(LatentCache, 5))
    ((place, rows),) = cache.read()
    assert place == slice(None) and rows.data_ptr() == cache.rows.data_ptr()
    assert torch.equal(cache.c_kv[:, :5], rows[..., :7])
    assert torch.equal(cache.k_pe[:, :5], rows[..., 7:])


def test_fp8_pages_hold_656_bytes_a_token_of_deepseek_v3_and_read_back_what_they_hold():
    cache = PagedLatentCache(FP8, PageTable(num_pages=3, page_size=4), torch.uint8)
    assert cache.pages.shape == (3, 4, 128 + 4 + 12)
    generator = torch.Generator().manual_seed(0)
    c_kv, k_pe = torch.randn(1, 6, 134, generator=generator).bfloat16().split((128, 6), dim=-1)
    cache.append(c_kv, k_pe)
    ((_, rows),) = cache.read()
    assert torch.equal(rows[..., 128:], k_pe)
    assert torch.allclose(rows[..., :128].float(), c_kv.float(), rtol=1 / 16, atol=1e-4)


@KINDS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a.repeat(1, 6, *[1] * (a.ndim - 2)), b), "6 new tokens after 4 cached ones"),
        (lambda a, b: (a, b.repeat(1, 2, *[1] * (b.ndim - 2))), r"has shape \[2, 2, .*expected \[2, 1, "),
        (lambda a, b: (a[..., :-1], b), r"has shape \[2, 1, .*expected \[2, 1, "),
        (lambda a, b: (a[:1], b[:1]), r"has shape \[1, 1, .*expected \[2, 1, "),
        (lambda a, b: (a, b.double()), "torch.float64 on cpu; expected torch.float32 on cpu"),
        (lambda a, b: (a.to("meta"), b), "torch.float32 on meta; expected torch.float32 on cpu"),
    ],
    ids=["room", "counts", "width", "batch", "dtype", "device"],
)
def test_what_does_not_fit_leaves_the_cache_as_it_was(kind, change, message):
    cache = make(kind)
    cache.append(*new_tokens(kind, 4))
    before = [part.clone() for part in stored(cache)]
    with pytest.raises(ValueError, match=message):
        cache.append(*change(*new_tokens(kind, 1)))
    assert cache.lengths == [4, 4]
    assert all(map(torch.equal, stored(cache), before))


def test_one_length_is_asked_of_equally_long_sequences_only():
    cache = make(LatentCache)
    with cache.step(3, [1]):
        cache.append(*new_tokens(LatentCache, 3, batch=1))
    assert cache.lengths == [0, 3]
    with pytest.raises(ValueError, match=r"lengths is \[0, 3\]; expected all equal"):
        _ = cache.length
    cache.truncate(0)
    assert cache.length == 0


def test_bad_sizes_configurations_and_tables_are_named():
    with pytest.raises(ValueError, match="max_seq_len is 0; expected a positive integer"):
        KVCache(GQA, max_seq_len=0)
    with pytest.raises(ValueError, match="batch_size is 0; expected a positive integer"):
        LatentCache(MLA, batch_size=0)
    with pytest.raises(TypeError, match="config is a str; expected a GQAConfig or MLAConfig"):
        KVCache("llama")
    with pytest.raises(TypeError, match="config is a GQAConfig; expected a MLAConfig"):
        LatentCache(GQA)
    with pytest.raises(TypeError, match="config is a GQAConfig; expected a MLAConfig"):
        PagedLatentCache(GQA, PageTable(2))
    with pytest.raises(TypeError, match="table is a SequenceTable; expected a PageTable"):
        PagedKVCache(GQA, SequenceTable(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda dtype: LatentCache(MLA, dtype=dtype),
        lambda dtype: KVCache(GQA, dtype=dtype),
        lambda dtype: PagedLatentCache(MLA, PageTable(2), dtype),
        lambda dtype: PagedKVCache(GQA, PageTable(2), dtype),
        lambda dtype: StateCache(
            Mamba2Config(hidden_size=8, num_heads=2, head_dim=4, state_size=4), PageTable(2), dtype
        ),
    ],
)
def test_a_cache_holds_what_layers_compute_in_and_nothing_else(make):
    for dtype in (torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(ValueError, match=f"dtype is {dtype}; expected torch.float64, torch.float32, "):
            make(dtype)
    for dtype in ("bf16", None, 16):
        with pytest.raises(TypeError, match=f"dtype is {dtype!r}; expected a torch.dtype"):
            make(dtype)
    with pytest.raises(ValueError, match="kv_lora_rank is 7; expected a multiple of 128"):
        PagedLatentCache(MLA, PageTable(2), torch.uint8)
