"""The formats that numbers, weights and caches are stored in, under the names that the whole package uses."""

from dataclasses import dataclass
from typing import Literal, get_args

from mla_edu.hf import WeightFormat
from mla_edu.validation import check_integer, shown

NumberFormat = Literal["fp32", "fp16", "bf16", "fp8"]  # fp8: one byte a number, no scales
RowFormat = Literal["fp8_mla", "fp4_mla_432", "fp4_mla_368", "fp4_mla_352", "fp8_csa"]  # those of ROWS
CacheFormat = Literal["fp32", "fp16", "bf16", "fp8", "fp8_mla", "fp4_mla_432", "fp4_mla_368", "fp4_mla_352", "fp8_csa"]

BYTES_PER_NUMBER: dict[NumberFormat, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
BYTES_OF_32: dict[WeightFormat, int] = {  # of 32 weights, their scale included; that of an fp8 block is left out
    "fp32": 128,
    "fp16": 64,
    "bf16": 64,
    "fp8": 32,
    "fp4": 17,  # MXFP4: 4 bits each and one 8-bit scale (OCP Microscaling Formats v1.0)
    "int4": 18,  # 4 bits each and one 16-bit scale, as in Kimi-K2-Thinking
}
FP8_BLOCK = 128  # numbers that share one fp32 scale in the fp8 layouts of DeepSeek
FP4_GROUP = 16  # numbers that share one e4m3 scale in NVFP4
CSA_WIDTH = 512  # of an entry of DeepSeek-V4, key and value of all heads, 64 rotary numbers among them


@dataclass(frozen=True)
class Row:
    """How one token of one layer is packed."""

    bytes: int  # of a latent of 512 and a rotary key of 64; in DeepSeek-V4, of an entry of 512
    kind: Literal["mla", "csa"]  # of the attention that it is made for
    multiple: int  # what divides the latent's width
    what: str
    source: str


ROWS: dict[RowFormat, Row] = {
    "fp8_mla": Row(
        656,
        "mla",
        FP8_BLOCK,
        "latent in fp8, an fp32 scale per 128, rotary key in bf16",
        "deepseek-ai/FlashMLA tests/quant.py; vLLM's fp8_ds_mla",
    ),
    "fp4_mla_432": Row(
        432,
        "mla",
        FP4_GROUP,
        "latent in NVFP4, an e4m3 scale per 16, 16 bytes left free, rotary key in bf16",
        "https://github.com/local-inference-lab/vllm/pull/82",
    ),
    "fp4_mla_368": Row(
        368,
        "mla",
        FP4_GROUP,
        "latent in NVFP4, an e4m3 scale per 16, rotary key in fp8 with an fp32 scale, 12 bytes left free",
        "https://github.com/local-inference-lab/b12x/pull/37",
    ),
    "fp4_mla_352": Row(
        352,
        "mla",
        FP4_GROUP,
        "latent in NVFP4, an e4m3 scale per 16, rotary key in fp8 without a scale",
        "https://github.com/vllm-project/FlashMLA/pull/18",
    ),
    "fp8_csa": Row(
        584,
        "csa",
        CSA_WIDTH,
        "448 numbers in fp8, 64 rotary ones in bf16, 8 bytes of scales",
        "https://github.com/vllm-project/vllm/pull/56893",
    ),
}
_NAMES = "fp32, fp16, bf16 or fp8"


def number_format(dtype: str) -> NumberFormat:
    """``dtype`` where it names the format of a single number: "fp32", "fp16", "bf16" or "fp8".

    Raises:
        ValueError: it does not.
    """
    if not isinstance(dtype, str) or dtype not in BYTES_PER_NUMBER:
        raise ValueError(f"dtype is {shown(dtype)}; expected {_NAMES} (for a cache of its kind also {', '.join(ROWS)})")
    return dtype


def cache_format(dtype: str) -> CacheFormat:
    """``dtype`` where it names a cache's format: that of a single number, or a row of ``ROWS``.

    Raises:
        ValueError: it does not.
    """
    return dtype if isinstance(dtype, str) and dtype in ROWS else number_format(dtype)


def weight_format(dtype: str) -> WeightFormat:
    """``dtype`` where it names a format of weights: "fp32", "fp16", "bf16", "fp8", "fp4" or "int4".

    Raises:
        ValueError: it does not.
    """
    if not isinstance(dtype, str) or dtype not in BYTES_OF_32:
        raise ValueError(f"weights_dtype is {shown(dtype)}; expected one of {', '.join(get_args(WeightFormat))}")
    return dtype


def bytes_per_number(dtype: NumberFormat) -> int:
    """Bytes of one number.

    Raises:
        ValueError: no such format.
    """
    return BYTES_PER_NUMBER[number_format(dtype)]


def bytes_of_weights(num_weights: int, dtype: WeightFormat) -> int:
    """Bytes of ``num_weights`` weights, the scales of 4-bit formats included.

    Raises:
        ValueError: no such format, or ``num_weights`` is negative.
    """
    check_integer("num_weights", num_weights, lowest=0)
    return -(-num_weights * BYTES_OF_32[weight_format(dtype)] // 32)


def fp8_row_bytes(kv_lora_rank: int, qk_rope_head_dim: int) -> int:
    """Bytes of one token of one MLA layer in the format "fp8_mla": 656 for a latent of 512 and a rotary key of 64.

    The latent in fp8, one fp32 scale per 128 of its numbers, the rotary key in bf16: d_c + 4 d_c / 128 + 2 d_h^R
    (FlashMLA, ``tests/quant.py``).

    Raises:
        ValueError: ``kv_lora_rank`` is no positive multiple of 128, or ``qk_rope_head_dim`` negative.
    """
    _check_width(kv_lora_rank, "fp8_mla")
    check_integer("qk_rope_head_dim", qk_rope_head_dim, lowest=0)
    return kv_lora_rank + 4 * (kv_lora_rank // FP8_BLOCK) + 2 * qk_rope_head_dim


def mla_row_bytes(kv_lora_rank: int, qk_rope_head_dim: int, dtype: RowFormat) -> int:
    """Bytes of one token of one MLA layer in a row format of ``ROWS``, which says what lies in it and whose it is.

    In 4 bits d_c / 2 + d_c / 16, the 16 bytes of the longer rows, and the rotary key in 16 or in 8 bits.

    Raises:
        ValueError: a format that is not for MLA, a ``kv_lora_rank`` that does not suit it, or a negative
            ``qk_rope_head_dim``.
    """
    if not isinstance(dtype, str) or dtype not in ROWS or ROWS[dtype].kind != "mla":
        raise ValueError(f"dtype is {dtype!r}; expected a row of MLA: {', '.join(rows_of('mla'))}")
    if dtype == "fp8_mla":
        return fp8_row_bytes(kv_lora_rank, qk_rope_head_dim)
    _check_width(kv_lora_rank, dtype)
    check_integer("qk_rope_head_dim", qk_rope_head_dim, lowest=0)
    latent = kv_lora_rank // 2 + kv_lora_rank // FP4_GROUP
    rotary = qk_rope_head_dim * (2 if dtype == "fp4_mla_432" else 1)
    return latent + (0 if dtype == "fp4_mla_352" else 16) + rotary


def rows_of(kind: str) -> list[RowFormat]:
    """The row formats that are made for attention of a kind: "mla" or "csa"."""
    return [name for name, row in ROWS.items() if row.kind == kind]


def _check_width(kv_lora_rank: int, dtype: RowFormat) -> None:
    multiple = ROWS[dtype].multiple
    if not isinstance(kv_lora_rank, int) or kv_lora_rank < 1 or kv_lora_rank % multiple:
        raise ValueError(f"kv_lora_rank is {shown(kv_lora_rank)}; expected a multiple of {multiple} for {dtype!r}")
