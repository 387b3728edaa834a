"""One attention layer out of a Hugging Face checkpoint folder: ``config.json`` beside safetensors files.

Only the tensors of that layer are read, through a memory map: a layer of a 671B model loads on a laptop. No file
outside the folder is opened, and none but safetensors and JSON.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mla_edu.config import MLAConfig
from mla_edu.hf import config_from_hf
from mla_edu.hf.config_file import read_hf_config, read_json_object
from mla_edu.hf.reader import read
from mla_edu.layers.gqa import GroupedQueryAttention
from mla_edu.layers.mla import MultiHeadLatentAttention

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Where the text model's layers stand: in a model of its own, under a head, and in a multimodal model.
PREFIXES = ("", "model.", "language_model.", "language_model.model.", "model.language_model.")


def load_attention(
    folder: str | Path, layer: int = 0, dtype: torch.dtype | None = None
) -> GroupedQueryAttention | MultiHeadLatentAttention:
    """The attention layer ``layer`` of the checkpoint in ``folder``, with its configuration as ``.config``.

    Of DeepSeek-V3.2 and GLM-5 (``deepseek_v32``, ``glm_moe_dsa``) this is the dense path: their indexer, which picks
    ``index_topk`` tokens for each query, is left out. Up to that many tokens the two are equal.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``, or shards beside ``model.safetensors.index.json``.
        layer: the index that transformers uses in its cache, from 0. LongCat-Flash has two per block.
        dtype: of the weights; None for the checkpoint's own.

    Raises:
        FileNotFoundError: ``config.json`` or a safetensors file is missing.
        ValueError: the family is not supported, ``layer`` is out of range or no softmax attention, the index is not
            one, or a tensor is missing, unexpected, quantised, truncated or of another shape than the configuration
            asks for.
        ImportError: ``safetensors`` is not installed.
    """
    folder = Path(folder)
    hf = read_hf_config(folder)
    config = config_from_hf(hf)
    reading = read(hf)
    weights = _read_tensors(folder, reading.module_name(layer), layer)
    ignored = reading.family.ignored_tensors
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(ignored)} if ignored else weights
    # Rotary tables that some older checkpoints carry; they follow from the configuration.
    weights.pop("rotary_emb.inv_freq", None)

    attention: GroupedQueryAttention | MultiHeadLatentAttention
    if isinstance(config, MLAConfig):
        attention = MultiHeadLatentAttention(config, device="meta")
    else:
        attention = GroupedQueryAttention(config, device="meta")
    _check_fit(weights, attention.state_dict(), f"layer {layer} of {folder}")
    attention.load_state_dict(weights, assign=True)
    return attention.to(dtype) if dtype else attention


def _read_tensors(folder: Path, module: str, layer: int) -> dict[str, Tensor]:
    """The tensors of one module, by their names within it; none where the checkpoint has no such module."""
    places = _index(folder)
    if places is None:
        single = folder / "model.safetensors"
        with _opened(single) as tensors:
            places = dict.fromkeys(tensors.keys(), single.name)
    weights = {}
    parts = _of_module(list(places), module, folder)
    for path in sorted({folder / places[name] for name in parts}):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a shard with tensors of layer {layer}")
        with _opened(path) as tensors:
            there = set(tensors.keys())
            for name in (name for name in parts if folder / places[name] == path):
                if name not in there:
                    raise ValueError(f"{path} has no {name}; expected it, as the index says")
                weights[parts[name]] = tensors.get_tensor(name)
    return weights


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, memory-mapped."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError("load_attention needs safetensors: pip install 'mla-edu[hf]'") from None
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None


def _of_module(names: list[str], module: str, folder: Path) -> dict[str, str]:
    """Of a checkpoint's names those of the text model's module, each with its name within it."""
    found = {prefix: [name for name in names if name.startswith(f"{prefix}{module}.")] for prefix in PREFIXES}
    found = {prefix: own for prefix, own in found.items() if own}
    if len(found) > 1:
        where = " and ".join(f"{prefix}{module}" for prefix in found)
        raise ValueError(f"{folder} has {where}; expected one of them, since both may be the layer")
    return {name: name.removeprefix(f"{prefix}{module}.") for prefix, own in found.items() for name in own}


def _index(folder: Path) -> dict[str, str] | None:
    """The checkpoint's tensors, each with its file in the folder; None where one file holds them all."""
    path, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not path.is_file():
        if not single.is_file():
            raise FileNotFoundError(f"{folder} has neither {single.name} nor {path.name}")
        return None
    index = read_json_object(path, "an index")
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path}: weight_map is {str(places)[:40]}; expected a file name for each tensor")
    for name, file in places.items():
        plain = isinstance(file, str) and file.endswith(".safetensors") and Path(file).name == file and "\\" not in file
        if not plain:
            raise ValueError(f"{path}: weight_map[{name!r}] is {file!r}; expected a .safetensors file of that folder")
    if single.is_file() and set(places.values()) != {single.name}:
        raise ValueError(
            f"{folder} has {single.name} beside {path.name}, which names other files; expected one of them"
        )
    return places


def _check_fit(weights: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    for name, tensor in weights.items():
        if name.endswith("weight_scale_inv") or tensor.dtype not in FLOATS:
            raise ValueError(f"{where}: {name} is {tensor.dtype}, of quantised weights; expected them dequantised")
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise ValueError(f"{where}: {name} is missing; expected shape {list(expected[name].shape)}")
        if name not in expected:
            raise ValueError(f"{where}: {name} is there; expected {', '.join(sorted(expected))} and no more")
        if weights[name].shape != expected[name].shape:
            found, wanted = list(weights[name].shape), list(expected[name].shape)
            raise ValueError(f"{where}: {name} has shape {found}; expected {wanted}, from the configuration")
