"""Many requests at once: an engine over pages, with shared beginnings and guessed tokens."""

from mla_edu.serving.draft import Drafter, MTPDrafter, NGramDrafter
from mla_edu.serving.engine import Engine
from mla_edu.serving.request import Event, Request, SamplingParams

__all__ = ["Drafter", "Engine", "Event", "MTPDrafter", "NGramDrafter", "Request", "SamplingParams"]
