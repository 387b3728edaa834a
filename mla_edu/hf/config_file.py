"""The ``config.json`` of a Hugging Face repository, as a dictionary."""

import functools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mla_edu.files import each_once, load_yaml, open_file
from mla_edu.hf.families import refusal
from mla_edu.hf.show import DIGITS, check_sane, shown
from mla_edu.validation import kind_of, readable

CONFIG_BYTES = 16 * 2**20  # of a config.json, at most; published ones are a tenth of that,
INDEX_BYTES = 256 * 2**20  # and of an index of weights
PARTS = ("text_config", "llm_config", "language_config", "thinker_config")  # where a larger model keeps its text model
NAME = r"[\w.+-]{1,80}"  # of a family
SHARED = ("quantization_config", "dtype", "torch_dtype")  # hold for the part as well
# What the files of other programs are known by: names in them, and what they are.
OTHERS = (
    ({"model", "train"}, "the configuration of a training run; expected that of a model, such as its model-N"),
    ({"peft_type"}, "the adapter_config.json of an adapter; expected the config.json of the model that it adapts"),
    ({"ssm_cfg"}, "a configuration of mamba-ssm, which has no model_type; expected that of transformers"),
    ({"dim", "inter_dim", "n_layers"}, "a configuration of DeepSeek's inference code; expected config.json"),
    ({"dim", "n_layers", "n_heads"}, "a params.json of Meta's or Mistral's code; expected config.json"),
    ({"producer", "quantization"}, "an hf_quant_config.json; expected the config.json beside it"),
    ({"metadata", "weight_map"}, "an index of weights; expected the config.json beside it"),
    ({"_from_model_config"}, "a generation_config.json; expected the config.json beside it"),
    ({"tokenizer_class"}, "a tokenizer_config.json; expected the config.json beside it"),
)
MAGIC = {b"GGUF": "a GGUF file", b"PK\x03\x04": "a ZIP archive, as PyTorch saves weights"}


@runtime_checkable
class HasDict(Protocol):
    """A configuration of transformers."""

    def to_dict(self) -> dict[str, Any]:
        """Its contents, as ``config.json`` has them."""


Source = str | Path | Mapping[str, Any] | HasDict


@dataclass(frozen=True)
class ConfigFile:
    """The text model's part of a file."""

    hf: dict[str, Any]
    where: str  # the file, as errors and answers name it
    folder: Path | None = None  # where the repository's other files lie; None: not known
    whole: str | None = None  # model_type of the larger model around it,
    part: str = ""  # and the names under which the text model lies there


def read_config_file(source: Source) -> ConfigFile:
    """The text model's part of a ``config.json``.

    Args:
        source: the file, a folder that holds it, its contents, or a configuration of transformers.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``source`` is not one of these.
        ValueError: the file is not a JSON object, is too large or too deep, or has no ``model_type``.
    """
    folder = None
    if isinstance(source, Mapping):
        where, hf = "the dict", dict(source)
    elif isinstance(source, str | Path):
        path = Path(source)
        file = path / "config.json" if os.path.isdir(path) else path
        where, folder = readable(source), file.parent if file.name == "config.json" else None
        hf = read_json_object(file, "a config.json or a folder that holds one")
    elif isinstance(source, HasDict) and not isinstance(source, type):
        where, hf = type(source).__name__, source.to_dict()
    else:
        raise TypeError(f"source is {shown(source)}; expected a path, a dict or a configuration of transformers")
    check_sane(hf, where)
    whole, path_within = None, []
    _check_counted(hf)
    while part := _part(hf, where):
        hf, whole = _text_model(hf, part, where), whole or hf.get("model_type")
        path_within.append(part)
        _check_counted(hf)
    if not isinstance(hf.get("model_type"), str) or not re.fullmatch(NAME, hf["model_type"]):
        if not path_within and "model_type" not in hf and (what := _other(hf)):
            raise ValueError(f"{where} is {what}")
        place = f"{where}: {'.'.join([*path_within, 'model_type'])}"
        raise ValueError(f"{place} is {shown(hf.get('model_type'))}; expected the name of a model family")
    if (inner := _wholes()["flat"].get(hf["model_type"])) is not None:  # the text model's numbers stand beside the rest
        hf = {**hf, "model_type": inner}
    elif hf["model_type"] in _wholes()["parts"]:
        raise ValueError(f"{where}: text_config is None; expected the text model of {hf['model_type']!r} in it")
    named = whole if isinstance(whole, str) and re.fullmatch(NAME, whole) else None
    return ConfigFile(hf, where, folder, named, ".".join(path_within))


