"""Which file of a folder a tensor is read from: the one that the index names, of the text model, and none outside."""

import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mla_edu import MLAConfig, MultiHeadLatentAttention
from mla_edu.models.load import PREFIXES, load_attention, load_model
from mla_edu.testing import randomize

WIDTHS = {"q_lora_rank": None, "kv_lora_rank": 6, "qk_nope_head_dim": 2, "qk_rope_head_dim": 4, "v_head_dim": 3}
CONFIG = MLAConfig(hidden_size=8, num_attention_heads=3, **WIDTHS)
HF = {"model_type": "deepseek_v3", "hidden_size": 8, "num_attention_heads": 3, "num_hidden_layers": 2, **WIDTHS}
INDEX = "model.safetensors.index.json"


def tensors(prefix, seed):
    """The weights of one attention layer, other ones for every seed."""
    layer = randomize(MultiHeadLatentAttention(CONFIG), seed)
    return {f"{prefix}.{name}": tensor.clone() for name, tensor in layer.state_dict().items()}


def checkpoint(folder, files, index=None):
    """A folder with these safetensors files, and an index of these places or of this text."""
    (folder / "config.json").write_text(json.dumps(HF))
    for name, content in files.items():
        save_file(content, folder / name)
    if index is not None:
        (folder / INDEX).write_text(index if isinstance(index, str) else json.dumps({"weight_map": index}))
    return folder


def is_layer(loaded, seed):
    own = tensors("x", seed)
    return all(torch.equal(tensor, own[f"x.{name}"]) for name, tensor in loaded.state_dict().items())


OWN = "model.layers.0.self_attn"
OTHERS = [
    "model.mtp.layers.0.self_attn",
    "mtp.layers.0.self_attn",
    "visual.layers.0.self_attn",
    "vision_tower.encoder.layers.0.self_attn",
    "model.vision_tower.model.layers.0.self_attn",
    "model.layers.10.self_attn",
    "model.layers.1.mtp.layers.0.self_attn",
    "draft.model.layers.0.self_attn",
    "xmodel.layers.0.self_attn",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("indexed", [False, True])
def test_tensors_of_other_modules_are_left_alone(tmp_path, prefix, other, indexed):
    files = {"model.safetensors": tensors(f"{prefix}layers.0.self_attn", 1) | tensors(other, 2)}
    index = dict.fromkeys(files["model.safetensors"], "model.safetensors") if indexed else None
    assert is_layer(load_attention(checkpoint(tmp_path, files, index)), 1)


@pytest.mark.parametrize("indexed", [False, True])
def test_two_modules_that_may_both_be_the_layer_are_refused(tmp_path, indexed):
    content = tensors(OWN, 1) | tensors("language_model.model.layers.0.self_attn", 2)
    index = dict.fromkeys(content, "model.safetensors") if indexed else None
    folder = checkpoint(tmp_path, {"model.safetensors": content}, index)
    with pytest.raises(ValueError, match=f"{OWN} and language_model.{OWN}; expected"):
        load_attention(folder)


@settings(max_examples=30)
@given(data=st.data())
def test_a_tensor_comes_from_the_file_that_the_index_names(tmp_path_factory, data):
    """Every tensor lies, right or stale, in any of three shards; the index says where the right one is."""
    right, stale = tensors(OWN, 1), tensors(OWN, 2)
    names = [f"model-{i}-of-3.safetensors" for i in (1, 2, 3)]
    files, index = {name: {"pad": torch.zeros(1)} for name in names}, {}
    for tensor in right:
        index[tensor] = data.draw(st.sampled_from(names))
        for name in names:
            if name == index[tensor]:
                files[name][tensor] = right[tensor]
            elif data.draw(st.booleans()):
                files[name][tensor] = stale[tensor]
    assert is_layer(load_attention(checkpoint(tmp_path_factory.mktemp("shards"), files, index)), 1)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("", "is empty; expected a JSON object"),
        ("{", "is not valid JSON"),
        ('{"weight_map": {', "is not valid JSON"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "holds a list; expected a JSON object"),
        ("null", "holds null; expected a JSON object"),
        ("{}", "weight_map is None; expected a file name for each tensor"),
        ('{"weight_map": []}', r"weight_map is \[\]; expected"),
        ('{"weight_map": {}}', r"weight_map is \{\}; expected"),
        ('{"weight_map": "model.safetensors"}', "weight_map is model.safetensors; expected"),
        ({"a": None}, r"weight_map\['a'\] is None; expected a .safetensors file"),
        ({"a": 3}, r"weight_map\['a'\] is 3; expected"),
        ({"a": ["model.safetensors"]}, "expected a .safetensors file of that folder"),
        ({"a": ""}, "expected a .safetensors file of that folder"),
        ({"a": "pytorch_model.bin"}, "is 'pytorch_model.bin'; expected a .safetensors file"),
    ],
    ids=str,
)
def test_a_bad_index_is_one_error_that_names_it(tmp_path, index, message):
    folder = checkpoint(tmp_path, {"shard.safetensors": tensors(OWN, 1)}, index)
    with pytest.raises(ValueError, match=rf"model\.safetensors\.index\.json.*{message}") as caught:
        load_attention(folder)
    assert "\n" not in str(caught.value)


