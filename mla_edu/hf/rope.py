"""The rotary settings of a ``config.json``, in either of the two layouts in use.

Newer files hold one ``rope_parameters``; older ones ``rope_theta`` beside ``rope_scaling``, whose type is called
``type`` or ``rope_type``. A file that says two different things is refused.
"""

import sys
from collections.abc import Mapping
from typing import Any

from mla_edu.hf.dimensions import Dimensions
from mla_edu.hf.families import AttentionFacts
from mla_edu.hf.show import shown

TYPES = ("linear", "llama3", "yarn", "longrope")  # that RopeScaling has
OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "factor")  # null: not said


def read_rope(hf: Mapping[str, Any], facts: AttentionFacts, dims: Dimensions) -> tuple[float | None, dict[str, Any]]:
    """The base of the angles, None for no rotation, and the settings of their stretch, empty for none.

    Raises:
        ValueError: the file contradicts itself, or has a setting that is null or of another type.
    """
    if facts.theta is None:
        return None, {}
    old, new = _settings(hf, "rope_scaling"), _settings(hf, "rope_parameters")
    if facts.nested_rope and new and "full_attention" not in hf["rope_parameters"]:
        raise ValueError(f"rope_parameters has {', '.join(new)}; expected an entry for each type of layer")
    if facts.nested_rope and "type" in (hf.get("rope_scaling") or ()):  # transformers would overlook it
        raise ValueError(f"type is {shown(hf['rope_scaling']['type'])} in rope_scaling; expected it as rope_type")
    if not old and hf.get("rope_parameters") is None:
        new = dict(facts.rope or {})
    beside = {key: hf[key] for key in ("rope_theta", "partial_rotary_factor") if key in hf}
    said: dict[str, Any] = {}
    for settings in (beside, old, new):
        for key, value in settings.items():
            if said.setdefault(key, value) != value:
                raise ValueError(f"{key} is {shown(said[key])} and {shown(value)}; expected one value in a config.json")
    if old and (alone := sorted(said.keys() - {*beside, *old})):  # transformers would overlook it
        raise ValueError(f"{alone[0]} stands in rope_parameters alone; expected it in rope_scaling too, or that away")
    theta = said.pop("rope_theta", facts.theta)
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta <= sys.float_info.max:
        raise ValueError(f"rope_theta is {shown(theta)}; expected a positive number")
    _check_width(said.pop("partial_rotary_factor", 1.0), facts, dims)
    kind = said.setdefault("rope_type", "default")
    if kind == "default":
        if unused := sorted(set(said) - {"rope_type", "llama_4_scaling_beta"}):
            raise ValueError(f"{unused[0]} is {shown(said[unused[0]])}; expected none with rope_type 'default'")
        del said["rope_type"]
    elif kind not in TYPES:
        raise ValueError(f"rope_type is {shown(kind)}; expected one of default, {', '.join(TYPES)}")
    elif kind != "linear":
        original = said.setdefault("original_max_position_embeddings", dims.max_position_embeddings)
        if kind == "longrope" and "factor" not in said and dims.max_position_embeddings and isinstance(original, int):
            said["factor"] = dims.max_position_embeddings / max(original, 1)
    return float(theta), said


def _settings(hf: Mapping[str, Any], key: str) -> dict[str, Any]:
    """One of the two dictionaries; of a nested one, the settings of the layers with full attention."""
    found = hf.get(key)
    if found is not None and not isinstance(found, Mapping):
        raise ValueError(f"{key} is {shown(found)}; expected a JSON object")
    if not found:
        return {}
    if any(isinstance(value, Mapping) for value in found.values()):
        if not isinstance(found.get("full_attention"), Mapping):
            raise ValueError(f"{key} has entries for {', '.join(found)}; expected one for full_attention")
        found = found["full_attention"]
    said = {name: value for name, value in found.items() if not (value is None and name in OPTIONAL)}
    kind = said.pop("type", said.get("rope_type", "default"))  # the older name
    if said.setdefault("rope_type", kind) != kind:
        raise ValueError(f"rope_type is {shown(said['rope_type'])} and type {shown(kind)}; expected one value in {key}")
    return said


def _check_width(share: object, facts: AttentionFacts, dims: Dimensions) -> None:
    """All of a head is rotated, in MLA all of its rotary part."""
    shares = [1.0]
    if facts.rotary_share:
        shares.append(dims.need("qk_rope_head_dim") / (dims.need("qk_nope_head_dim") + dims.need("qk_rope_head_dim")))
    if isinstance(share, bool) or share not in shares:
        raise ValueError(f"partial_rotary_factor is {shown(share)}; expected {' or '.join(map(str, shares))}")
