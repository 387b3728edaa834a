"""A corpus that needs no download: the source code of Python's standard library, one token per byte."""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

# Tests, tools and tables that are hardly prose or code that one would learn from, and what pip has added.
EXCLUDED = {"test", "tests", "idlelib", "lib2to3", "distutils", "pydoc_data", "encodings"}
EXCLUDED |= {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class Corpus:
    """Text as bytes, split by file: no file has a part in both."""

    train: UInt8[Tensor, " train"]
    validation: UInt8[Tensor, " validation"]
    num_files: int
    sha256: str  # of all bytes; differs from one Python version to the next


def standard_library(folder: str | Path | None = None) -> Corpus:
    """The ``.py`` files of the running Python's standard library, without its tests; about a tenth for validation.

    Args:
        folder: where to look instead.

    Raises:
        FileNotFoundError: fewer than two files, or all of them on one side of the split.
    """
    folder = Path(folder or sysconfig.get_path("stdlib"))
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    names = sorted(name for name in paths if not EXCLUDED & set(name.split("/")))
    parts: dict[bool, list[bytes]] = {False: [], True: []}
    digest = hashlib.sha256()
    for name in names:
        text = paths[name].read_bytes()
        digest.update(text)
        held_out = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10 == 0
        parts[held_out].append(text)
    if not parts[False] or not parts[True]:
        raise FileNotFoundError(f"{folder} holds {len(names)} .py files; expected Python's standard library")

    def tokens(texts: list[bytes]) -> Tensor:
        return torch.from_numpy(np.frombuffer(b"".join(texts), dtype=np.uint8).copy())

    return Corpus(tokens(parts[False]), tokens(parts[True]), len(names), digest.hexdigest())
