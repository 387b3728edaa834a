"""A Hugging Face checkpoint folder: which tensors it has, where they lie, and reading them through memory maps.

An index names files of the folder alone, and none but safetensors and JSON are read. Links are followed: in the Hub's
cache each file is one.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mla_edu.hf.config_file import INDEX_BYTES, read_json_object
from mla_edu.validation import readable, shown

SCALE = "_scale_inv"  # DeepSeek's fp8: of a weight, one factor for each block
NAME_BYTES = 255  # of a file's name, at most, on all the usual file systems
# What other formats of weights end in, and what can be done with them.
OTHERS = {
    (".bin", ".pt", ".pth"): "expected safetensors, as save_pretrained of transformers writes them from it",
    (".gguf",): "expected the checkpoint in safetensors that it was made from",
    (".safetensors",): "expected one of the two names",
}
MAPPED = 2**26  # bytes that are read before a file's map is let go: what was read stays resident until then


class Checkpoint:
    """The tensors of a folder, by the index or in one file.

    Args:
        folder: holds ``model.safetensors``, or shards beside ``model.safetensors.index.json``.
        quantization: what ``config.json`` says of it; None where nothing is quantised.

    Attributes:
        places: the file of each tensor.

    Raises:
        FileNotFoundError: there is neither a single file nor an index; names other weights that there are.
        ValueError: the index is not one, or the weights are quantised otherwise than in DeepSeek's fp8.
        ImportError: ``safetensors`` is not installed.
    """

    def __init__(self, folder: Path, quantization: Any = None):
        self.folder = folder
        self.block = _fp8_block(quantization)
        places = _index(folder)
        if places is None:
            single = folder / "model.safetensors"
            with opened(single) as tensors:
                places = dict.fromkeys(tensors.keys(), single.name)
        self.places = places

    def read(self, names: Iterable[str], what: str) -> Iterator[tuple[str, Tensor]]:
        """Tensors in the order of the files, fp8 dequantised to bf16; each is read when its turn comes.

        Args:
            names: of the tensors, all of them among ``places``.
            what: what they belong to, such as "layer 3", for the text of an error.

        Yields:
            The name of a tensor and the tensor, of the dtype in the file or, where it was fp8, bf16, on the CPU. It may
            lie in the file's memory map: copy what is to be kept or changed.

        Raises:
            FileNotFoundError: a file that the index names is missing.
            ValueError: a file is no whole safetensors file, or lacks what the index promises.
        """
        wanted = sorted(names, key=lambda name: self.places[name])
        while wanted:
            file, mapped = self.places[wanted[0]], 0
            path = self.folder / file
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file; expected a shard with tensors of {what}")
            with opened(path) as tensors:
                there = set(tensors.keys())
                while wanted and self.places[wanted[0]] == file and mapped < MAPPED:
                    name = wanted.pop(0)
                    if name not in there:
                        raise ValueError(f"{path} has no {readable(name)}; expected it, as the index says")
                    tensor = tensors.get_tensor(name)
                    mapped += tensor.nbytes
                    yield name, self._plain(name, tensor)

    def shapes(self) -> dict[str, list[int]]:
        """The shape of every tensor, from the files' headers; the factors of fp8 blocks are left out.

        Raises:
            FileNotFoundError: a file that the index names is missing.
            ValueError: a file is no whole safetensors file or lacks what the index promises, a tensor holds no plain
                numbers, or its factors are not one for each block.
        """
        found, formats = {}, {}
        for file in sorted(set(self.places.values())):
            path = self.folder / file
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file; expected a shard, as the index says")
            with opened(path) as tensors:
                there = set(tensors.keys())
                for name in (name for name, place in self.places.items() if place == file):
                    if name not in there:
                        raise ValueError(f"{path} has no {readable(name)}; expected it, as the index says")
                    header = tensors.get_slice(name)
                    found[name], formats[name] = list(header.get_shape()), header.get_dtype()
        for name, format_ in formats.items():
            scaled = self.block is not None and name + SCALE in found
            if format_ not in ("F64", "F32", "F16", "BF16") and not (format_ == "F8_E4M3" and scaled):
                raise ValueError(
                    f"{self.folder}: {readable(name)} is {format_}, of quantised weights; expected them dequantised"
                )
            if scaled and self.block:
                _check_scales(found[name + SCALE], found[name], self.block, f"{self.folder}: {name}{SCALE}")
        return {name: shape for name, shape in found.items() if self.block is None or not name.endswith(SCALE)}

    def _plain(self, name: str, tensor: Tensor) -> Tensor:
        if self.block is None or name + SCALE not in self.places:
            return tensor
        with opened(self.folder / self.places[name + SCALE]) as tensors:
            return dequantize_blocks(tensor, tensors.get_tensor(name + SCALE), self.block)


def dequantize_blocks(
    weight: Float[Tensor, "rows columns"], scales: Float[Tensor, "row_blocks column_blocks"], block: tuple[int, int]
) -> Float[Tensor, "rows columns"]:
    """A matrix in fp8 times the factors of its blocks, in bf16; the last blocks may be smaller.

    Args:
        weight: e4m3.
        scales: one for each block (``weight_scale_inv``).
        block: rows and columns of a block.

    Raises:
        ValueError: there are more or fewer factors than blocks.

    Source: DeepSeek-V3, ``inference/kernel.py``, ``weight_dequant``.
    """
    _check_scales(list(scales.shape), list(weight.shape), block, "scales")
    factors = scales.float().repeat_interleave(block[0], 0)[: weight.shape[0]]
    factors = factors.repeat_interleave(block[1], 1)[:, : weight.shape[1]]
    return (weight.float() * factors).to(torch.bfloat16)


def _check_scales(scales: list[int], weight: list[int], block: tuple[int, int], name: str) -> None:
    blocks = [-(-size // side) for size, side in zip(weight, block, strict=True)] if len(weight) == 2 else None
    if scales != blocks:
        raise ValueError(f"{name} has shape {scales}; expected {blocks}, one for each block of {list(block)}")


def _fp8_block(quantization: Any) -> tuple[int, int] | None:
    """The size of a block, where the weights are in DeepSeek's fp8."""
    if quantization is None:
        return None
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
    block = quantization.get("weight_block_size") if isinstance(quantization, Mapping) else None
    if method != "fp8" or not (isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block)):
        raise ValueError(
            f"quantization_config has quant_method {method!r} and weight_block_size {block!r}; expected none, or "
            "'fp8' in blocks as DeepSeek-V3 publishes it"
        )
    return block[0], block[1]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, memory-mapped.

    Raises:
        ImportError: ``safetensors`` is not installed.
        ValueError: it is no whole safetensors file.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError("a checkpoint needs safetensors: pip install 'mla-edu[hf]'") from None
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None


