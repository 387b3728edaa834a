"""Whole models, and single layers out of their checkpoints."""

from mla_edu.models.cache import ModelCache
from mla_edu.models.config import ModelConfig
from mla_edu.models.decoder import Decoder
from mla_edu.models.generate import generate
from mla_edu.models.load import load_attention, load_model
from mla_edu.models.save import save_model

__all__ = ["Decoder", "ModelCache", "ModelConfig", "generate", "load_attention", "load_model", "save_model"]
