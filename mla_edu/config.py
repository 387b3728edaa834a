"""The numbers that define an attention layer, checked once, where they enter.

``GQAConfig`` covers multi-head, multi-query and grouped-query attention, ``MLAConfig`` multi-head latent attention.
``config_from_hf`` reads either from a Hugging Face ``config.json``. Nothing here imports torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat, model_validator

from mla_edu.rope_scaling import RopeScaling, YarnScaling
from mla_edu.validation import Checked, EvenNonNegativeInt, EvenPositiveInt, PositiveInt
from mla_edu.validation import describe as describe


class GQAConfig(Checked):
    """One layer of multi-head, multi-query or grouped-query attention.

    Raises:
        ValueError: a value is out of range; names the argument, the value and what was expected.

    Sources: MHA, Vaswani et al. 2017, sec. 3.2; MQA, Shazeer 2019; GQA, Ainslie et al. 2023, sec. 2.2.
    """

    hidden_size: PositiveInt  # width of the residual stream
    num_attention_heads: PositiveInt  # query heads
    num_key_value_heads: PositiveInt  # key/value heads; each serves a group of query heads
    head_dim: EvenPositiveInt  # width of one head; not always hidden_size / num_attention_heads
    rope_theta: PositiveFloat | None = 10000.0  # base of the rotary angles; None: no rotation
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    sliding_window: PositiveInt | None = None  # a query sees at most this many tokens, itself included

    def __init__(self, hidden_size, num_attention_heads, num_key_value_heads, head_dim, **options):
        super().__init__(
            hidden_size=hidden_size,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads,
            head_dim=head_dim,
            **options,
        )

    @model_validator(mode="after")
    def _heads_fit(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}; "
                f"expected a divisor of num_attention_heads, {self.num_attention_heads}"
            )
        return self

    @property
    def kind(self) -> Literal["mha", "mqa", "gqa"]:
        """``"mha"`` with one key/value head per query head, ``"mqa"`` with one for all, ``"gqa"`` between."""
        if self.num_key_value_heads == self.num_attention_heads:
            return "mha"
        return "mqa" if self.num_key_value_heads == 1 else "gqa"

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def elements_per_token(self) -> int:
        """Numbers that this layer caches for one token: a key and a value per key/value head."""
        return 2 * self.num_key_value_heads * self.head_dim


class MLAConfig(Checked):
    """One layer of multi-head latent attention (DeepSeek-V2 paper, sec. 2.1).

    Raises:
        ValueError: a value is out of range; names the argument, the value and what was expected.
    """

    hidden_size: PositiveInt  # d: width of the residual stream
    num_attention_heads: PositiveInt  # n_h
    q_lora_rank: PositiveInt | None  # d_c': width of the query latent; None where queries are not compressed
    kv_lora_rank: PositiveInt  # d_c: width of the key/value latent
    qk_nope_head_dim: PositiveInt  # d_h: width of a key's part without rotation
    qk_rope_head_dim: EvenNonNegativeInt  # d_h^R: width of the rotary key, one for all heads
    v_head_dim: PositiveInt  # d_h: width of a value
    rope_theta: PositiveFloat | None = 10000.0  # base of the rotary angles; None: no rotation
    rope_scaling: RopeScaling | None = None
    rope_interleave: bool = True  # rotation turns neighbours 2i, 2i + 1; else i, i + qk_rope_head_dim / 2
    attention_bias: bool = False  # on q_a_proj, kv_a_proj_with_mqa and o_proj
    mla_scale_q_lora: bool = False  # LongCat-Flash: the query latent times sqrt(hidden_size / q_lora_rank)
    mla_scale_kv_lora: bool = False  # LongCat-Flash: the key/value latent times sqrt(hidden_size / kv_lora_rank)
    llama_4_scaling_beta: NonNegativeFloat = 0.0  # Mistral 4: growth of the queries with their position

    def __init__(self, hidden_size, num_attention_heads, **options):
        super().__init__(hidden_size=hidden_size, num_attention_heads=num_attention_heads, **options)

    @model_validator(mode="after")
    def _scales_have_what_they_need(self):
        if self.mla_scale_q_lora and self.q_lora_rank is None:
            raise ValueError("mla_scale_q_lora is True; expected a q_lora_rank with it")
        if self.llama_4_scaling_beta and not isinstance(self.rope_scaling, YarnScaling):
            raise ValueError(
                f"llama_4_scaling_beta is {self.llama_4_scaling_beta}; expected YaRN's rope_scaling with it, "
                "whose original_max_position_embeddings is the step of the growth"
            )
        return self

    @property
    def kind(self) -> Literal["mla"]:
        return "mla"

    @property
    def qk_head_dim(self) -> int:
        """Width of a whole query or key: the part without rotation and the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def elements_per_token(self) -> int:
        """Numbers that this layer caches for one token: the latent and the shared rotary key (Table 1)."""
        return self.kv_lora_rank + self.qk_rope_head_dim


