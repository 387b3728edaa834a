"""The formats that numbers and caches are stored in, under the names that the whole package uses."""

from typing import Literal

NumberFormat = Literal["fp32", "fp16", "bf16", "fp8"]  # fp8: one byte a number, no scales
CacheFormat = Literal["fp32", "fp16", "bf16", "fp8", "fp8_mla"]  # fp8_mla: the row of fp8_row_bytes

BYTES_PER_NUMBER: dict[NumberFormat, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
FP8_BLOCK = 128  # numbers that share one fp32 scale in the fp8 layouts of DeepSeek


def number_format(dtype: str) -> NumberFormat:
    """``dtype`` where it names the format of a single number: "fp32", "fp16", "bf16" or "fp8".

    Raises:
        ValueError: it does not.
    """
    if dtype not in BYTES_PER_NUMBER:
        raise ValueError(f"dtype is {dtype!r}; expected fp32, fp16, bf16 or fp8 (for a cache of MLA also fp8_mla)")
    return dtype


def cache_format(dtype: str) -> CacheFormat:
    """``dtype`` where it names a cache's format: that of a single number, or "fp8_mla".

    Raises:
        ValueError: it does not.
    """
    return "fp8_mla" if dtype == "fp8_mla" else number_format(dtype)


def bytes_per_number(dtype: NumberFormat) -> int:
    """Bytes of one number.

    Raises:
        ValueError: no such format.
    """
    return BYTES_PER_NUMBER[number_format(dtype)]


def fp8_row_bytes(kv_lora_rank: int, qk_rope_head_dim: int) -> int:
    """Bytes of one token of one MLA layer in the format "fp8_mla": 656 for a latent of 512 and a rotary key of 64.

    The latent in fp8, one fp32 scale per 128 of its numbers, the rotary key in bf16: d_c + 4 d_c / 128 + 2 d_h^R
    (FlashMLA, ``tests/quant.py``).

    Raises:
        ValueError: ``kv_lora_rank`` is no positive multiple of 128.
    """
    if kv_lora_rank < 1 or kv_lora_rank % FP8_BLOCK:
        raise ValueError(f"kv_lora_rank is {kv_lora_rank}; expected a multiple of {FP8_BLOCK} for 'fp8_mla'")
    return kv_lora_rank + 4 * (kv_lora_rank // FP8_BLOCK) + 2 * qk_rope_head_dim
