"""One attention layer out of a Hugging Face checkpoint folder: ``config.json`` beside safetensors files.

Only the tensors of that layer are read, through a memory map: a layer of a 671B model loads on a laptop.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mla_edu.config import MLAConfig, config_from_hf, read_hf_config, require
from mla_edu.layers.gqa import GroupedQueryAttention
from mla_edu.layers.mla import MultiHeadLatentAttention

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SPARSE_FAMILIES = ("deepseek_v32", "glm_moe_dsa")


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
        ValueError: the family is not supported, ``layer`` is out of range or no softmax attention, or a tensor is
            missing, unexpected, quantised, truncated or of another shape than the configuration asks for.
        ImportError: ``safetensors`` is not installed.
    """
    folder = Path(folder)
    hf = read_hf_config(folder)
    config = config_from_hf(hf)
    weights = _read_tensors(folder, _module_name(hf, layer), layer)
    if hf["model_type"] in SPARSE_FAMILIES:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("indexer.")}
    # Rotary tables that some older checkpoints carry; they follow from the configuration.
    weights.pop("rotary_emb.inv_freq", None)

    layer_class = MultiHeadLatentAttention if isinstance(config, MLAConfig) else GroupedQueryAttention
    attention = layer_class(config, device="meta")
    _check_fit(weights, attention.state_dict(), f"layer {layer} of {folder}")
    attention.load_state_dict(weights, assign=True)
    return attention.to(dtype) if dtype else attention


def _module_name(hf: Mapping[str, Any], layer: int) -> str:
    """What the tensors of attention layer ``layer`` are called, up to the names within it."""
    family = hf["model_type"]
    num_layers = 2 * require(hf, "num_layers") if family == "longcat_flash" else require(hf, "num_hidden_layers")
    if not 0 <= layer < num_layers:
        raise ValueError(f"layer is {layer}; expected 0 to {num_layers - 1}")
    if family == "longcat_flash":
        return f"layers.{layer // 2}.self_attn.{layer % 2}"
    if family == "kimi_linear" and layer not in (full := _kimi_full_attention_layers(hf)):
        raise ValueError(f"layer is {layer}, which has linear attention; expected one with full attention, of {full}")
    return f"layers.{layer}.self_attn"


def _kimi_full_attention_layers(hf: Mapping[str, Any]) -> list[int]:
    if hf.get("layer_types"):
        return [i for i, kind in enumerate(hf["layer_types"]) if kind == "full_attention"]
    numbers = (hf.get("linear_attn_config") or {}).get("full_attn_layers")
    if not numbers:
        raise ValueError("layer_types is missing; expected it, or linear_attn_config with full_attn_layers")
    return [number - 1 for number in numbers]  # there they are counted from 1


def _read_tensors(folder: Path, module: str, layer: int) -> dict[str, Tensor]:
    """The tensors of one module, by their names within it."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError("load_attention needs safetensors: pip install 'mla-edu[hf]'") from None

    within_module = re.compile(rf"(?:^|\.){re.escape(module)}\.(.+)$")
    weights = {}
    for path, names in _files(folder).items():
        if names is not None and not any(map(within_module.search, names)):
            continue
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a shard with tensors of layer {layer}")
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (a safetensors file is no dict)
                    if match := within_module.search(name):
                        weights[match[1]] = tensors.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
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
