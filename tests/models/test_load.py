import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, MistralConfig, MistralModel

import mla_edu.cache.kv as kv
import mla_edu.layers.rotary as rotary
from mla_edu import GroupedQueryAttention
from mla_edu.cache import KVCache
from mla_edu.models.load import load_attention
from mla_edu.ops.rope import rotate
from mla_edu.testing import poison, randomize, relative_error
from strategies import gqa_configs

CHUNKS = (7, 1, 4, 1, 1, 3)


def hf_config(config, **options):
    scaling = config.rope_scaling.model_dump(exclude_none=True) if config.rope_scaling else {"rope_type": "default"}
    return dict(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rope_parameters=scaling | {"rope_theta": config.rope_theta},
        num_hidden_layers=3,
        intermediate_size=8,
        vocab_size=11,
        attn_implementation="eager",
        **options,
    )


@torch.no_grad()
def their_output(model, layer, hidden_states, window=None):
    """transformers' own attention layer on ``hidden_states``, under a causal mask written out here."""
    seq = hidden_states.shape[1]
    distance = torch.arange(seq)[:, None] - torch.arange(seq)
    visible = (distance >= 0) & (distance < (window or seq))
    mask = torch.zeros(seq, seq, dtype=torch.float64).masked_fill(~visible, float("-inf"))[None, None]
    rotary = model.rotary_emb(hidden_states, torch.arange(seq)[None])
    return model.layers[layer].self_attn(hidden_states, position_embeddings=rotary, attention_mask=mask)[0]


@torch.no_grad()
def worst_position(folder, model, layer=1, window=None):
    """Largest relative error over all positions, of the full pass and of decoding in uneven chunks."""
    ours = load_attention(folder, layer=layer)
    generator = torch.Generator().manual_seed(1)
    hidden_states = torch.randn(2, sum(CHUNKS), ours.config.hidden_size, dtype=torch.float64, generator=generator)
    cache = KVCache(ours.config, batch_size=2, max_seq_len=20, dtype=torch.float64)
    poison(cache)
    theirs = their_output(model, layer, hidden_states, window)
    full = ours(hidden_states)
    decoded = torch.cat([ours(chunk, cache) for chunk in hidden_states.split(CHUNKS, dim=1)], dim=1)
    return max(relative_error(output[:, i], theirs[:, i]) for output in (full, decoded) for i in range(full.shape[1]))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama with three layers in one file, as ``(folder, model)``."""
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        hidden_size=36, num_attention_heads=6, num_key_value_heads=2, head_dim=10, num_hidden_layers=3,
        intermediate_size=8, vocab_size=11, attention_bias=True, attn_implementation="eager",
    )  # fmt: skip
    model = randomize(LlamaModel(config).double(), 3)
    model.save_pretrained(folder)
    return folder, model


@given(config=gqa_configs())
def test_llama_layers_equal_transformers(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("llama")
    model = randomize(LlamaModel(LlamaConfig(**hf_config(config, attention_bias=config.qkv_bias))).double())
    model.save_pretrained(folder)
    assert worst_position(folder, model) < 1e-5


@given(config=gqa_configs(), window=st.none() | st.integers(1, 20))
def test_mistral_layers_equal_transformers_with_and_without_a_window(tmp_path_factory, config, window):
    folder = tmp_path_factory.mktemp("mistral")
    model = randomize(MistralModel(MistralConfig(**hf_config(config, sliding_window=window))).double())
    model.save_pretrained(folder)
    assert worst_position(folder, model, window=window) < 1e-5


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (kv, "causal_mask", lambda q, k, **_: torch.ones(q, k, dtype=torch.bool).tril(k - q + 1)),
        (rotary, "rotate", lambda *args, **options: 1.01 * rotate(*args, **options)),
        (rotary, "rotate", lambda x, p, f, pairing: rotate(x, p, f, pairing="interleaved")),
        (rotary, "rotate", lambda x, p, f, pairing: rotate(x, 2 * p, f, pairing=pairing)),
    ],
    ids=["mask one off", "softmax scale", "pairing", "positions"],
)
def test_the_parity_check_sees_a_broken_layer(monkeypatch, llama, module, name, broken):
    assert worst_position(*llama) < 1e-5
    monkeypatch.setattr(module, name, broken)
    assert worst_position(*llama) > 1e-3


def test_shards_are_read_and_only_those_of_the_layer(tmp_path, llama):
    _, model = llama
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {file for name, file in index.items() if name.startswith("layers.1.self_attn.")}
    for file in set(index.values()) - shards:
        (tmp_path / file).unlink()
    assert worst_position(tmp_path, model) < 1e-5
    (tmp_path / min(shards)).unlink()
    with pytest.raises(FileNotFoundError, match=min(shards)):
        load_attention(tmp_path, layer=1)


def test_a_language_model_is_read_under_its_longer_names(tmp_path, llama):
    model = randomize(LlamaForCausalLM(llama[1].config).double(), 5)
    model.save_pretrained(tmp_path)
    assert worst_position(tmp_path, model.model, layer=2) < 1e-5


def test_dtype_is_the_checkpoints_own_unless_asked_for(llama):
    assert load_attention(llama[0]).q_proj.weight.dtype == torch.float64
    assert load_attention(llama[0], dtype=torch.bfloat16).q_proj.weight.dtype == torch.bfloat16


def test_two_formats_in_a_layer_are_refused_unless_one_is_asked_for(copied):
    folder, tensors = copied
    one = next(name for name in tensors if name.endswith("layers.0.self_attn.k_proj.weight"))
    save_file(tensors | {one: tensors[one].bfloat16()}, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"k_proj.bias is torch.float64 and k_proj.weight torch.bfloat16; expected one"
    ):
        load_attention(folder)
    assert load_attention(folder, dtype=torch.float32).k_proj.weight.dtype == torch.float32
    assert load_attention(folder, layer=1).k_proj.weight.dtype == torch.float64


@pytest.fixture
def copied(tmp_path, llama):
    """The Llama folder, copied, so that a test may spoil it; with its tensors."""
    for file in llama[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path, load_file(tmp_path / "model.safetensors")


def test_a_layer_out_of_range_is_refused(llama):
    for layer in (3, -1):
        with pytest.raises(ValueError, match=f"layer is {layer}; expected 0 to 2"):
            load_attention(llama[0], layer=layer)


def test_a_missing_tensor_is_named(copied):
    folder, tensors = copied
    del tensors["layers.1.self_attn.k_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"k_proj\.weight is missing; expected shape \[20, 36\]"):
        load_attention(folder, layer=1)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(copied):
    folder, tensors = copied
    tensors["layers.1.self_attn.k_proj.weight"] = torch.zeros(19, 36)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"k_proj\.weight has shape \[19, 36\]; expected \[20, 36\]"):
        load_attention(folder, layer=1)


def test_a_tensor_that_the_layer_does_not_know_is_named(copied):
    folder, tensors = copied
    tensors["layers.1.self_attn.q_norm.weight"] = torch.ones(10)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"q_norm\.weight is there; expected"):
        load_attention(folder, layer=1)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_file_is_named(copied, keep):
    folder, _ = copied
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        load_attention(folder)


def test_missing_files_are_named(copied):
    folder, _ = copied
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_attention(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_attention(folder)


def test_a_family_without_a_layer_of_ours_is_refused(copied):
    folder, _ = copied
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(hf | {"model_type": "qwen3"}))
    with pytest.raises(ValueError, match="model_type is 'qwen3'; expected one of"):
        load_attention(folder)


def test_the_layer_is_the_public_class(llama):
    assert isinstance(load_attention(llama[0]), GroupedQueryAttention)
