"""Thousands of spoilt files: each gives a spec or one line that names the key, and nothing else."""

import copy
import random

import pytest

from mla_edu import config_from_hf
from mla_edu.cost import kv_cache_bytes, sequence_bytes
from mla_edu.hf import spec_from_hf
from mla_edu.hf.families import SAME_AS, list_families
from tiny_families import saved

DEEP: list = []
for _ in range(3000):
    DEEP = [DEEP]
SPOILT = [
    *(None, True, False, "", "8", "false", "a\nb", "x" * 10_000, [], {}, [None], [{}, {}], {"a": {"b": None}}, DEEP),
    *(0, 1, -1, -64, 3, 7, 10**6, 10**9, 10**15, 10**30, 10**400, -(10**400), 0.0, 0.5, -1.5, 1e308),
    *(float("nan"), float("inf"), -float("inf"), [1, 2, 3], [0] * 70, ["full_attention"], ["x", 3], {"head_dim": "8"}),
    *({"rope_type": "yarn"}, {"rope_theta": None}, {"type": 3}, {"full_attention": {}}, {"quant_method": 3}),
]
NAMES = [name for name in list_families() if name not in SAME_AS]
PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
PLAIN = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8}
MORE = [  # families of remote.yaml, and one that nobody knows
    PLAIN | {"model_type": "chatglm", "multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 8},
    PLAIN | {"model_type": "nemotron-nas", "block_configs": [{"attention": {"n_heads_in_group": 4}}] * 4},
    PLAIN | {"model_type": "ouro", "total_ut_steps": 4},
    PLAIN | {"model_type": "RefinedWeb", "n_head_kv": 2},
    PLAIN | {"model_type": "zzz", "kv_lora_rank": 32, "qk_rope_head_dim": 8},
]


def spoilt_files(seed: int, count: int):
    """Files of every family with one to three values deleted, replaced, or put under one another."""
    draw = random.Random(seed)
    for _ in range(count):
        one = draw.randrange(len(NAMES) + len(MORE))
        file = copy.deepcopy(MORE[one - len(NAMES)]) if one >= len(NAMES) else saved(NAMES[one])
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            key = draw.choice(sorted(file))
            value = draw.choice(SPOILT)
            match draw.choice(("replace", "replace", "replace", "delete", "within", "wrap", "swap")):
                case "replace":
                    file[key] = value
                case "delete" if len(file) > 1:
                    del file[key]
                case "within":  # one value of a list or a dictionary
                    inner = file[key]
                    if isinstance(inner, dict) and inner:
                        inner[draw.choice(sorted(inner))] = value
                    elif isinstance(inner, list) and inner:
                        inner[draw.randrange(len(inner))] = value
                case "wrap":
                    file = {draw.choice(PARTS): file, "model_type": draw.choice(("llava", "qwen3_vl", 3, "new"))}
                case "swap":
                    file[key] = file[draw.choice(sorted(file))]
        yield file


def outcome(file) -> str | None:
    """The refusal, or None where there is a spec whose figures can be computed."""
    try:
        spec = spec_from_hf(file)
    except ValueError as error:
        return str(error)
    assert kv_cache_bytes(spec, 131_072) >= 0 and sequence_bytes(spec, 1) >= 0
    assert all("\n" not in caution for caution in spec.cautions)
    return spec.no_config


def check(seed: int, count: int) -> dict[str, int]:
    """How many files were refused and read."""
    found = {"refused": 0, "read": 0}
    for number, file in enumerate(spoilt_files(seed, count)):
        message = None
        try:
            message = outcome(file)
            config_from_hf(file)
        except ValueError as error:
            message = message or str(error)
        except Exception as error:
            raise AssertionError(f"file {number} of seed {seed}: {str(file)[:600]}") from error
        found["read" if message is None else "refused"] += 1
        if message is not None:
            assert message and "\n" not in message and len(message) < 1500, message[:3000]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_spoilt_file_gives_a_spec_or_one_line(seed):
    found = check(seed, 500)
    assert min(found.values()) > 10  # the mutations neither spoil all nor nothing
