"""Hugging Face's ``config.json``: the one reader. Needs no torch."""

from mla_edu.hf.config_file import read_hf_config
from mla_edu.hf.reader import config_from_hf, spec_from_hf
from mla_edu.hf.spec import CacheGroup, ModelSpec, WeightFormat, Weights

__all__ = ["CacheGroup", "ModelSpec", "WeightFormat", "Weights", "config_from_hf", "read_hf_config", "spec_from_hf"]
