"""Which files of unknown families are plain: multi-head or latent attention over all tokens, in every layer.

A family that transformers 5.23 does not have may do anything under a name of its own. So its file is read only if every
name in it is known to leave the cache alone (``plain.yaml``).
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

from mla_edu.files import load_yaml
from mla_edu.hf.show import shown


@functools.cache
def _known() -> frozenset[str]:
    names = load_yaml("mla_edu.hf", "plain.yaml")
    return frozenset(itertools.chain(names["read"], *names["harmless"].values()))


def plain(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The file of a family that is not known, without what says that something is not there.

    Raises:
        ValueError: a name in the file is not known to be harmless, or the number of key/value heads is missing.
    """
    name, idle = hf["model_type"], {key for key, value in hf.items() if value is None}
    idle |= {key for key in ("sliding_window", "sliding_window_size") if hf.get(key) == -1}  # Grok-2: none
    if "sliding_window" in idle or "sliding_window" not in hf or hf.get("use_sliding_window") is False:
        idle |= {"sliding_window", "use_sliding_window", "max_window_layers"}
    if isinstance(hf.get("layer_types"), list) and set(map(str, hf["layer_types"])) == {"full_attention"}:
        idle |= {"layer_types"}
    known = _known() | idle
    for key, value in hf.items():
        if key not in known:
            raise ValueError(f"model_type {name!r} is not known, and {key} = {shown(value)[:40]} may change its cache")
    if hf.get("kv_lora_rank") is None and hf.get("num_key_value_heads") is None and hf.get("num_kv_heads") is None:
        raise ValueError(f"model_type {name!r} is not known, and its config.json gives no num_key_value_heads")
    left_out = idle - {"layer_types"}
    return {key: value for key, value in hf.items() if key not in left_out}
