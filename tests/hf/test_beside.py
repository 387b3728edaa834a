"""The weights and the cache's format by the files of a folder."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from mla_edu.cli import app
from mla_edu.cost import weight_bytes
from mla_edu.hf import spec_from_hf

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    def made(config=LLAMA, **files):
        (tmp_path / "config.json").write_text(json.dumps(config))
        for name, content in files.items():
            (tmp_path / name.replace("__", ".")).write_text(json.dumps(content))
        return tmp_path

    return made


def single(tensors, size):
    """A safetensors file of float32 tensors, by begin, end and shape, with so many bytes behind its header."""
    named = {n: {"dtype": "F32", "shape": shape, "data_offsets": place} for n, (*place, shape) in tensors.items()}
    header = json.dumps(named).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def index(**metadata):
    return {INDEX.replace(".", "__"): {"metadata": metadata, "weight_map": {"a": "b"}}}


@pytest.mark.parametrize(
    ("config", "metadata", "parameters", "weights"),
    [
        ({"dtype": "bfloat16"}, {"total_size": 16_060_522_496}, 8_030_261_248, 16_060_522_496),  # Llama-3-8B's
        ({"torch_dtype": "float32"}, {"total_size": 4_000_000}, 1_000_000, 4_000_000),
        ({"torch_dtype": "bfloat16"}, {"total_size": 4e6}, 2_000_000, 4_000_000),
        ({"dtype": "bfloat16"}, {"total_size": 4_000_001, "total_parameters": 1_999_999}, 1_999_999, 3_999_998),
        ({"quantization_config": {"quant_method": "fp8"}}, {"total_size": 4_000_000}, 4_000_000, 4_000_000),
        ({"quantization_config": {"quant_method": "mxfp4"}}, {"total_size": 4000}, None, None),
        ({"quantization_config": {"quant_method": "awq"}, "dtype": "float16"}, {"total_size": 4000}, None, None),
        ({}, {"total_size": 4000}, None, None),
        ({"dtype": "bfloat16"}, {}, None, None),
    ],
)
def test_parameters_follow_from_the_index_beside_the_file(folder, config, metadata, parameters, weights):
    spec = spec_from_hf(folder(LLAMA | config, **index(**metadata)))
    assert spec.num_parameters == parameters and weight_bytes(spec) == weights
    assert spec_from_hf(LLAMA | config).num_parameters is None


def test_a_part_has_the_format_of_the_whole(folder):
    whole = {"model_type": "llava", "dtype": "float16", "text_config": LLAMA}
    assert spec_from_hf(folder(whole, **index(total_size=200))).num_parameters == 100


@pytest.mark.parametrize("size", [-4, 0, True, "big", [4], float("inf"), float("nan")])
def test_a_size_that_is_none_is_refused(folder, size):
    made = folder(LLAMA | {"dtype": "bfloat16"}, **index(total_size=size))
    spec = spec_from_hf(made)
    assert spec.num_parameters is None
    (caution,) = spec.cautions
    assert "total_size is " in caution and caution.endswith("; expected a positive number")


def test_a_single_file_of_weights_is_counted_by_its_header(folder):
    made = folder()
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(2, dtype=torch.bfloat16)}, made / "model.safetensors")
    assert spec_from_hf(made).num_parameters == 17
    save_file({"a": torch.zeros(3, dtype=torch.int8)}, made / "model.safetensors")  # packed, or quantised
    assert spec_from_hf(made).num_parameters is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 20,
        b"\x02" + b"\x00" * 7 + b"[]",
        b"\x05" + b"\x00" * 7 + b"{...}",
        b"version https://git-lfs",
        single({"a": [0, 8, [-1, -2]]}, 8),
        single({"a": [0, 8, [True, 2]]}, 8),
        single({"a": [0, 8, [2]], "b": [4, 12, [2]]}, 12),
        single({"a": [0, 8, [2**62, 2**62]]}, 8),
        single({"a": [0, 8, [2**60] * 200_000]}, 8),
        single({"a": [0, 8, [2]]}, 4),
        single({"a": [0, 8, [2]]}, 2**20),
    ],
    ids=range(13),
)
def test_a_broken_file_of_weights_is_one_line(folder, content):
    made = folder()
    (made / "model.safetensors").write_bytes(content)
    spec = spec_from_hf(made)
    assert spec.num_parameters is None
    (caution,) = spec.cautions
    assert caution.startswith("its parameters are not counted: ") and "is not a whole safetensors file" in caution


def test_weights_beside_a_file_of_another_name_are_not_its_own(folder):
    made = folder(LLAMA | {"dtype": "bfloat16"}, **index(total_size=4_000_000))
    (made / "other.json").write_text(json.dumps(LLAMA | {"dtype": "float32"}))
    assert spec_from_hf(made / "config.json").num_parameters == 2_000_000
    assert spec_from_hf(made / "other.json").num_parameters is None


def asks(bits, kind):
    return {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": bits, "type": kind}}


def test_a_cache_that_the_file_asks_for_is_named(folder):
    spec = spec_from_hf(LLAMA | {"quantization_config": asks(8, "float")})
    assert spec.cautions == ("its kv_cache_scheme asks for a cache in 8 bits: --dtype fp8 counts that",)
    spec = spec_from_hf(LLAMA | {"quantization_config": asks(4, "int")})
    assert spec.cautions == ("its kv_cache_scheme asks for a cache in 4 bits: the figures are for another",)
    part = {"model_type": "llava", "text_config": LLAMA, "quantization_config": asks(8, "float")}
    assert len(spec_from_hf(part).cautions) == 1
    for none in (None, {}, {"num_bits": None}, "fp8"):
        assert spec_from_hf(LLAMA | {"quantization_config": {"kv_cache_scheme": none}}).cautions == ()


@pytest.mark.parametrize(
    ("quantization", "caution"),
    [
        ({"kv_cache_quant_algo": "FP8"}, "asks for a cache in FP8: --dtype fp8 counts that"),
        ({"kv_cache_quant_algo": "NVFP4"}, "asks for a cache in NVFP4: the figures are for another"),
        ({"kv_cache_quant_algo": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_cache_that_a_file_beside_it_asks_for_is_named(folder, quantization, caution):
    found = spec_from_hf(folder(hf_quant_config__json={"quantization": quantization})).cautions
    assert found == (() if caution is None else (f"its hf_quant_config.json {caution}",))


def test_the_command_prints_what_a_reader_of_its_figures_should_know(folder):
    made = folder(LLAMA | {"model_type": "new", "num_key_value_heads": 4, "quantization_config": asks(8, "float")})
    result = CliRunner(env={"COLUMNS": "400", "NO_COLOR": "1"}).invoke(app, ["cache", str(made)])
    assert result.exit_code == 0, result.output
    for caution in ("family 'new' is not known: read as attention over all tokens", "its kv_cache_scheme asks for"):
        assert f"{made}: {caution}" in result.output
    answer = CliRunner().invoke(app, ["cache", str(made), "--json"]).stdout
    assert json.loads(answer)["models"][0]["cautions"] == list(spec_from_hf(made).cautions)
