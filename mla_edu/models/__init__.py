"""Whole models, and single layers out of their checkpoints."""

from mla_edu.models.cache import ModelCache
from mla_edu.models.config import ModelConfig
from mla_edu.models.decoder import Decoder
from mla_edu.models.load import load_attention

__all__ = ["Decoder", "ModelCache", "ModelConfig", "load_attention"]
