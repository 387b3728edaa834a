"""Whole models and single attention layers out of Hugging Face checkpoint folders.

Tensors are read through memory maps, one after the other, each to its place: a layer of a 671B model loads on a laptop,
and a model needs little more memory than its weights.
"""

import re
import warnings
from pathlib import Path

import torch
from torch import Tensor

from mla_edu.cache.layer import FLOATS, check_dtype
from mla_edu.config import MLAConfig
from mla_edu.files import check_folder
from mla_edu.hf import config_from_hf
from mla_edu.hf.config_file import read_hf_config
from mla_edu.hf.own import OWN
from mla_edu.hf.reader import read
from mla_edu.layers.gqa import GroupedQueryAttention
from mla_edu.layers.mla import MultiHeadLatentAttention
from mla_edu.models.checkpoint import SCALE, Checkpoint
from mla_edu.models.config import ModelConfig
from mla_edu.models.decoder import Decoder
from mla_edu.validation import check_device, check_flag, readable

# Where the text model's layers stand: in a model of its own, under a head, and in a multimodal model.
PREFIXES = ("", "model.", "language_model.", "language_model.model.", "model.language_model.")
FOLDER = "the folder of a checkpoint, with config.json beside safetensors"


def load_attention(
    folder: str | Path, layer: int = 0, dtype: torch.dtype | None = None
) -> GroupedQueryAttention | MultiHeadLatentAttention:
    """The attention layer ``layer`` of the checkpoint in ``folder``, with its configuration as ``.config``.

    Only the tensors of that layer are read; weights in DeepSeek's fp8 come as bf16. Of DeepSeek-V3.2 and GLM-5
    (``deepseek_v32``, ``glm_moe_dsa``) this is the dense path: their indexer, which picks ``index_topk`` tokens for
    each query, is left out. Up to that many tokens the two are equal.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``, or shards beside ``model.safetensors.index.json``.
        layer: the index that transformers uses in its cache, from 0. LongCat-Flash has two per block.
        dtype: of the weights; None for the checkpoint's own.

    Raises:
        FileNotFoundError: the folder, its ``config.json`` or a safetensors file is missing.
        TypeError: an argument is of the wrong type.
        ValueError: ``folder`` is not one, ``dtype`` not one that a layer computes in, the family is not supported,
            ``layer`` is out of range or no softmax attention, the index is not one, a tensor is missing, unexpected,
            quantised otherwise than in DeepSeek's fp8, truncated or of another shape than the configuration asks for,
            or two are of different formats and ``dtype`` is None.
        ImportError: ``safetensors`` is not installed.
    """
    _check_arguments(folder, dtype)
    folder = Path(folder)
    hf = read_hf_config(folder)
    config = config_from_hf(hf)
    reading = read(hf)
    module = reading.module_name(layer)
    checkpoint = Checkpoint(folder, hf.get("quantization_config"))
    names = _of_module(list(checkpoint.places), module, folder)
    if checkpoint.block is not None:
        names = {name: own for name, own in names.items() if not name.endswith(SCALE)}
    weights = {names[name]: tensor for name, tensor in checkpoint.read(names, f"layer {layer}")}
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
    if dtype is None:
        _check_one_dtype(weights, f"layer {layer} of {folder}")
    attention.load_state_dict(weights, assign=True)
    return attention.to(dtype) if dtype else attention


def load_model(
    folder: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    *,
    mtp: bool = False,
) -> Decoder:
    """The whole model of the checkpoint in ``folder``, with its configuration as ``.config``.

    A module for predicting further tokens (MTP), which DeepSeek-V3 ships behind its last layer, is loaded where ``mtp``
    asks for it, and else left out with a warning that names it. Its copies of embedding and head are not read: they are
    the model's own (DeepSeek-V3, ``README_WEIGHTS.md``). Weights in DeepSeek's fp8 come as bf16.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``, or shards beside ``model.safetensors.index.json``; of a
            family of ``ModelConfig.from_hf``, or written by ``save_model``.
        dtype: of the weights; None for that of the embedding in the checkpoint. The routers' bias stays float32.
        device: of the weights; None for torch's default.
        mtp: with the module that predicts one token further, as ``model.mtp``.

    Raises:
        FileNotFoundError: the folder, its ``config.json`` or a safetensors file is missing.
        TypeError: an argument is of the wrong type.
        ValueError: ``folder`` is not one, ``dtype`` not one that a layer computes in, there is no such ``device``, the
            family is not supported, ``mtp`` asks for what the checkpoint lacks, or a tensor is missing,
            unexpected, quantised otherwise than in DeepSeek's fp8, truncated or of another shape than the configuration
            asks for; says which before any is read.
        ImportError: ``safetensors`` is not installed.
    """
    _check_arguments(folder, dtype)
    check_device(device)
    check_flag("mtp", mtp)
    folder = Path(folder)
    hf = read_hf_config(folder)
    values = {name: value for name, value in hf.items() if name not in ("model_type", "dtype")}
    try:
        if hf["model_type"] == OWN:
            config = ModelConfig(**values if mtp else values | {"num_mtp_layers": 0})
        else:
            config = ModelConfig.from_hf(hf, mtp=mtp)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    checkpoint = Checkpoint(folder, hf.get("quantization_config"))
    further = f"model.layers.{len(config.layers)}."
    if mtp and not (config.num_mtp_layers and any(name.startswith(further) for name in checkpoint.places)):
        raise ValueError(
            f"mtp is True; expected a module for further tokens in {folder}: num_nextn_predict_layers = 1 in its "
            f"config.json, and tensors {further}*"
        )
    shapes, skipped = _without_drafting_layers(checkpoint.shapes(), len(config.layers) + config.num_mtp_layers)
    for shared in ("embed_tokens.weight", "shared_head.head.weight"):
        shapes.pop(further + shared, None)
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    _check_shapes(shapes, checkpoint_places(Decoder(config, device="meta")), folder)
    if skipped:
        warnings.warn(f"{folder}: layers {skipped} are left out; they predict further tokens", stacklevel=2)
    if dtype is None:
        ((_, embedding),) = checkpoint.read(
            [name for name in shapes if name.endswith("embed_tokens.weight")], "the embedding"
        )
        dtype = embedding.dtype
    model = Decoder(config, device="meta", dtype=dtype).to_empty(
        device=torch.get_default_device() if device is None else device
    )
    places = checkpoint_places(model)
    with torch.no_grad():
        for name, tensor in checkpoint.read(shapes, "the model"):
            places[name].copy_(tensor)
    return model


