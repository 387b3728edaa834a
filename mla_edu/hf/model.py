"""From a ``config.json`` to the numbers of the whole model, for the families whose every layer is one of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mla_edu.config import MLAConfig
from mla_edu.hf.config_file import read_hf_config
from mla_edu.hf.reader import Reading, read
from mla_edu.validation import Flag, NonNegativeInt, PositiveInt, PositiveNumber, describe

Real = Annotated[PositiveNumber, Field(strict=False)]  # JSON writes 12 for 12.0

# What the config classes of transformers 5.23 hold where a file is silent.
_MOE = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True}
DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        "vocab_size": 102400,
        "intermediate_size": 11008,
        "first_k_dense_replace": 0,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
        "topk_method": "greedy",
        "scoring_func": "softmax",
    },
    "deepseek_v3": _MOE
    | {
        "vocab_size": 129280,
        "intermediate_size": 18432,
        "first_k_dense_replace": 3,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "moe_intermediate_size": 2048,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 1,
    },
    "glm4_moe_lite": _MOE
    | {
        "vocab_size": 154880,
        "intermediate_size": 10240,
        "rms_norm_eps": 1e-5,
        "first_k_dense_replace": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "moe_intermediate_size": 1536,
        "num_experts_per_tok": 4,
        "routed_scaling_factor": 1.8,
    },
    "llama": {"vocab_size": 32000, "intermediate_size": 11008},
    "minicpm3": {
        "vocab_size": 73448,
        "intermediate_size": 6400,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
    },
    "mistral": {"vocab_size": 32000, "intermediate_size": 14336},
    "youtu": {"vocab_size": 128256, "intermediate_size": 6144, "tie_word_embeddings": True},
}
SAME_AS = {"kimi_k2": "deepseek_v3"}


class _File(BaseModel):
    """What a model's file says beside its attention; what would make another model of it is refused."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    vocab_size: PositiveInt
    intermediate_size: PositiveInt
    rms_norm_eps: PositiveNumber = 1e-6
    tie_word_embeddings: Flag = False
    hidden_act: Literal["silu"] = "silu"
    mlp_bias: Literal[False] = False

    first_k_dense_replace: NonNegativeInt = 0
    mlp_layer_types: list[Literal["dense", "sparse"]] | None = None
    moe_layer_freq: Literal[1] = 1
    n_routed_experts: PositiveInt | None = None
    n_shared_experts: NonNegativeInt | None = None
    num_experts_per_tok: PositiveInt | None = None
    moe_intermediate_size: PositiveInt | None = None
    n_group: PositiveInt | None = None
    topk_group: PositiveInt | None = None
    topk_method: Literal["greedy", "group_limited_greedy", "noaux_tc"] | None = None
    scoring_func: Literal["softmax", "sigmoid"] | None = None
    norm_topk_prob: Flag = False
    routed_scaling_factor: Real = 1.0

    num_nextn_predict_layers: NonNegativeInt | None = None

    scale_emb: Real = 1.0
    scale_depth: Real | None = None
    dim_model_base: PositiveInt | None = None


def model_values(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``ModelConfig`` for a ``config.json``, its folder or its dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the family is not one of those whose every layer is ours, or a value is missing, out of range, or
            makes another model of it.
    """
    hf = read_hf_config(source)
    family = SAME_AS.get(hf["model_type"], hf["model_type"])
    if family not in DEFAULTS:
        known = ", ".join(sorted([*DEFAULTS, *SAME_AS]))
        raise ValueError(f"model_type is {hf['model_type']!r}; expected one of {known}")
    reading = read(hf)
    try:
        file = _File(**DEFAULTS[family] | reading.hf)
    except ValidationError as error:
        raise ValueError(f"{reading.name}: {describe(error)}") from None
    attention = reading.config()
    kind, layers, hidden = (
        "mla" if isinstance(attention, MLAConfig) else "gqa",
        len(reading.types),
        attention.hidden_size,
    )
    experts = _with_experts(family, file, layers)
    values: dict[str, Any] = {
        "vocab_size": file.vocab_size,
        "hidden_size": hidden,
        "layers": (kind,) * layers,
        "feed_forward": tuple("moe" if expert else "dense" for expert in experts),
        "intermediate_size": None if all(experts) else file.intermediate_size,
        kind: attention,
        "num_mtp_layers": file.num_nextn_predict_layers or 0,
        "rms_norm_eps": file.rms_norm_eps,
        "tie_word_embeddings": file.tie_word_embeddings,
    }
    if any(experts):
        values["moe"] = _moe(reading, family, file)
    if family == "minicpm3":
        depth = file.scale_depth or layers**0.5
        values |= {
            "embedding_scale": file.scale_emb,
            "residual_scale": depth / layers**0.5,
            "logit_scale": (file.dim_model_base or hidden) / hidden,
        }
    return values


def _with_experts(family: str, file: _File, layers: int) -> list[bool]:
    """Of each layer whether it has experts."""
    if file.n_routed_experts is None or "n_routed_experts" not in DEFAULTS[family]:
        return [False] * layers
    if family == "glm4_moe_lite" and file.mlp_layer_types is not None:
        if len(file.mlp_layer_types) != layers:
            given = len(file.mlp_layer_types)
            raise ValueError(f"mlp_layer_types lists {given} layers; expected num_hidden_layers, {layers}")
        return [kind == "sparse" for kind in file.mlp_layer_types]
    dense = 1 if family == "glm4_moe_lite" else file.first_k_dense_replace
    return [layer >= dense for layer in range(layers)]


def _moe(reading: Reading, family: str, file: _File) -> dict[str, Any]:
    for name in ("num_experts_per_tok", "moe_intermediate_size"):
        if getattr(file, name) is None:
            raise ValueError(f"{reading.name}: {name} is None; expected a positive integer")
    softmax = family == "deepseek_v2"
    if (file.scoring_func == "softmax") != softmax or (file.topk_method == "noaux_tc") == softmax:
        expected = "'softmax' and a greedy choice" if softmax else "'sigmoid' and 'noaux_tc'"
        found = f"scoring_func is {file.scoring_func!r} and topk_method {file.topk_method!r}"
        raise ValueError(f"{reading.name}: {found}; expected {expected}")
    grouped = file.topk_method != "greedy"
    return {
        "n_routed_experts": file.n_routed_experts,
        "num_experts_per_tok": file.num_experts_per_tok,
        "moe_intermediate_size": file.moe_intermediate_size,
        "n_shared_experts": file.n_shared_experts or 0,
        "n_group": (file.n_group or 1) if grouped else 1,
        "topk_group": (file.topk_group or 1) if grouped else 1,
        "scoring_func": file.scoring_func,
        # transformers' V2 never divides by the sum, whatever the file says.
        "norm_topk_prob": file.norm_topk_prob and not softmax,
        "routed_scaling_factor": file.routed_scaling_factor,
    }
