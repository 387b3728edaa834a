"""The decode step over a paged latent cache: its specification, its Triton kernels, their tiles."""

from mla_edu.kernels.api import mla_decode, workspace_bytes
from mla_edu.kernels.views import join_rows

__all__ = ["join_rows", "mla_decode", "workspace_bytes"]