def test_an_index_that_is_no_text_is_one_error(tmp_path):
    folder = checkpoint(tmp_path, {"shard.safetensors": tensors(OWN, 1)})
    (folder / INDEX).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"index\.json is not valid JSON"):
        load_attention(folder)


@pytest.mark.parametrize("place", ["../other/model.safetensors", "{other}/model.safetensors", "sub/model.safetensors",
                                   "..\\other\\model.safetensors", "./../other/model.safetensors"])  # fmt: skip
def test_nothing_outside_the_folder_is_opened(tmp_path, monkeypatch, place):
    other, folder = tmp_path / "other", tmp_path / "folder"
    for path in (other, folder, folder / "sub"):
        path.mkdir()
    for path in (other, folder / "sub"):
        save_file(tensors(OWN, 1), path / "model.safetensors")
    checkpoint(folder, {}, dict.fromkeys(tensors(OWN, 1), place.format(other=other)))
    monkeypatch.setattr("safetensors.safe_open", lambda path, **_: pytest.fail(f"opened {path}"))
    with pytest.raises(ValueError, match=r"index\.json: weight_map\[.*expected a \.safetensors file of that folder"):
        load_attention(folder)


def test_a_link_in_the_folder_is_followed_as_the_hubs_cache_has_them(tmp_path):
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    for path in (blobs, folder):
        path.mkdir()
    save_file(tensors(OWN, 1), blobs / "f00d")
    checkpoint(folder, {}, dict.fromkeys(tensors(OWN, 1), "shard.safetensors"))
    os.symlink(blobs / "f00d", folder / "shard.safetensors")
    assert is_layer(load_attention(folder), 1)


def test_a_shard_or_tensor_that_the_index_promises_and_the_folder_lacks_is_named(tmp_path):
    right = tensors(OWN, 1)
    index = dict.fromkeys(right, "shard.safetensors")
    missing = f"{OWN}.o_proj.weight"
    folder = checkpoint(tmp_path, {"shard.safetensors": {k: v for k, v in right.items() if k != missing}}, index)
    with pytest.raises(ValueError, match=rf"shard\.safetensors has no {missing}; expected it"):
        load_attention(folder)
    (folder / "shard.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard\.safetensors: no such file"):
        load_attention(folder)


def test_a_single_file_beside_an_index_of_other_files_is_refused(tmp_path):
    right = tensors(OWN, 1)
    files = {"model.safetensors": tensors(OWN, 2), "shard.safetensors": right}
    folder = checkpoint(tmp_path, files, dict.fromkeys(right, "shard.safetensors"))
    with pytest.raises(ValueError, match=r"model\.safetensors beside model\.safetensors\.index\.json"):
        load_attention(folder)


