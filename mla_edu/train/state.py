"""A training run on disk: one file that is whole or not there, and a folder that one process writes."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STATE = "state.safetensors"
LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone; the lock goes with the process.

    Raises:
        FileExistsError: another process writes into it.
        ImportError: ``filelock``, which torch brings, is not installed.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError:
        raise ImportError("training needs filelock: pip install filelock") from None
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(f"--out: another process trains into {folder}; expected a folder of its own") from None
    try:
        yield
    finally:
        lock.release()


def save_state(
    path: Path, model: nn.Module, optimizers: dict[str, torch.optim.Optimizer], facts: dict[str, Any]
) -> None:
    """Write weights, buffers and what the optimizers remember, with ``facts`` in the header.

    The file is written beside the old one, brought to the disk and then renamed: a crash at any moment leaves one of
    the two.
    """
    from safetensors.torch import save_file

    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for kind, optimizer in optimizers.items():
        for parameter, remembered in optimizer.state.items():
            tensors |= {f"{kind}.{names[parameter]}.{key}": tensor for key, tensor in remembered.items()}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    beside = path.with_suffix(".partial")
    save_file(whole, beside, {"facts": json.dumps(facts)})
    with beside.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


def read_facts(path: Path) -> dict[str, Any]:
    """What ``save_state`` was told beside the tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of ``save_state``.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the checkpoint of a run")
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {})["facts"])
            return facts
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is not the checkpoint of a run: {error}") from None


def load_state(path: Path, model: nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> None:
    """Put back what ``save_state`` wrote, for a model and optimizers of the same configuration."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    device = next(model.parameters()).device
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    parameters = dict(model.named_parameters())
    for kind, optimizer in optimizers.items():
        for name, tensor in tensors.items():
            if name.startswith(f"{kind}."):
                parameter, _, key = name.removeprefix(f"{kind}.").rpartition(".")
                place: Tensor = tensor if key == "step" else tensor.to(device)
                optimizer.state[parameters[parameter]][key] = place
