"""The registry of real models (``models.yaml``) and its look-up."""

import difflib
import functools
from collections.abc import Iterable, Mapping
from decimal import Decimal
from importlib import resources
from typing import Any

import yaml

from mla_edu.config import GQAConfig, MLAConfig, config_from_hf
from mla_edu.models.layout import COMPRESSED, cache_groups, state_elements
from mla_edu.models.spec import ModelSpec


def load_yaml(name: str) -> Any:
    """The contents of a data file of this package."""
    text = resources.files("mla_edu.models").joinpath(name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the C loader is ten times faster


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not in a registry: the nearest names, or where to find them all."""
    known = list(known)
    near = difflib.get_close_matches(str(name).casefold(), known, n=5, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else f"one of {len(known)}, such as {', '.join(known[:3])}"
    return ValueError(f"unknown {what} {name!r}; {hint}")


@functools.cache
def _entries() -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in load_yaml("models.yaml")}


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


def attention_config(dims: Mapping[str, Any], layers: Mapping[str, int]) -> GQAConfig | MLAConfig | None:
    """One attention layer with these dimensions, a global one where the model has both kinds.

    Its rotary settings are those that ``dims`` gives. None where neither class can express the layer: a key and a value
    of different widths, DeepSeek-V4's shared key and value, a rope type that the classes do not have.
    """
    if set(layers) & set(COMPRESSED):
        return None
    dims = {"rope_theta": None, **dims}
    try:
        if dims.get("qk_rope_head_dim") == 0:  # nothing to rotate
            names = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
            widths = {name: dims[name] for name in names}
            return MLAConfig(dims["hidden_size"], dims["num_attention_heads"], **widths, rope_theta=None)
        if dims.get("kv_lora_rank"):
            growing_queries = "llama_4_scaling_beta" in (dims.get("rope_scaling") or {})
            return config_from_hf({**dims, "model_type": "mistral4" if growing_queries else "deepseek_v3"})
        if "head_dim" in dims and dims.get("v_head_dim") in (None, dims["head_dim"]):
            window = dims.get("sliding_window") if set(layers) == {"sliding_attention"} else None
            return config_from_hf({**dims, "sliding_window": window, "model_type": "mistral"})
    except ValueError:
        pass
    return None