def _index(folder: Path) -> dict[str, str] | None:
    """The checkpoint's tensors, each with its file in the folder; None where one file holds them all."""
    path, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not path.is_file():
        if not single.is_file():
            raise _no_weights(folder, path, single)
        return None
    index = read_json_object(path, "an index", INDEX_BYTES)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path}: weight_map is {str(places)[:40]}; expected a file name for each tensor")
    for name, file in places.items():
        if not _is_shard(file):
            said = f"weight_map[{shown(name)}] is {shown(file)}"
            raise ValueError(f"{path}: {said}; expected a .safetensors file of that folder")
    if single.is_file() and set(places.values()) != {single.name}:
        raise ValueError(
            f"{folder} has {single.name} beside {path.name}, which names other files; expected one of them"
        )
    return places


def _is_shard(name: object) -> bool:
    """Whether a file of this name can lie in the folder itself."""
    if not isinstance(name, str) or not name.endswith(".safetensors") or not name.isprintable():
        return False
    return Path(name).name == name and "\\" not in name and len(name.encode()) <= NAME_BYTES


def _no_weights(folder: Path, index: Path, single: Path) -> OSError | ValueError:
    """The error for a folder without weights that can be read: what it has instead."""
    for path in (single, index):
        if os.path.lexists(path):
            return ValueError(f"{path} is no regular file; expected the weights of a checkpoint")
    lacks = f"{folder} has neither {single.name} nor {index.name}"
    for endings, hint in OTHERS.items():
        if found := sorted(name for name in os.listdir(folder) if name.endswith(endings)):
            return FileNotFoundError(f"{lacks}, but {readable(found[0])}: {hint}")
    return FileNotFoundError(lacks)
