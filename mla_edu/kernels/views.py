"""A row of queries or of the cache out of its two parts, for callers who have them apart."""

from jaxtyping import Shaped
from torch import Tensor

from mla_edu.validation import shown


def join_rows(
    latent: Shaped[Tensor, "*rows kv_lora_rank"], rotary: Shaped[Tensor, "*rows qk_rope_head_dim"]
) -> Shaped[Tensor, "*rows row"]:
    """The rows that two slices were cut from: ``mla_decode`` takes a row in one piece, and other kernels its parts.

    Of ``q_nope, q_pe = q.split((512, 64), -1)`` it gives ``q`` again, of ``ckv`` and ``kpe`` the cache, without a copy.

    Args:
        latent: the first part of each row.
        rotary: the second, which begins in memory where the first ends.

    Raises:
        TypeError: one of them is no tensor.
        ValueError: they are not neighbours in one piece of memory. No view can join them then: ``torch.cat`` copies
            queries, which are small; a cache must be allocated in one piece.
    """
    for name, part in (("latent", latent), ("rotary", rotary)):
        if not isinstance(part, Tensor):
            raise TypeError(f"{name} is {shown(part)}; expected a tensor")
    like = latent.dtype, latent.device, latent.shape[:-1]
    if (rotary.dtype, rotary.device, rotary.shape[:-1]) != like or not latent.ndim:
        raise ValueError(
            f"latent is {latent.dtype} {list(latent.shape)} on {latent.device}, rotary {rotary.dtype} "
            f"{list(rotary.shape)} on {rotary.device}; expected them alike but for their width"
        )
    steps = [  # a dimension of one has no next
        (a, b) for size, a, b in zip(latent.shape, latent.stride(), rotary.stride(), strict=True) if size > 1
    ]
    begins = latent.storage_offset() + latent.shape[-1] * latent.stride(-1)
    same_memory = latent.untyped_storage().data_ptr() == rotary.untyped_storage().data_ptr()
    if not same_memory or rotary.storage_offset() != begins or any(a != b for a, b in steps):
        raise ValueError(
            f"latent {list(latent.shape)} with strides {list(latent.stride())} and rotary {list(rotary.shape)} with "
            f"strides {list(rotary.stride())} are not neighbours in memory; expected slices of the same rows"
        )
    shape = (*latent.shape[:-1], latent.shape[-1] + rotary.shape[-1])
    return latent.as_strided(shape, latent.stride(), latent.storage_offset())
