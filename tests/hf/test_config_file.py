"""What a ``config.json`` may be: an encoding, a size, a depth, the text model within it; and what other files are."""

import json

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from mla_edu import config_from_hf
from mla_edu.cost import index_cache_bytes, kv_cache_bytes
from mla_edu.hf import spec_from_hf
from mla_edu.hf.config_file import CONFIG_BYTES, PARTS, read_hf_config, read_json_object

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
QWEN = {"model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28}
QWEN |= {"num_key_value_heads": 4}


def written(folder, content: bytes | str, name: str = "config.json"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_encoding_of_unicode_is_read(tmp_path, encoding):
    path = written(tmp_path, json.dumps(LLAMA).encode(encoding))
    assert read_hf_config(path) == LLAMA


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\xff", "not valid JSON: its bytes are no text in UTF-8, UTF-16 or UTF-32"),
        (b"", "is empty; expected a JSON object"),
        (b"{", "not valid JSON"),
        (b"[1]", "holds a list; expected a JSON object"),
        (b"null", "holds null; expected a JSON object"),
        (b"[" * 200_000, "not valid JSON: nested too deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number has 5000 digits; expected at most 40"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file; expected a config.json"),
        (b"PK\x03\x04....", "is a ZIP archive, as PyTorch saves weights; expected a config.json"),
        (b'{"peft_type": "LORA", "r": 8}', "is the adapter_config.json of an adapter"),
        (b'{"dim": 4096, "n_layers": 32, "n_heads": 32}', "is a params.json of Meta's or Mistral's code"),
        (
            b'{"dim": 7168, "inter_dim": 1, "n_layers": 61, "n_heads": 128}',
            "is a configuration of DeepSeek's inference",
        ),
        (b'{"d_model": 768, "n_layer": 24, "ssm_cfg": {}}', "is a configuration of mamba-ssm"),
        (b'{"metadata": {}, "weight_map": {}}', "is an index of weights"),
        (b'{"model": {"layers": ["mla"]}, "train": {}}', "is the configuration of a training run; expected that of a"),
        (b'{"hidden_size": 4}', "model_type is None; expected the name of a model family"),
        (b'{"model_type": ""}', "model_type is ''; expected the name of a model family"),
        (b'{"model_type": "a\\nb"}', r"model_type is 'a\\nb'; expected the name"),
    ],
)
def test_another_file_is_one_line_that_says_what_it_is(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_hf_config(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["run.yaml", "run.yml"])
def test_a_yaml_file_is_said_to_be_one(tmp_path, name):
    (tmp_path / name).write_text("model: {}")
    with pytest.raises(ValueError, match=f"{name} is a YAML file; expected a config.json or a folder that holds one"):
        read_hf_config(tmp_path / name)


def test_a_file_of_weights_given_by_mistake_is_not_read_whole(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(2**40)  # a sparse file: nothing is written
    with pytest.raises(ValueError, match=f"has more than {CONFIG_BYTES // 2**20} MiB"):
        read_hf_config(path)


@given(st.binary(max_size=40))
def test_any_bytes_are_an_object_or_one_line(tmp_path_factory, content):
    path = written(tmp_path_factory.mktemp("any"), content)
    try:
        found = read_json_object(path, "a config.json")
    except ValueError as error:
        assert "\n" not in str(error).replace(str(path), "")
        return
    assert isinstance(found, dict)


@pytest.mark.parametrize("part", PARTS)
def test_the_text_model_is_found_where_a_larger_one_keeps_it(part):
    spec = spec_from_hf({"model_type": "someones_vlm", part: QWEN, "vision_config": {"hidden_size": 3}})
    assert kv_cache_bytes(spec, 1) == 57_344  # 28 layers x 2 x 4 heads x 128 numbers x 2 bytes
    assert spec.cautions == (f"'someones_vlm' is not known: only its {part} is read, a 'qwen2' model",)


def test_a_text_model_two_levels_down_is_found():
    text = {key: value for key, value in QWEN.items() if key != "model_type"}
    thinker = {"model_type": "qwen2_5_omni_thinker", "text_config": text}
    spec = spec_from_hf({"model_type": "qwen2_5_omni", "thinker_config": thinker, "talker_config": {"a": 1}})
    assert kv_cache_bytes(spec, 1) == 57_344 and spec.title == "qwen2_5_omni_text" and not spec.cautions
    endless = {"model_type": "new", "llm_config": QWEN}
    for _ in range(40):
        endless = {"model_type": "new", "llm_config": endless}
    with pytest.raises(ValueError, match="'llm_config' is nested deeper than 16"):
        spec_from_hf(endless)


# Sizes of the published models by hand; their files leave them to the config class of the text model.
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ({"model_type": "llava", "text_config": {"model_type": "llama"}}, 32 * 2 * 32 * 128 * 2),
        ({"model_type": "llava", "text_config": {"vocab_size": 32064}}, 32 * 2 * 32 * 128 * 2),
        ({"model_type": "idefics2", "text_config": {"model_type": "mistral"}}, 32 * 2 * 8 * 128 * 2),
    ],
)
def test_what_a_part_leaves_out_is_its_config_classes_and_said(file, expected):
    spec = spec_from_hf(file)
    assert kv_cache_bytes(spec, 1) == expected
    family = spec.title
    assert spec.cautions == (
        f"its config.json gives no num_hidden_layers and no hidden_size: those of '{family}' by default",
    )
    theirs = transformers.CONFIG_MAPPING[file["model_type"]].from_dict(file)
    assert spec_from_hf(theirs).cache == spec.cache


def test_minimax_m3_names_its_family_only_outside_and_has_index_keys_in_57_layers():
    sparse = {"sparse_attention_freq": [0] * 3 + [1] * 57, "sparse_index_dim": 128}
    text = {"hidden_size": 6144, "num_hidden_layers": 60, "num_attention_heads": 64, "num_key_value_heads": 4}
    spec = spec_from_hf(
        {"model_type": "minimax_m3_vl", "text_config": text | {"head_dim": 128, "sparse_attention_config": sparse}}
    )
    assert (kv_cache_bytes(spec, 1), index_cache_bytes(spec, 1)) == (122_880, 14_592)


def test_step_3_7_lists_the_layers_of_its_drafter_too():
    kinds = (["full_attention"] + ["sliding_attention"] * 3) * 12
    text = {"model_type": "step3p7_text", "num_hidden_layers": 45, "hidden_size": 4096, "num_attention_heads": 64}
    text |= {"num_key_value_heads": 8, "head_dim": 128, "sliding_window": 512, "layer_types": kinds}
    spec = spec_from_hf({"model_type": "step3p7", "text_config": text | {"num_nextn_predict_layers": 3}})
    assert kv_cache_bytes(spec, 131_072) == 6_511_656_960  # (12 x 131,072 + 33 x 512) x 2 x 8 x 128 x 2


def test_a_file_with_two_text_models_or_none_is_refused():
    with pytest.raises(ValueError, match="has text_config and llm_config; expected one text model"):
        spec_from_hf({"model_type": "new", "text_config": QWEN, "llm_config": QWEN})
    with pytest.raises(ValueError, match="text_config is None; expected the text model of 'llava' in it"):
        spec_from_hf({"model_type": "llava", "hidden_size": 4096})
    with pytest.raises(ValueError, match="is_encoder_decoder"):
        spec_from_hf({"model_type": "new", "is_encoder_decoder": True, "text_config": QWEN})


def test_a_configuration_of_transformers_is_read_as_its_file():
    config = transformers.LlamaConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=4)
    assert spec_from_hf(config).cache == spec_from_hf(LLAMA).cache
    assert config_from_hf(config) == config_from_hf(LLAMA)
    nested = transformers.LlavaConfig(text_config=config)
    assert spec_from_hf(nested).cache == spec_from_hf(LLAMA).cache


@pytest.mark.parametrize("source", [None, 3, [LLAMA], transformers.LlamaConfig])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(TypeError, match="source is .*; expected a path, a dict or a configuration of transformers"):
        spec_from_hf(source)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (10**400, "'hidden_size' holds a number of more than 40 digits"),
        ({1, 2}, "'hidden_size' holds a set; expected what JSON can hold"),
    ],
)
def test_a_dict_that_is_no_json_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        spec_from_hf(LLAMA | {"hidden_size": value})
