"""The rotary settings of a ``config.json``, in either of the two layouts in use.

Newer files hold one ``rope_parameters``; older ones ``rope_theta`` beside ``rope_scaling``, whose type is called
``type`` or ``rope_type``. A file that says two different things is refused.
"""

import sys
from collections.abc import Mapping
from typing import Any

from mla_edu.hf.dimensions import Dimensions
from mla_edu.hf.families import AttentionFacts

OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "factor")  # null: not said


def read_rope(hf: Mapping[str, Any], facts: AttentionFacts, dims: Dimensions) -> tuple[float | None, dict[str, Any]]:
    """The base of the angles, None for no rotation, and the settings of their stretch, empty for none.

    Raises:
        ValueError: the file contradicts itself, or has a setting that is null or of another type.
    """
    if facts.theta is None:
        return None, {}
    old, new = _settings(hf, "rope_scaling"), _settings(hf, "rope_parameters")
    if facts.nested_rope and ("type" in old or (new and "full_attention" not in hf["rope_parameters"])):
        raise ValueError(
            "rope_parameters or rope_scaling is flat or has a type; expected full_attention, and rope_type"
        )
    if not old and hf.get("rope_parameters") is None:
        new = dict(facts.rope or {})
    beside = {key: hf[key] for key in ("rope_theta", "partial_rotary_factor") if key in hf}
    said: dict[str, Any] = {}
    for settings in (beside, old, new):
        for name, value in settings.items():
            key = "rope_type" if name == "type" else name
            if said.setdefault(key, value) != value:
                raise ValueError(f"{key} is {said[key]!r} and {value!r}; expected one value in a config.json")
    if old and (alone := sorted(said.keys() - {*beside, *old, "rope_type"})):  # transformers would overlook it
        raise ValueError(f"{alone[0]} stands in rope_parameters alone; expected it in rope_scaling too, or that away")
    theta = said.pop("rope_theta", facts.theta)
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta <= sys.float_info.max:
        raise ValueError(f"rope_theta is {theta!r}; expected a positive number")
    _check_width(said.pop("partial_rotary_factor", 1.0), dims)
    kind = said.setdefault("rope_type", "default")
    if kind == "default":
        if unused := sorted(set(said) - {"rope_type", "llama_4_scaling_beta"}):
            raise ValueError(f"{unused[0]} is {said[unused[0]]!r}; expected none with rope_type 'default'")
        del said["rope_type"]
    elif kind in ("llama3", "yarn", "longrope"):
        original = said.setdefault("original_max_position_embeddings", dims.max_position_embeddings)
        if kind == "longrope" and "factor" not in said and dims.max_position_embeddings and isinstance(original, int):
            said["factor"] = dims.max_position_embeddings / max(original, 1)
    return float(theta), said


def _settings(hf: Mapping[str, Any], key: str) -> dict[str, Any]:
    """One of the two dictionaries; of a nested one, the settings of the layers with full attention."""
    found = hf.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ValueError(f"{key} is {found!r}; expected a JSON object")
    if any(isinstance(value, Mapping) for value in found.values()):
        if not isinstance(found.get("full_attention"), Mapping):
            raise ValueError(f"{key} has entries for {', '.join(found)}; expected one for full_attention")
        found = found["full_attention"]
    return {name: value for name, value in found.items() if not (value is None and name in OPTIONAL)}


def _check_width(share: object, dims: Dimensions) -> None:
    """Of a head all is rotated, in MLA its rotary part."""
    shares = [1.0]
    if dims.is_mla and dims.qk_nope_head_dim and dims.qk_rope_head_dim:
        shares.append(dims.qk_rope_head_dim / (dims.qk_nope_head_dim + dims.qk_rope_head_dim))
    if isinstance(share, bool) or share not in shares:
        raise ValueError(f"partial_rotary_factor is {share!r}; expected {' or '.join(map(str, shares))}")
