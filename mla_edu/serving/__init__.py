"""Many requests at once: an engine over pages, with shared beginnings and guessed tokens."""

from mla_edu.serving.engine import Engine
from mla_edu.serving.request import Event, Request, SamplingParams
from mla_edu.serving.speculate import NGramDrafter

__all__ = ["Engine", "Event", "NGramDrafter", "Request", "SamplingParams"]
