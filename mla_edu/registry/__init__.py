"""Real models and GPUs: data with their sources, and readers. Needs no torch."""

from mla_edu.registry.gpus import GPUSpec, get_gpu, list_gpus
from mla_edu.registry.lookup import get_model, list_models

__all__ = ["GPUSpec", "get_gpu", "get_model", "list_gpus", "list_models"]