def read_hf_config(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The dictionary of a Hugging Face ``config.json``.

    Args:
        source: the file, a folder that holds it, or its contents. Where the text model is nested in a multimodal
            one (``text_config``), its part is returned.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a JSON object, or has no ``model_type``.
    """
    if isinstance(source, Mapping):
        where, hf = "the dict", dict(source)
    else:
        path = Path(source)
        where = path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a config.json or a folder that holds one")
        try:
            hf = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(hf, dict):
            raise ValueError(f"{path} holds a {type(hf).__name__}; expected a JSON object")
    hf = hf.get("text_config", hf)
    if not isinstance(hf.get("model_type"), str):
        raise ValueError(f"{where}: model_type is {hf.get('model_type')!r}; expected the name of a model family")
    return hf


def config_from_hf(source: str | Path | Mapping[str, Any]) -> GQAConfig | MLAConfig:
    """The attention configuration in a Hugging Face ``config.json``, its folder, or its dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the family is not supported, a number that it needs is missing, or one is out of range.
    """
    hf = read_hf_config(source)
    family = hf["model_type"]
    if family not in _FAMILIES:
        raise ValueError(f"model_type is {family!r}; expected one of {', '.join(sorted(_FAMILIES))}")
    return _FAMILIES[family](hf)


def require(hf: Mapping[str, Any], key: str) -> int:
    """The number under ``key``; a ``ValueError`` unless it is there and positive."""
    if not isinstance(hf.get(key), int) or hf[key] < 1:
        raise ValueError(
            f"{key} is {hf.get(key)!r}; expected a positive number, as in every {hf['model_type']!r} model"
        )
    return hf[key]


def _rope_from_hf(hf: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` as keyword arguments, from either of the two layouts in use.

    Newer files hold one ``rope_parameters``, older ones ``rope_theta`` beside ``rope_scaling``, whose type is
    called ``type`` or ``rope_type``.
    """
    merged = {"rope_theta": hf.get("rope_theta", 10000.0)}
    merged |= hf.get("rope_scaling") or {}
    merged |= hf.get("rope_parameters") or {}
    theta = merged.pop("rope_theta")
    old_name = merged.pop("type", "default")
    if merged.setdefault("rope_type", old_name) == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    return {"rope_theta": theta, "rope_scaling": merged}


def _gqa_from_hf(hf: Mapping[str, Any], **family_specific: Any) -> GQAConfig:
    num_attention_heads = require(hf, "num_attention_heads")
    hidden_size = require(hf, "hidden_size")
    return GQAConfig(
        hidden_size,
        num_attention_heads,
        hf.get("num_key_value_heads") or num_attention_heads,
        hf.get("head_dim") or hidden_size // num_attention_heads,
        **_rope_from_hf(hf),
        **family_specific,
    )


def _llama_from_hf(hf: Mapping[str, Any]) -> GQAConfig:
    bias = hf.get("attention_bias", False)
    return _gqa_from_hf(hf, qkv_bias=bias, o_bias=bias)


def _mistral_from_hf(hf: Mapping[str, Any]) -> GQAConfig:
    # A file that is silent on either means 8 key/value heads and a window of 4096 (transformers' MistralConfig).
    return _gqa_from_hf({"num_key_value_heads": 8, **hf}, sliding_window=hf.get("sliding_window", 4096))


def _mla_from_hf(hf: Mapping[str, Any], **family_specific: Any) -> MLAConfig:
    rope = _rope_from_hf(hf)
    if rope["rope_scaling"]:
        rope["rope_scaling"].pop("partial_rotary_factor", None)  # the rotated width is qk_rope_head_dim
    options = rope | {"attention_bias": hf.get("attention_bias", False)} | family_specific
    return MLAConfig(
        require(hf, "hidden_size"),
        require(hf, "num_attention_heads"),
        q_lora_rank=hf.get("q_lora_rank"),
        kv_lora_rank=require(hf, "kv_lora_rank"),
        qk_nope_head_dim=require(hf, "qk_nope_head_dim"),
        qk_rope_head_dim=require(hf, "qk_rope_head_dim"),
        v_head_dim=require(hf, "v_head_dim"),
        **options,
    )


def _deepseek_v3_from_hf(hf: Mapping[str, Any]) -> MLAConfig:
    return _mla_from_hf(hf, rope_interleave=hf.get("rope_interleave", True))


def _minicpm3_from_hf(hf: Mapping[str, Any]) -> MLAConfig:
    if hf.get("v_head_dim") is None:
        hf = {**hf, "v_head_dim": require(hf, "hidden_size") // require(hf, "num_attention_heads")}
    rope = _rope_from_hf(hf)
    scaling = rope["rope_scaling"]
    if scaling and scaling["rope_type"] == "longrope" and scaling.get("original_max_position_embeddings"):
        longest = hf.get("max_position_embeddings", 32768)
        scaling.setdefault("factor", longest / scaling["original_max_position_embeddings"])
    return _mla_from_hf(hf, rope_interleave=False, **rope)


def _mistral4_from_hf(hf: Mapping[str, Any]) -> MLAConfig:
    rope = _rope_from_hf(hf)
    scaling = rope["rope_scaling"] or {}
    beta = scaling.pop("llama_4_scaling_beta", None)
    if beta is None:
        raise ValueError("llama_4_scaling_beta is None; expected a number beside the YaRN settings of 'mistral4'")
    for unused in ("max_position_embeddings", "partial_rotary_factor"):
        scaling.pop(unused, None)
    interleave = hf.get("rope_interleave", True)
    return _mla_from_hf(hf, rope_interleave=interleave, llama_4_scaling_beta=beta, **rope)


def _longcat_from_hf(hf: Mapping[str, Any]) -> MLAConfig:
    # LongCat's own files carry both scales as switches; transformers always applies them, and so do we.
    return _mla_from_hf({"rope_theta": 1e7, **hf}, mla_scale_q_lora=True, mla_scale_kv_lora=True)


def _kimi_linear_from_hf(hf: Mapping[str, Any]) -> MLAConfig:
    # Its full-attention layers. Kimi's own code would rotate where mla_use_nope is false; transformers never does.
    return _mla_from_hf(hf, rope_theta=None, rope_scaling=None)


_FAMILIES = {
    "llama": _llama_from_hf,
    "mistral": _mistral_from_hf,
    "deepseek_v2": _mla_from_hf,
    "deepseek_v3": _deepseek_v3_from_hf,
    "deepseek_v32": _mla_from_hf,
    "glm4_moe_lite": _deepseek_v3_from_hf,
    "glm_moe_dsa": _mla_from_hf,
    "kimi_k2": _deepseek_v3_from_hf,
    "kimi_linear": _kimi_linear_from_hf,
    "longcat_flash": _longcat_from_hf,
    "minicpm3": _minicpm3_from_hf,
    "mistral4": _mistral4_from_hf,
    "youtu": _deepseek_v3_from_hf,
}
