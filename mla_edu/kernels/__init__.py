"""The decode step over a paged latent cache: its specification, its Triton kernels, their tiles."""

from mla_edu.kernels.api import mla_decode, workspace_bytes

__all__ = ["mla_decode", "workspace_bytes"]
