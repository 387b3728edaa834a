"""Text to learn from, one token per byte: Python's standard library, which needs no download, or any files."""

import hashlib
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mla_edu.files import check_path
from mla_edu.validation import shown

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
        TypeError: ``folder`` is not a path.
    """
    if folder is not None:
        check_path("folder", folder)
    folder = Path(folder or sysconfig.get_path("stdlib"))
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    kept = {name: path for name, path in paths.items() if not EXCLUDED & set(name.split("/"))}
    return _corpus(kept, f"{folder} holds {len(kept)} .py files; expected Python's standard library")


def text_files(places: Sequence[str | Path]) -> Corpus:
    """Files of any text, and all files of folders; about a tenth for validation, wherever the folders lie.

    Args:
        places: files or folders.

    Raises:
        FileNotFoundError: a place does not exist, or there are fewer than two files, or all are on one side.
        OSError: a file cannot be read.
        TypeError: ``places`` is no list of paths; a single path is none.
        ValueError: a place is neither a file nor a folder.
    """
    if isinstance(places, str) or not isinstance(places, Sequence):
        raise TypeError(f"places is {shown(places)}; expected a list of paths")
    for place in places:
        check_path("places", place)
    paths: dict[str, Path] = {}
    for number, place in enumerate(map(Path, places)):
        if not place.exists() or not str(places[number]):
            raise FileNotFoundError(f"text: {str(places[number])!r}: no such file or folder")
        if not place.is_dir() and not place.is_file():
            raise ValueError(f"text: {str(places[number])!r} is a device or a pipe; expected a file or a folder")
        folder = place if place.is_dir() else place.parent
        inside = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place]
        paths |= {f"{number}/{path.relative_to(folder).as_posix()}": path for path in inside}
    wanted = "expected enough for a tenth to be kept for validation, ten or more"
    return _corpus(paths, f"text: {len(paths)} files in {', '.join(map(str, places))}; {wanted}")


def _corpus(paths: Mapping[str, Path], too_few: str) -> Corpus:
    parts: dict[bool, list[bytes]] = {False: [], True: []}
    digest = hashlib.sha256()
    for name in sorted(paths):
        text = paths[name].read_bytes()
        digest.update(text)
        held_out = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10 == 0
        parts[held_out].append(text)
    if not parts[False] or not parts[True]:
        raise FileNotFoundError(too_few)

    def tokens(texts: list[bytes]) -> Tensor:
        return torch.from_numpy(np.frombuffer(b"".join(texts), dtype=np.uint8).copy())

    return Corpus(tokens(parts[False]), tokens(parts[True]), len(paths), digest.hexdigest())
