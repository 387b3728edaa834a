"""The registry of real models (``models.yaml``) and its look-up."""

import difflib
import functools
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from mla_edu.hf.layer_config import attention_config
from mla_edu.hf.layout import cache_groups, state_elements
from mla_edu.hf.spec import ModelSpec
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


@functools.cache
def _spec(name: str) -> ModelSpec:
    entry = dict(_entries()[name])
    dims, layers, index_layers = entry.pop("values"), entry.pop("layers"), entry.pop("index_layers", 0)
    del entry["bytes_per_token_16bit"]  # kept in the file for the tests to recompute
    return ModelSpec(
        **entry,
        num_parameters=parse_count(dims.get("params_total")),
        num_layers=dims["num_hidden_layers"],
        max_position_embeddings=dims.get("max_position_embeddings"),
        config=attention_config(dims, layers),
        cache=cache_groups(dims, layers, index_layers),
        state_elements=state_elements(dims, layers, index_layers),
    )


def parse_count(text: str | None) -> int | None:
    """``"671B"`` as 671 000 000 000; what follows the first word is a remark. None stays None."""
    if text is None:
        return None
    number = text.split()[0]
    return int(Decimal(number[:-1]) * {"M": 10**6, "B": 10**9, "T": 10**12}[number[-1]])
