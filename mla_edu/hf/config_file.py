"""The ``config.json`` of a Hugging Face repository, as a dictionary."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mla_edu.validation import kind_of, read_text


def read_hf_config(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The dictionary of a Hugging Face ``config.json``.

    Args:
        source: the file, a folder that holds it, or its contents. Where the text model is nested in a multimodal
            one (``text_config``), its part is returned.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a JSON object, or has no ``model_type``.
    """
    where = "the dict" if isinstance(source, Mapping) else str(source)
    hf = dict(source) if isinstance(source, Mapping) else _read_file(Path(source))
    text = hf.get("text_config")
    if text is not None:
        if not isinstance(text, Mapping):
            raise ValueError(f"{where}: text_config is {text!r}; expected a JSON object")
        hf = dict(text)
    if not isinstance(hf.get("model_type"), str):
        raise ValueError(f"{where}: model_type is {hf.get('model_type')!r}; expected the name of a model family")
    return hf


def _read_file(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    return read_json_object(file, "a config.json or a folder that holds one")


def read_json_object(path: Path, expected: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of the file.
        expected: what the error says where there is none.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is no file, too large, or holds something else.
    """
    return parse_json_object(read_text(path, expected), str(path))


def parse_json_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in a text; ``where`` it is from, for the error that says what it holds instead."""
    try:
        found: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{where} is not valid JSON: it is nested too deeply") from None
    except ValueError:  # the one other thing that Python refuses
        raise ValueError(f"{where} is not valid JSON: it has a number of more than 4300 digits") from None
    if not isinstance(found, dict):
        raise ValueError(f"{where} holds {kind_of(found)}; expected a JSON object")
    return found
