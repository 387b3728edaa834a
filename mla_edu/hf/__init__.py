"""Hugging Face's ``config.json``: the one reader. Needs no torch."""

from mla_edu.hf.reader import spec_from_hf
from mla_edu.hf.spec import CacheGroup, ModelSpec

__all__ = ["CacheGroup", "ModelSpec", "spec_from_hf"]
