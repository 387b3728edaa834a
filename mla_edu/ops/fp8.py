"""The fp8 token of FlashMLA's sparse kernels: 656 bytes hold the 576 numbers of DeepSeek-V3 instead of 1152.

A row is the latent in e4m3, one fp32 scale for every 128 of its numbers, and the rotary key in bf16:

.. code-block:: text

    512 x e4m3 | 4 x fp32 | 64 x bf16        512 + 16 + 128 = 656 bytes

A scale is a power of two, so that applying it rounds nothing. FlashMLA takes any scale; those that its tests write are
powers of two as well, but never below 2**-13. The rotary key stays in bf16.
Source: FlashMLA, ``tests/quant.py``.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mla_edu.cost import FP8_BLOCK, fp8_row_bytes

E4M3_MAX = 448.0


def pack_fp8(rows: Float[Tensor, "*tokens row"], kv_lora_rank: int) -> UInt8[Tensor, "*tokens bytes"]:
    """Cache rows, latent first, as bytes.

    Args:
        rows: of any floating dtype.
        kv_lora_rank: width of the latent part; what follows is the rotary part.

    Raises:
        ValueError: ``kv_lora_rank`` is not a multiple of 128, or wider than a row.
    """
    fp8_row_bytes(kv_lora_rank, 0)
    if kv_lora_rank > rows.shape[-1]:
        raise ValueError(f"kv_lora_rank is {kv_lora_rank}; expected at most the row's width, {rows.shape[-1]}")
    groups = rows[..., :kv_lora_rank].float().unflatten(-1, (-1, FP8_BLOCK))  # [*tokens, groups, 128]
    largest = groups.abs().amax(dim=-1, keepdim=True)
    scales = torch.exp2(torch.ceil(torch.log2(largest / E4M3_MAX)))
    scales = torch.where(scales == 0, 1.0, scales)  # of a group that is all zero
    latent = (groups / scales).to(torch.float8_e4m3fn).flatten(-2)
    k_pe = rows[..., kv_lora_rank:].to(torch.bfloat16).contiguous()
    parts = (latent, scales.squeeze(-1).contiguous(), k_pe)
    return torch.cat([part.view(torch.uint8) for part in parts], dim=-1)


def unpack_fp8(packed: UInt8[Tensor, "*tokens bytes"], kv_lora_rank: int) -> Float[Tensor, "*tokens row"]:
    """The rows that ``packed`` holds, exactly, as float32.

    Raises:
        ValueError: ``kv_lora_rank`` is not a multiple of 128, or ``packed`` is too narrow for it.
    """
    latent_end, scales_end = kv_lora_rank, fp8_row_bytes(kv_lora_rank, 0)
    if packed.shape[-1] < scales_end:
        raise ValueError(f"packed has {packed.shape[-1]} bytes a token; expected at least {scales_end}")
    latent, scales, k_pe = packed.tensor_split((latent_end, scales_end), dim=-1)
    groups = latent.contiguous().view(torch.float8_e4m3fn).float().unflatten(-1, (-1, FP8_BLOCK))
    scaled = groups * scales.contiguous().view(torch.float32).unsqueeze(-1)
    return torch.cat((scaled.flatten(-2), k_pe.contiguous().view(torch.bfloat16).float()), dim=-1)
