"""The registry of real models (``models.yaml``) and its look-up."""

import difflib
import functools
from collections.abc import Iterable

from mla_edu.files import parse_yaml, yaml_parts
from mla_edu.hf.spec import ModelSpec
from mla_edu.registry.entry import Entry
from mla_edu.validation import shown

FEW = 12  # names that an error lists all


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not in a registry: the nearest names, or where to find them all."""
    known = list(known)
    near = difflib.get_close_matches(name.casefold(), known, n=5, cutoff=0.5) if isinstance(name, str) else []
    some = ", ".join(known) if len(known) <= FEW else f"{len(known)}, such as {', '.join(known[:3])}"
    hint = f"nearest: {', '.join(near)}" if near else f"expected one of {some}"
    return ValueError(f"unknown {what} {shown(name)}; {hint}")


@functools.cache
def _texts() -> dict[str, str]:
    return yaml_parts("mla_edu.registry", "models.yaml", r"^- name: (\S+)$")


@functools.cache
def _spec(name: str) -> ModelSpec:
    return Entry(**parse_yaml(_texts()[name])[0]).spec()


def list_models() -> list[str]:
    """Names of all models, in the registry's order: MLA and what followed it, then MHA, MQA and GQA, by makers."""
    return list(_texts())


def get_model(name: str) -> ModelSpec:
    """A model of the registry.

    Args:
        name: its name (``"deepseek-v3"``) or its repository on Hugging Face (``"deepseek-ai/DeepSeek-V3"``), in upper
            or lower case.

    Raises:
        ValueError: no such model; names the nearest.
    """
    if not isinstance(name, str):
        raise unknown("model", name, list_models())
    wanted = name.casefold()
    for known, text in _texts().items():
        if wanted == known or ("/" in wanted and f"\n  hf_id: {wanted}\n" in text.casefold()):
            return _spec(known)
    raise unknown("model", name, list_models())