def test_shards_of_other_layers_are_not_opened(tmp_path):
    index = dict.fromkeys(tensors(OWN, 1), "a.safetensors")
    index |= dict.fromkeys(tensors("model.layers.1.self_attn", 2), "b.safetensors")
    folder = checkpoint(tmp_path, {"a.safetensors": tensors(OWN, 1)}, index)
    (folder / "b.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert is_layer(load_attention(folder), 1)
    with pytest.raises(ValueError, match=r"b\.safetensors is not a whole safetensors file"):
        load_attention(folder, layer=1)


@pytest.mark.parametrize("layer", [True, 1.0, "0", None])
def test_a_layer_that_is_no_index_is_refused(tmp_path, layer):
    folder = checkpoint(tmp_path, {"model.safetensors": tensors(OWN, 1)})
    with pytest.raises(ValueError, match="expected 0 to 1"):
        load_attention(folder, layer=layer)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a", "x" * 5000 + ".safetensors"),
        ("a", "x" * 244 + ".safetensors"),
        ("a", "é" * 130 + ".safetensors"),
        ("a", "\x1b[31m.safetensors"),
        ("a", "a\0b.safetensors"),
        ("a", "a\nb.safetensors"),
        ("a", "\udcff.safetensors"),
        ("a" * 5000, [["x" * 99]] * 99),
    ],
    ids=range(8),
)
def test_a_name_that_no_shard_can_have_is_one_short_error(tmp_path, name, file):
    folder = checkpoint(tmp_path, {}, {name: file})
    for load in (load_attention, load_model):
        with pytest.raises(
            ValueError, match=r"weight_map\['a+.* is .*; expected a .safetensors file of that"
        ) as caught:
            load(folder)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("there", "hint"),
    [
        ("pytorch_model.bin", "but pytorch_model.bin: expected safetensors, as save_pretrained of transformers writes"),
        ("pytorch_model-00001-of-00002.bin", "but pytorch_model-00001-of-00002.bin: expected safetensors"),
        ("consolidated.00.pth", "but consolidated.00.pth: expected safetensors"),
        ("model-q4.gguf", "but model-q4.gguf: expected the checkpoint in safetensors that it was made from"),
        ("adapter_model.safetensors", "but adapter_model.safetensors: expected one of the two names"),
        ("tokenizer.json", "has neither model.safetensors nor model.safetensors.index.json$"),
    ],
)
def test_a_folder_of_other_weights_is_told_what_to_do(tmp_path, there, hint):
    folder = checkpoint(tmp_path, {})
    (folder / there).write_bytes(b"PK\x03\x04")
    for load in (load_attention, load_model):
        with pytest.raises(FileNotFoundError, match=hint):
            load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", INDEX])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path.name, path)])
def test_weights_that_are_no_file_are_said_to_be_there(tmp_path, name, make):
    folder = checkpoint(tmp_path, {})
    make(folder / name)
    with pytest.raises(ValueError, match=f"{name} is no regular file; expected the weights of a checkpoint"):
        load_attention(folder)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"folder": 1}, TypeError, "folder is 1; expected a path"),
        ({"folder": "nowhere"}, FileNotFoundError, "nowhere: no such folder; expected the folder of a checkpoint"),
        ({"folder": "x" * 5000}, FileNotFoundError, "xxx.*: no such folder"),
        ({"folder": "{}/config.json"}, ValueError, "config.json is no folder; expected the folder of .*, such as {}$"),
        ({"dtype": "bf16"}, TypeError, "dtype is 'bf16'; expected a torch.dtype"),
        ({"dtype": torch.int8}, ValueError, "dtype is torch.int8; expected torch.float64"),
        ({"device": "nowhere"}, ValueError, "device is 'nowhere'; expected one that is there"),
        ({"device": 99}, ValueError, "device is 99; expected one that is there"),
        ({"mtp": "no"}, TypeError, "mtp is 'no'; expected True or False"),
    ],
)
def test_an_argument_is_refused_before_a_file_is_opened(tmp_path, monkeypatch, arguments, error, message):
    checkpoint(tmp_path, {"model.safetensors": tensors(OWN, 1)})
    monkeypatch.setattr("safetensors.safe_open", lambda path, **_: pytest.fail(f"opened {path}"))
    given = {"folder": tmp_path} | arguments
    if isinstance(given["folder"], str):
        given["folder"] = given["folder"].format(tmp_path)
    with pytest.raises(error, match=message.format(tmp_path)):
        load_model(**given)
    if not arguments.keys() & {"device", "mtp"}:
        with pytest.raises(error, match=message.format(tmp_path)):
            load_attention(**given)
