"""The numbers that define an attention layer, checked once, where they enter.

``GQAConfig`` covers multi-head, multi-query and grouped-query attention, ``MLAConfig`` multi-head latent attention.
``config_from_hf`` reads either from a Hugging Face ``config.json``. Nothing here imports torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    model_validator,
)


def _even(width: int) -> int:
    if width % 2:
        raise ValueError("expected an even number, since rotation turns pairs of numbers")
    return width


PositiveInt = Annotated[int, Field(strict=True, gt=0)]
EvenPositiveInt = Annotated[PositiveInt, AfterValidator(_even)]
EvenNonNegativeInt = Annotated[int, Field(strict=True, ge=0), AfterValidator(_even)]


class _Checked(BaseModel):
    """Immutable, no unknown names; a bad value is one ``ValueError`` that names argument, value and expectation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(f"{type(self).__name__}: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """A pydantic error in one line: each argument, the value it was given, and what was expected."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False):
        message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        name = ".".join(str(part) for part in fault["loc"])
        given = f"{name} is {fault['input']!r}; " if name and fault["type"] != "missing" else name and f"{name}: "
        lines.append(given + message)
    return "; ".join(lines)


class LinearScaling(_Checked):
    """Position interpolation: every angle is divided by ``factor`` (Chen et al. 2023)."""

    rope_type: Literal["linear"] = "linear"
    factor: PositiveFloat


class Llama3Scaling(_Checked):
    """Llama 3.1's stretch: slow pairs are divided by ``factor``, fast ones kept, those between blended."""

    rope_type: Literal["llama3"] = "llama3"
    factor: PositiveFloat
    low_freq_factor: PositiveFloat
    high_freq_factor: PositiveFloat
    original_max_position_embeddings: PositiveInt

    @model_validator(mode="after")
    def _band_is_not_empty(self):
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor is {self.high_freq_factor}; expected more than "
                f"low_freq_factor, {self.low_freq_factor}"
            )
        return self


class YarnScaling(_Checked):
    """YaRN (Peng et al. 2023): interpolation by frequency band, and a factor on the softmax.

    ``mscale`` and ``mscale_all_dim`` are DeepSeek's two knobs for that factor; see ``rope.yarn_mscale``.
    """

    rope_type: Literal["yarn"] = "yarn"
    factor: PositiveFloat
    original_max_position_embeddings: PositiveInt
    beta_fast: PositiveFloat = 32.0  # rotations within the original context above which a pair is left alone
    beta_slow: PositiveFloat = 1.0  # rotations below which a pair is interpolated in full
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: PositiveFloat | None = None  # where given, replaces the factor derived from mscale
    truncate: bool = True  # round the band's two ends outwards to whole pairs


RopeScaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling, Field(discriminator="rope_type")]


class GQAConfig(_Checked):
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


class MLAConfig(_Checked):
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
    rope_theta: PositiveFloat | None = 10000.0
    rope_scaling: RopeScaling | None = None

    def __init__(self, hidden_size, num_attention_heads, **options):
        super().__init__(hidden_size=hidden_size, num_attention_heads=num_attention_heads, **options)

    @property
    def kind(self) -> Literal["mla"]:
        return "mla"

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


def _require(hf: Mapping[str, Any], key: str) -> int:
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
    num_attention_heads = _require(hf, "num_attention_heads")
    hidden_size = _require(hf, "hidden_size")
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


def _deepseek_from_hf(hf: Mapping[str, Any]) -> MLAConfig:
    return MLAConfig(
        _require(hf, "hidden_size"),
        _require(hf, "num_attention_heads"),
        q_lora_rank=hf.get("q_lora_rank"),
        kv_lora_rank=_require(hf, "kv_lora_rank"),
        qk_nope_head_dim=_require(hf, "qk_nope_head_dim"),
        qk_rope_head_dim=_require(hf, "qk_rope_head_dim"),
        v_head_dim=_require(hf, "v_head_dim"),
        **_rope_from_hf(hf),
    )


_FAMILIES = {
    "llama": _llama_from_hf,
    "mistral": _mistral_from_hf,
    "deepseek_v2": _deepseek_from_hf,
    "deepseek_v3": _deepseek_from_hf,
}
