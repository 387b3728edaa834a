"""Real models and GPUs: data with their sources, and readers. Needs no torch.

``get_model`` looks a model up in the registry, ``spec_from_hf`` reads any other from its ``config.json``.
"""

from mla_edu.models.gpus import GPUSpec, get_gpu, list_gpus
from mla_edu.models.hf import spec_from_hf
from mla_edu.models.registry import get_model, list_models
from mla_edu.models.spec import CacheGroup, ModelSpec

__all__ = [
    "CacheGroup",
    "GPUSpec",
    "ModelSpec",
    "get_gpu",
    "get_model",
    "list_gpus",
    "list_models",
    "spec_from_hf",
]
