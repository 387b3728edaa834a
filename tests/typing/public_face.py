"""The public names as a user's editor sees them. Pyright reads this file (`make types`); nothing runs it.

A line that is wrong carries an ignore, and an ignore that nothing needs is an error: so a misspelt or mistyped
argument must be found.
"""

from pathlib import Path
from typing import Literal, assert_type

import torch
from torch import Tensor

from mla_edu import GQAConfig, GroupedQueryAttention, MLAConfig, MultiHeadLatentAttention, config_from_hf
from mla_edu.cache import KVCache, LatentCache, PagedKVCache, PagedLatentCache, PageTable
from mla_edu.cost import kv_cache_bytes
from mla_edu.hf import ModelSpec
from mla_edu.kernels import mla_decode
from mla_edu.models import Decoder, ModelCache, ModelConfig, generate, load_attention, load_model, save_model
from mla_edu.registry import get_model, list_models
from mla_edu.serving import Engine, Event, Request, SamplingParams

mla = MLAConfig(
    hidden_size=512,
    num_attention_heads=8,
    q_lora_rank=None,
    kv_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
)
gqa = GQAConfig(hidden_size=512, num_attention_heads=8, num_key_value_heads=2, head_dim=64, rope_theta=10000.0)
assert_type(mla.kind, Literal["mla"])
assert_type(gqa.kind, Literal["mha", "mqa", "gqa"])
assert_type(mla.kv_lora_rank, int)
assert_type(mla.q_lora_rank, int | None)
assert_type(config_from_hf(Path("config.json")), GQAConfig | MLAConfig)
assert_type(config_from_hf({"model_type": "llama"}), GQAConfig | MLAConfig)
GQAConfig(hidden_size=512, num_attention_heads=8, num_key_value_heads=2, heads_dim=64)  # pyright: ignore[reportCallIssue]
GQAConfig(hidden_size="wide", num_attention_heads=8, num_key_value_heads=2, head_dim=64)  # pyright: ignore[reportArgumentType]

x = torch.randn(1, 7, 512)
latent_cache = LatentCache(mla, batch_size=1, max_seq_len=1024, dtype=torch.float32)
layer = MultiHeadLatentAttention(mla)
assert_type(layer, MultiHeadLatentAttention)
assert_type(layer(x), Tensor)
assert_type(layer(x, cache=latent_cache, mode="absorbed"), Tensor)
assert_type(GroupedQueryAttention(gqa)(x, cache=KVCache(gqa, batch_size=1, max_seq_len=1024)), Tensor)
layer(x, cache=latent_cache, mode="quick")  # pyright: ignore[reportArgumentType]
layer(x, caches=latent_cache)  # pyright: ignore[reportCallIssue]
MultiHeadLatentAttention(gqa)  # pyright: ignore[reportArgumentType]
LatentCache(mla, batch_size=1, max_len=1024)  # pyright: ignore[reportCallIssue]
assert_type(load_attention("checkpoint", layer=0, dtype=None), GroupedQueryAttention | MultiHeadLatentAttention)


table = PageTable(num_pages=8, page_size=64, batch_size=2)
layer(x, cache=PagedLatentCache(mla, table, torch.uint8))
GroupedQueryAttention(gqa)(x, cache=PagedKVCache(gqa, table))
layer(x, cache=PagedKVCache(mla, table))
GroupedQueryAttention(gqa)(x, cache=latent_cache)  # pyright: ignore[reportArgumentType]


assert_type(kv_cache_bytes("deepseek-v3", 4096, batch_size=1, dtype="bf16"), int)
assert_type(kv_cache_bytes(mla, num_tokens=4096), int)
kv_cache_bytes(mla, num_token=4096)  # pyright: ignore[reportCallIssue]
assert_type(list_models(), list[str])
assert_type(get_model("deepseek-v3"), ModelSpec)
assert_type(get_model("deepseek-v3").name, str)

q, kv_cache = torch.randn(1, 1, 8, 160), torch.randn(4, 64, 160)
block_table, seq_lens = torch.zeros(1, 4, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
assert_type(mla_decode(q, kv_cache, block_table, seq_lens, kv_lora_rank=128, sm_scale=0.1), Tensor)
assert_type(
    mla_decode(q, kv_cache, block_table, seq_lens, kv_lora_rank=128, sm_scale=0.1, return_lse=True),
    tuple[Tensor, Tensor],
)
mla_decode(q, kv_cache, block_table, seq_lens, kv_lora_rank=128)  # pyright: ignore[reportCallIssue]
mla_decode(q, kv_cache, block_table, seq_lens, kv_lora_rank=128, sm_scale=0.1, splits=2)  # pyright: ignore[reportCallIssue]

model_config = ModelConfig(vocab_size=256, hidden_size=512, layers=("mla",), intermediate_size=1024, mla=mla)
assert_type(ModelConfig.from_yaml("configs/mla-small.yaml"), ModelConfig)
assert_type(ModelConfig.from_hf({"model_type": "llama"}), ModelConfig)
ModelConfig(vocab_size=256, hidden_size=512, layers=("rwkv",), mla=mla)  # pyright: ignore[reportArgumentType]
model = Decoder(model_config, dtype=torch.float32)
model_cache = model.new_cache(batch_size=2, max_seq_len=64)
assert_type(model_cache, ModelCache)
assert_type(model(torch.zeros(2, 3, dtype=torch.long), cache=model_cache), Tensor)
model(torch.zeros(2, 3, dtype=torch.long), cache=latent_cache)  # pyright: ignore[reportArgumentType]
assert_type(load_model("checkpoint", dtype=None, device=None), Decoder)
assert_type(save_model(model, "folder"), str)
assert_type(list(generate(model, [1, 2], max_new_tokens=3, temperature=0.0, top_p=1.0, seed=None)), list[int])


engine = Engine(Decoder(ModelConfig.from_yaml("configs/mla-small.yaml")), num_pages=8, page_size=64, mla="latent")
assert_type(engine.submit([1, 2], SamplingParams(max_new_tokens=16, temperature=0.0, top_p=1.0, seed=None)), Request)
assert_type(engine.step(), list[Event])
assert_type(engine.generate([[1, 2]], SamplingParams(max_new_tokens=16)), list[list[int]])
engine.submit([1, 2], SamplingParams(max_tokens=16))  # pyright: ignore[reportCallIssue]
Engine(engine.model, num_pages=8, mla="absorbed")  # pyright: ignore[reportArgumentType]
