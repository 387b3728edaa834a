"""A training run on disk: one file that is whole or not there, and a folder that one process writes."""

import importlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mla_edu.models.save import write_tensors
from mla_edu.validation import check_integer, readable

STATE = "state.safetensors"
PARTIAL = ".partial"  # what its name ends in while it is written
LOCK = ".lock"
FACTS = {"step": int, "threads": int, "config": dict, "corpus_sha256": str}
REMEMBERED = {"muon": ("average",), "adamw": ("step", "exp_avg", "exp_avg_sq")}  # of each parameter, by its optimizer


def need_packages() -> None:
    """Raise ``ImportError`` in words unless what a checkpoint is written and guarded with is installed."""
    for name, source in (("safetensors", "'mla-edu[hf]'"), ("filelock", "filelock")):
        try:
            importlib.import_module(name)
        except ImportError:
            raise ImportError(f"training needs {name}: pip install {source}") from None


def check_folder(folder: Path) -> None:
    """Raise ``OSError`` unless the folder can be written to, or made."""
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:  # such as of a name that no folder can have
        why = f"cannot be made: {error.strerror}; expected a folder that can"
        raise type(error)(f"--out: {readable(folder)} {why}") from None
    if not nearest.is_dir():
        raise NotADirectoryError(f"--out: {nearest} is a file; expected a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"--out: {nearest} cannot be written to; expected a folder that can")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone; the lock goes with the process.

    Raises:
        FileExistsError: another process writes into it.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"--out: {folder} cannot be made: {error.strerror}; expected a folder that can") from None
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

    Raises:
        OSError: it cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for kind, optimizer in optimizers.items():
        for parameter, remembered in optimizer.state.items():
            tensors |= {f"{kind}.{names[parameter]}.{key}": tensor for key, tensor in remembered.items()}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    beside = path.with_suffix(PARTIAL)
    write_tensors(whole, beside, {"facts": json.dumps(facts)})
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
        for name, kind in FACTS.items():
            if not isinstance(facts[name], kind):
                raise ValueError(f"{name} is {facts[name]!r}; expected of type {kind.__name__}")
        check_integer("step", facts["step"], 0)
        check_integer("threads", facts["threads"])
        return facts
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the checkpoint of a run: {error}") from None


def load_state(path: Path, model: nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> None:
    """Put back what ``save_state`` wrote, for a model and optimizers of the same configuration.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; says which before any is put back.
    """
    from safetensors.torch import load_file

    tensors = load_file(path)
    device = next(model.parameters()).device
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    expected = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    places: dict[str, tuple[torch.optim.Optimizer, Tensor, str]] = {}
    for kind, optimizer in optimizers.items() if read_facts(path)["step"] else ():
        for parameter in (each for group in optimizer.param_groups for each in group["params"]):
            for key in REMEMBERED[kind]:
                name = f"{kind}.{names[parameter]}.{key}"
                places[name] = optimizer, parameter, key
                expected[name] = torch.Size() if key == "step" else parameter.shape
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected or tensors[name].shape != expected[name]:
            found = f"has shape {list(tensors[name].shape)}" if name in tensors else "is missing"
            wanted = f"shape {list(expected[name])}" if name in expected else "no such tensor"
            raise ValueError(f"{path}: {name} {found}; expected {wanted}")
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    for name, (optimizer, parameter, key) in places.items():
        optimizer.state[parameter][key] = tensors[name] if key == "step" else tensors[name].to(device)


def check_same_run(saved: dict[str, Any], mine: dict[str, Any], folder: Path) -> None:
    """Raise ``ValueError`` unless text and configuration are those of the run in a folder, but for ``num_steps``."""
    if saved["corpus_sha256"] != mine["corpus_sha256"]:
        raise ValueError(f"--resume: the run in {folder} is of another text; expected the same")
    old, new = (_flat(each["config"]) | {"train.num_steps": None} for each in (saved, mine))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise ValueError(
                f"--resume: the run in {folder} is of another configuration: {key} is {new.get(key)!r}; "
                f"expected {old.get(key)!r}"
            )


def _flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested values by their paths: ``train.seed``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return found


def keep_log(path: Path, step: int) -> None:
    """Cut off what a run that stopped had logged past its last checkpoint."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    path.write_text("".join(line for line in lines[:step] if line.endswith("\n")))
