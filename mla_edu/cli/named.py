"""Which model is meant: a name of the registry, a file, what stands on stdin, or a repository that was downloaded."""

import os
import re
import sys
from pathlib import Path

from mla_edu.files import decode
from mla_edu.hf import ModelSpec, spec_from_hf
from mla_edu.hf.config_file import parse_json_object
from mla_edu.registry import get_model
from mla_edu.validation import shown

EXPECTED = "a name of the registry, a path to a config.json or its folder, ORG/NAME, or - for stdin"
ADDRESS = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:[/?#].*)?", re.IGNORECASE)
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def model_of(name: str) -> ModelSpec:
    """The model that a user names; nothing is fetched.

    A bare name is one of the registry, whatever lies beside it: ``./deepseek-v3`` is the folder. What names a
    repository on Hugging Face, by its address too, is found in the registry, else in the local cache of downloads.

    Raises:
        ValueError: no such model, or one whose cache cannot be known; says why.
        OSError: there is no such file, or it cannot be read.
    """
    if name == "-":
        if sys.stdin is None:
            raise ValueError("model is '-', but stdin is closed; expected a config.json through a pipe")
        text = decode(sys.stdin.buffer, "stdin", "a config.json")
        try:
            return spec_from_hf(parse_json_object(text, "stdin")).model_copy(update={"name": "stdin"})
        except ValueError as error:
            raise ValueError(re.sub("^the dict", "stdin", str(error))) from None
    if not name.strip():
        raise ValueError(f"model is {name!r}; expected {EXPECTED}")
    if "://" in name:
        if (address := ADDRESS.fullmatch(name)) is None:
            raise ValueError(f"model is {shown(name)}; expected {EXPECTED}: nothing is fetched")
        return _published(address[1])
    is_path = "/" in name or os.sep in name or name.endswith(".json") or name in (".", "..")
    if is_path and (Path(name).exists() or not REPOSITORY.fullmatch(name) or name.endswith(".json")):
        return spec_from_hf(Path(name))
    if is_path:
        return _published(name)
    try:
        return get_model(name)
    except ValueError:
        if not os.path.lexists(name):
            raise
    return spec_from_hf(Path(name))


def _published(repository: str) -> ModelSpec:
    """A repository on Hugging Face: from the registry, else from what was downloaded."""
    try:
        return get_model(repository)
    except ValueError as error:
        if (folder := downloaded(repository)) is None:
            raise ValueError(
                f"{error}. It is not in {hub_cache()} either, and nothing is fetched: run "
                f"'hf download {repository} config.json' first"
            ) from None
    return spec_from_hf(folder).model_copy(update={"name": repository})


def hub_cache() -> Path:
    """Where ``huggingface_hub`` keeps what it downloads.

    Raises:
        ValueError: that is in a home that is not known.
    """
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    try:
        return Path(home).expanduser() / "hub"
    except RuntimeError:
        raise ValueError(f"{home} cannot be found without a home; expected HF_HOME, or HOME, to be a folder") from None


def downloaded(repository: str) -> Path | None:
    """The folder with a repository's ``config.json``, as ``main`` was when it was downloaded; None where none is.

    Raises:
        ValueError: other revisions alone were downloaded, and several of them.
    """
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    try:
        main = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        main = ""
    there = sorted(path.parent for path in folder.glob("snapshots/*/config.json") if path.is_file())
    for path in there:
        if path.name == main:
            return path
    if len(there) > 1:
        raise ValueError(f"{folder} has {len(there)} revisions; expected a path to one of its snapshots")
    return there[0] if there else None
