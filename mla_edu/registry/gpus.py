"""Datasheet figures of GPUs (``gpus.yaml``)."""

import functools

from pydantic import BaseModel, ConfigDict, PositiveInt

from mla_edu.files import load_yaml
from mla_edu.registry.lookup import unknown


class GPUSpec(BaseModel):
    """One GPU. Decimal units, as datasheets print them: 1 GB is 10**9 bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    memory: PositiveInt  # bytes
    bandwidth: PositiveInt  # bytes per second
    flops: dict[str, PositiveInt]  # dense peak of the matrix units, FLOP per second, by number format
    sources: tuple[str, ...]


@functools.cache
def _gpus() -> dict[str, GPUSpec]:
    return {entry["name"]: GPUSpec(**entry) for entry in load_yaml("mla_edu.registry", "gpus.yaml")}


def list_gpus() -> list[str]:
    """Names of all GPUs."""
    return list(_gpus())


def get_gpu(name: str) -> GPUSpec:
    """A GPU by its name, in upper or lower case.

    Raises:
        ValueError: no such GPU; names the nearest.
    """
    found = _gpus().get(name.casefold()) if isinstance(name, str) else None
    if found is None:
        raise unknown("GPU", name, list_gpus())
    return found