def read_hf_config(source: Source) -> dict[str, Any]:
    """The dictionary of a Hugging Face ``config.json``.

    Args:
        source: the file, a folder that holds it, its contents, or a configuration of transformers. Where the text model
            is nested in a larger one (``text_config``, ``llm_config`` ...), its part is returned.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``source`` is not one of these.
        ValueError: the file is not a JSON object, is too large or too deep, or has no ``model_type``.
    """
    return read_config_file(source).hf


def is_whole(name: str) -> bool:
    """Whether transformers has a larger model of that name, with a text model within."""
    return name in _wholes()["parts"]


@functools.cache
def _wholes() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = load_yaml("mla_edu.hf", "wholes.yaml")
    return found


def _check_counted(hf: Mapping[str, Any]) -> None:
    name = hf.get("model_type")
    if isinstance(name, str) and (reason := refusal(name)):
        raise ValueError(f"model_type {name!r} is not counted: {reason}")


def _part(hf: Mapping[str, Any], where: str) -> str | None:
    """Under which name the text model lies, if the file is that of a larger model."""
    found = [key for key in PARTS if hf.get(key) is not None]
    if len(found) > 1:
        raise ValueError(f"{where} has {' and '.join(found)}; expected one text model")
    return found[0] if found else None


def _text_model(hf: Mapping[str, Any], part: str, where: str) -> dict[str, Any]:
    text = hf[part]
    if not isinstance(text, Mapping):
        raise ValueError(f"{where}: {part} is {shown(text)}; expected a JSON object")
    whole = hf.get("model_type")
    inherited = {key: hf[key] for key in SHARED if hf.get(key) is not None}
    if hf.get("is_encoder_decoder"):
        inherited["is_encoder_decoder"] = True
    family = _wholes()["parts"].get(whole) if isinstance(whole, str) else None
    if family is not None and (text.get("model_type") is None or whole in _wholes()["forced"]):
        return {**inherited, **text, "model_type": family}
    return {**inherited, **text}


def _other(hf: Mapping[str, Any]) -> str | None:
    """What a file without a family is, where it is known."""
    return next((what for names, what in OTHERS if names <= set(hf)), None)


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number has {len(digits)} digits; expected at most {DIGITS}")
    return int(digits)


def read_json_object(path: Path, expected: str, most: int = CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in a file, in any encoding of Unicode.

    Args:
        path: of the file.
        expected: what the error says where there is none.
        most: bytes that it may have.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is no file, or holds something else, or more.
    """
    if Path(path).suffix in (".yaml", ".yml") and Path(path).is_file():
        raise ValueError(f"{readable(path)} is a YAML file; expected {expected}")
    with open_file(path, expected) as file:
        start = file.read(4)
        if start in MAGIC:
            raise ValueError(f"{readable(path)} is {MAGIC[start]}; expected {expected}")
        contents = start + file.read(most)
    if len(contents) > most:
        raise ValueError(f"{readable(path)} has more than {most // 2**20} MiB; expected {expected}")
    return parse_json_object(contents, readable(path))


def parse_json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object in a text; ``where`` it is from, for the error that says what it holds instead."""
    found: object = None
    try:
        found = json.loads(text, parse_int=_integer, object_pairs_hook=each_once)
    except RecursionError:
        raise ValueError(f"{where} is not valid JSON: nested too deep") from None
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not valid JSON: its bytes are no text in UTF-8, UTF-16 or UTF-32") from None
    except ValueError as error:
        what = f"not valid JSON: {error}" if text.strip() else "empty; expected a JSON object"
        raise ValueError(f"{where} is {what}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{where} holds {kind_of(found)}; expected a JSON object")
    return found