def _check_arguments(folder: str | Path, dtype: torch.dtype | None) -> None:
    check_folder("folder", folder, FOLDER)
    if dtype is not None:
        check_dtype(dtype)


def checkpoint_places(model: Decoder) -> dict[str, Tensor]:
    """Where each tensor of a checkpoint goes: views of the model's own, an expert's in the stack of all."""
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        own = re.sub(r"^mtp\.norm\.", "mtp.shared_head.norm.", name)
        own = re.sub(r"^mtp\.(layer\.)?", f"layers.{len(model.layers)}.", own)
        full = own if own.startswith("lm_head") else f"model.{own}"
        if not full.endswith(("experts.gate_up_proj", "experts.down_proj")):
            found[full] = tensor
            continue
        stem, _, last = full.rpartition(".")
        for expert, matrix in enumerate(tensor.detach()):
            if last == "down_proj":
                found[f"{stem}.{expert}.down_proj.weight"] = matrix
            else:
                gate, up = matrix.chunk(2)
                found |= {f"{stem}.{expert}.gate_proj.weight": gate, f"{stem}.{expert}.up_proj.weight": up}
    return found


def _without_drafting_layers(shapes: dict[str, list[int]], num_layers: int) -> tuple[dict[str, list[int]], str]:
    """The tensors of the model itself, and the numbers of the layers behind its last one."""
    kept, skipped = {}, set()
    for name, shape in shapes.items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer and int(layer[1]) >= num_layers:
            skipped.add(int(layer[1]))
        elif not name.endswith("rotary_emb.inv_freq"):
            kept[name] = shape
    return kept, ", ".join(map(str, sorted(skipped)))


def _check_shapes(shapes: dict[str, list[int]], places: dict[str, Tensor], folder: Path) -> None:
    """Raise ``ValueError`` unless the checkpoint has the model's tensors and no more, in their shapes."""
    for name in sorted(places.keys() | shapes.keys()):
        if name not in shapes:
            raise ValueError(f"{folder}: {name} is missing; expected shape {list(places[name].shape)}")
        if name not in places:
            raise ValueError(
                f"{folder}: {readable(name)} is there; expected no such tensor in a model of this config.json"
            )
        if shapes[name] != list(places[name].shape):
            wanted = list(places[name].shape)
            raise ValueError(f"{folder}: {name} has shape {shapes[name]}; expected {wanted}, from the configuration")


def _of_module(names: list[str], module: str, folder: Path) -> dict[str, str]:
    """Of a checkpoint's names those of the text model's module, each with its name within it."""
    found = {prefix: [name for name in names if name.startswith(f"{prefix}{module}.")] for prefix in PREFIXES}
    found = {prefix: own for prefix, own in found.items() if own}
    if len(found) > 1:
        where = " and ".join(f"{prefix}{module}" for prefix in found)
        raise ValueError(f"{folder} has {where}; expected one of them, since both may be the layer")
    return {name: name.removeprefix(f"{prefix}{module}.") for prefix, own in found.items() for name in own}


def _check_fit(weights: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    for name, tensor in weights.items():
        if name.endswith("weight_scale_inv") or tensor.dtype not in FLOATS:
            raise ValueError(f"{where}: {name} is {tensor.dtype}, of quantised weights; expected them dequantised")
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise ValueError(f"{where}: {name} is missing; expected shape {list(expected[name].shape)}")
        if name not in expected:
            raise ValueError(f"{where}: {readable(name)} is there; expected {', '.join(sorted(expected))} and no more")
        if weights[name].shape != expected[name].shape:
            found, wanted = list(weights[name].shape), list(expected[name].shape)
            raise ValueError(f"{where}: {name} has shape {found}; expected {wanted}, from the configuration")


def _check_one_dtype(weights: dict[str, Tensor], where: str) -> None:
    """A layer computes in one format; which of two is for the caller to say."""
    (first, tensor), *rest = sorted(weights.items())
    for name, other in rest:
        if other.dtype != tensor.dtype:
            raise ValueError(f"{where}: {first} is {tensor.dtype} and {name} {other.dtype}; expected one, or a dtype")
