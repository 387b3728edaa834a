"""What a file and those beside it say of a model's weights, and of the cache that its makers ask for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mla_edu.hf.config_file import INDEX_BYTES, read_json_object
from mla_edu.hf.show import shown
from mla_edu.hf.spec import WeightFormat, Weights

PLAIN: dict[str, WeightFormat] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
BYTES: dict[WeightFormat, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
HEADER_BYTES = 100 * 2**20  # of a safetensors file, at most
NUMBER_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # formats that are not packed


def published_weights(hf: Mapping[str, Any]) -> Weights | None:
    """The formats of the weights, where the file says them: plain numbers, DeepSeek's fp8, or OpenAI's fp4."""
    said = hf.get("dtype") if hf.get("dtype") is not None else hf.get("torch_dtype")
    plain = PLAIN.get(said.removeprefix("torch.")) if isinstance(said, str) else None
    quantization = hf.get("quantization_config")
    if quantization is None:
        return plain and Weights(attention=plain, others=plain, source=f"its config.json: {said}")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method == "fp8":
        return Weights(attention="fp8", others="fp8", source="its config.json: quant_method fp8")
    if method == "mxfp4":
        return Weights(attention=plain or "bf16", others="fp4", source="its config.json: quant_method mxfp4")
    return None


def asked_cache(hf: Mapping[str, Any], folder: Path | None) -> str | None:
    """That the files ask for a cache in 8 bits, in words; None where they do not.

    ``quantization_config`` says so with ``kv_cache_scheme`` (compressed-tensors, ModelOpt), ``hf_quant_config.json``
    beside it with ``kv_cache_quant_algo`` (ModelOpt).
    """
    quantization = hf.get("quantization_config")
    scheme = quantization.get("kv_cache_scheme") if isinstance(quantization, Mapping) else None
    if isinstance(scheme, Mapping) and scheme.get("num_bits") is not None:
        floats = scheme.get("type") == "float" and scheme["num_bits"] == 8
        hint = "--dtype fp8 counts that" if floats else "the figures are for another"
        return f"its kv_cache_scheme asks for a cache in {shown(scheme['num_bits'])} bits: {hint}"
    path = folder and folder / "hf_quant_config.json"
    if path is None or not path.is_file():
        return None
    found = read_json_object(path, "what ModelOpt writes").get("quantization")
    algorithm = found.get("kv_cache_quant_algo") if isinstance(found, Mapping) else None
    if algorithm is None:
        return None
    hint = "--dtype fp8 counts that" if algorithm == "FP8" else "the figures are for another"
    said = algorithm if algorithm in ("FP8", "INT8", "NVFP4") else shown(algorithm)
    return f"its hf_quant_config.json asks for a cache in {said}: {hint}"


def parameters_beside(folder: Path, weights: Weights | None) -> int | None:
    """The number of parameters by the files of weights beside a ``config.json``; None where they do not tell.

    The index of the shards holds it (``total_parameters``) or their bytes (``total_size``), which are divided by those
    of one number. A single file's header holds each tensor's shape.

    Args:
        folder: of the files.
        weights: in which formats they are, as ``published_weights`` finds.

    Raises:
        ValueError: the index or the header is not what it should be.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        metadata = read_json_object(index, "an index", INDEX_BYTES).get("metadata")
        said = metadata if isinstance(metadata, Mapping) else {}
        for key in ("total_parameters", "total_size"):
            value = said.get(key)
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 10**18
            if value is not None and not number:
                raise ValueError(f"{index}: {key} is {str(value)[:40]}; expected a positive number")
        if said.get("total_parameters"):
            return int(said["total_parameters"])
        same = weights and weights.attention == weights.others
        each = BYTES.get(weights.attention) if weights and same else None
        return int(said["total_size"]) // each if said.get("total_size") and each else None
    return _in_header(single) if single.is_file() else None


def _in_header(path: Path) -> int | None:
    """Numbers in all tensors of a safetensors file; None where some are packed, or factors of others."""
    with path.open("rb") as file:
        length, room = int.from_bytes(file.read(8), "little"), path.stat().st_size - 8
        if not 2 <= length <= min(HEADER_BYTES, room):
            raise ValueError(f"{path} is not a whole safetensors file: its header has no length")
        text = file.read(length)
    try:
        header = json.loads(text)
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        if any(tensor["dtype"] not in NUMBER_BYTES for tensor in tensors):
            return None
        counts = [_numbers(tensor["shape"], room) for tensor in tensors]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{path} is not a whole safetensors file: its header lists no tensors") from None
    if length + sum(n * NUMBER_BYTES[tensor["dtype"]] for n, tensor in zip(counts, tensors, strict=True)) != room:
        raise ValueError(f"{path} is not a whole safetensors file: its tensors do not fill it")
    return sum(counts)


def _numbers(shape: list[int], most: int) -> int:
    """Those of a tensor; raises ``ValueError`` where a size is not one, or before a product grows without end."""
    number = 1
    for size in shape:
        number *= size
        if type(size) is not int or size < 0 or number > most:
            raise ValueError
    return number
