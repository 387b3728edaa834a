"""Whole models out of folders that transformers wrote: the same logits, and nothing read that does not fit."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from mla_edu.models import ModelConfig, load_model
from mla_edu.models.checkpoint import dequantize_blocks
from mla_edu.testing import relative_error
from tiny_models import MODELS, draw_tokens, their_model

ROUNDED = 1e-5


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    family, options = MODELS[request.param]
    theirs = their_model(family, options)
    theirs.save_pretrained(tmp_path / "model", max_shard_size="20kB")
    if request.param == "kimi_k2":
        rewrite_config(tmp_path / "model", model_type="kimi_k2")
    return theirs, tmp_path / "model"


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@torch.no_grad()
def test_a_folder_of_shards_gives_the_logits_of_transformers(saved):
    theirs, folder = saved
    assert len(list(folder.glob("*.safetensors"))) > 1
    model, tokens = load_model(folder), draw_tokens(19)
    assert model.embed_tokens.weight.dtype == torch.float64
    assert relative_error(model(tokens), theirs(tokens, use_cache=False).logits) < ROUNDED


@pytest.fixture
def v3(tmp_path):
    """A small V3 in one file."""
    theirs = their_model(*MODELS["deepseek_v3"])
    theirs.save_pretrained(tmp_path / "v3")
    return theirs, tmp_path / "v3"


def rewrite(folder, change):
    """The tensors of a folder with one file, changed."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_dtype_and_device_are_as_asked_and_the_bias_stays_exact(v3):
    model = load_model(v3[1], dtype=torch.bfloat16, device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    theirs = v3[0].model.layers[1].mlp.gate.e_score_correction_bias
    assert torch.equal(model.layers[1].mlp.gate.e_score_correction_bias, theirs)


@torch.no_grad()
def test_layers_behind_the_last_one_are_left_out_and_named(v3):
    theirs, folder = v3
    rewrite(folder, lambda tensors: tensors.update({"model.layers.3.eh_proj.weight": torch.zeros(2, 2)}))
    with pytest.warns(UserWarning, match="layers 3 are left out; they predict further tokens"):
        model = load_model(folder)
    tokens = draw_tokens(7)
    assert relative_error(model(tokens), theirs(tokens, use_cache=False).logits) < ROUNDED


QUANTISED = {"quant_method": "fp8", "weight_block_size": [16, 16], "fmt": "e4m3", "activation_scheme": "dynamic"}


def quantise(weight, block=16):
    """A matrix in e4m3 and a factor for each block, the last ones smaller."""
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // block), -(-columns // block))
    quantised = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            place = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            scales[i, j] = weight[place].abs().max() / 448
            quantised[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
    return quantised, scales


@torch.no_grad()
def test_fp8_weights_are_dequantised_block_by_block(v3):
    theirs, folder = v3

    def change(tensors):
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            tensors[name], tensors[f"{name}_scale_inv"] = quantise(tensors[name].float())

    rewrite(folder, change)
    rewrite_config(folder, quantization_config=QUANTISED)
    model = load_model(folder)
    for place, name in [
        (model.layers[0].self_attn.q_b_proj.weight, "self_attn.q_b_proj.weight"),
        (model.layers[0].mlp.down_proj.weight, "mlp.down_proj.weight"),
    ]:
        exact = theirs.get_parameter(f"model.layers.0.{name}")
        scale = exact.abs().max() / 448
        assert 0 < (place - exact).abs().max() < 2**-3 * exact.abs().max()
        assert ((place - exact).abs() <= 2**-4 * 1.05 * exact.abs() + scale).all()


def test_a_factor_is_of_its_own_block():
    weight = torch.ones(5, 7).to(torch.float8_e4m3fn)
    scales = torch.arange(6.0).view(2, 3)
    expected = torch.tensor([[0.0] * 3 + [1] * 3 + [2]] * 3 + [[3.0] * 3 + [4] * 3 + [5]] * 2)
    assert torch.equal(dequantize_blocks(weight, scales, (3, 3)).float(), expected)
    with pytest.raises(ValueError, match=r"scales has shape \[3, 2\]; expected \[2, 3\], one for each block"):
        dequantize_blocks(weight, scales.T, (3, 3))


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "awq"}, "quant_method 'awq'"),
        ({"quant_method": "gptq", "bits": 4}, "quant_method 'gptq'"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_method 'modelopt'"),
        ({"quant_method": "fp8"}, "weight_block_size None"),
        ("gguf", "quant_method 'gguf'"),
    ],
)
def test_other_quantisation_is_refused_by_name(v3, quantization, message):
    rewrite_config(v3[1], quantization_config=quantization)
    with pytest.raises(ValueError, match=message):
        load_model(v3[1])


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("model.norm.weight"), r"model.norm.weight is missing; expected shape \[40\]"),
        (drop("model.layers.1.mlp.experts.7.up_proj.weight"), r"experts.7.up_proj.weight is missing"),
        (put("model.layers.1.mlp.experts.12.up_proj.weight", torch.zeros(9, 40)), "experts.12.up_proj.weight is there"),
        (put("model.layers.0.self_attn.k_proj.weight", torch.zeros(1)), "k_proj.weight is there; expected no such"),
        (put("lm_head.weight", torch.zeros(54, 40)), r"lm_head.weight has shape \[54, 40\]; expected \[53, 40\]"),
        (put("model.norm.weight", torch.zeros(40, dtype=torch.int8)), "model.norm.weight is I8, of quantised weights"),
    ],
)
def test_tensors_that_do_not_fit_are_named_before_any_is_read(v3, monkeypatch, change, message):
    rewrite(v3[1], change)
    monkeypatch.setattr("mla_edu.models.load.Checkpoint.read", lambda *arguments: pytest.fail("read"))
    with pytest.raises(ValueError, match=message):
        load_model(v3[1])


def test_a_truncated_file_is_said(v3):
    path = v3[1] / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_model(v3[1])


def test_another_family_is_refused(v3):
    rewrite_config(v3[1], model_type="gpt2")
    with pytest.raises(ValueError, match="model_type is 'gpt2'; expected one of deepseek_v2"):
        load_model(v3[1])


def test_the_configuration_comes_along(v3):
    assert load_model(v3[1]).config == ModelConfig.from_hf(v3[1])
