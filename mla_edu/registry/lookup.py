"""The registry of real models (``models.yaml``) and its look-up."""

import difflib
import functools
from collections.abc import Iterable
from typing import Any

from mla_edu.hf.spec import ModelSpec
from mla_edu.registry.entry import Entry
from mla_edu.validation import load_yaml


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not in a registry: the nearest names, or where to find them all."""
    known = list(known)
    near = difflib.get_close_matches(str(name).casefold(), known, n=5, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else f"one of {len(known)}, such as {', '.join(known[:3])}"
    return ValueError(f"unknown {what} {name!r}; {hint}")


@functools.cache
def _entries() -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in load_yaml("mla_edu.registry", "models.yaml")}


@functools.cache
def _spec(name: str) -> ModelSpec:
    return Entry(**_entries()[name]).spec()


def list_models() -> list[str]:
    """Names of all models, in the registry's order: MLA first, then MHA, MQA and GQA."""
    return list(_entries())


def get_model(name: str) -> ModelSpec:
    """A model of the registry.

    Args:
        name: its name (``"deepseek-v3"``) or its repository on Hugging Face (``"deepseek-ai/DeepSeek-V3"``), in upper
            or lower case.

    Raises:
        ValueError: no such model; names the nearest.
    """
    wanted = str(name).casefold()
    for entry in _entries().values():
        if wanted in (entry["name"], (entry["hf_id"] or entry["name"]).casefold()):
            return _spec(entry["name"])
    raise unknown("model", name, list_models())
