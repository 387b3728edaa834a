"""One attention layer out of a Hugging Face checkpoint folder: ``config.json`` beside safetensors files.

Only the tensors of that layer are read, through a memory map: a layer of a 671B model loads on a laptop.
"""

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from mla_edu.attention.gqa import GroupedQueryAttention
from mla_edu.config import GQAConfig, config_from_hf, read_hf_config


def load_attention(folder: str | Path, layer: int = 0, dtype: torch.dtype | None = None) -> GroupedQueryAttention:
    """The attention layer ``layer`` of the checkpoint in ``folder``, with its configuration as ``.config``.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``, or shards beside ``model.safetensors.index.json``.
        layer: counted from 0.
        dtype: of the weights; None for the checkpoint's own.

    Raises:
        FileNotFoundError: ``config.json`` or a safetensors file is missing.
        ValueError: the family is not supported, ``layer`` is out of range, or a tensor is missing, unexpected,
            truncated or of another shape than the configuration asks for.
        ImportError: ``safetensors`` is not installed.
    """
    folder = Path(folder)
    hf = read_hf_config(folder)
    config = config_from_hf(hf)
    if not isinstance(config, GQAConfig):
        raise ValueError(f"model_type is {hf['model_type']!r}; expected a family with grouped-query attention")
    num_layers = hf["num_hidden_layers"]
    if not 0 <= layer < num_layers:
        raise ValueError(f"layer is {layer}; expected 0 to {num_layers - 1}")

    attention = GroupedQueryAttention(config, device="meta")
    weights = _read_layer(folder, layer)
    _check_fit(weights, attention.state_dict(), f"layer {layer} of {folder}")
    attention.load_state_dict(weights, assign=True)
    return attention.to(dtype) if dtype else attention


def _read_layer(folder: Path, layer: int) -> dict[str, Tensor]:
    """The tensors of one layer's attention, by their names within it."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError("load_attention needs safetensors: pip install 'mla-edu[hf]'") from None

    within_layer = re.compile(rf"(?:^|\.)layers\.{layer}\.self_attn\.(.+)$")
    weights = {}
    for path, names in _files(folder).items():
        if names is not None and not any(map(within_layer.search, names)):
            continue
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a shard with tensors of layer {layer}")
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (a safetensors file is no dict)
                    if match := within_layer.search(name):
                        weights[match[1]] = tensors.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    # Rotary tables that some older checkpoints carry; they follow from the configuration.
    weights.pop("rotary_emb.inv_freq", None)
    return weights


def _files(folder: Path) -> dict[Path, list[str] | None]:
    """The checkpoint's safetensors files, each with the names of its tensors where an index gives them."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if not index.is_file():
        if not single.is_file():
            raise FileNotFoundError(f"{folder} has neither {single.name} nor {index.name}")
        return {single: None}
    files: dict[Path, list[str] | None] = {}
    for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
        files.setdefault(folder / file, []).append(name)
    return files


def _check_fit(weights: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise ValueError(f"{where}: {name} is missing; expected shape {list(expected[name].shape)}")
        if name not in expected:
            raise ValueError(f"{where}: {name} is there; expected {', '.join(sorted(expected))} and no more")
        if weights[name].shape != expected[name].shape:
            found, wanted = list(weights[name].shape), list(expected[name].shape)
            raise ValueError(f"{where}: {name} has shape {found}; expected {wanted}, from the configuration")
