"""How files are read: a user's, of which anything may be wrong, and the package's own."""

import codecs
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import IO, Any

import yaml

from mla_edu.validation import readable, shown

TEXT = 2**26  # bytes: more than any config.json, index or file of prompts has


def check_path(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a path: an integer would be the number of an open file."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} is {shown(value)}; expected a path")


def check_folder(name: str, value: str | Path, expected: str) -> None:
    """Raise an error unless ``value`` is a folder; a checkpoint that the file lies in is named.

    Raises:
        TypeError: it is no path.
        FileNotFoundError: there is nothing.
        ValueError: there is something else.
    """
    check_path(name, value)
    if not os.path.lexists(value):
        raise FileNotFoundError(f"{readable(value)}: no such folder; expected {expected}")
    if not os.path.isdir(value):
        beside = Path(value).parent
        hint = f", such as {readable(beside)}" if os.path.isfile(beside / "config.json") else ""
        raise ValueError(f"{readable(value)} is no folder; expected {expected}{hint}")


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object for ``json.loads``, which would keep the last value of a name that is given twice.

    Raises:
        ValueError: a name is given twice.
    """
    if twice := _given_twice([name for name, _ in pairs]):
        raise ValueError(f"{shown(twice[0])} is given twice")
    return dict(pairs)


def _given_twice(names: list[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


class _OnceEach:
    """A loader that refuses a name given twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := _given_twice(names):
            raise yaml.MarkedYAMLError(problem=f"{twice[0]} is given twice", problem_mark=node.start_mark)
        found: dict[Any, Any] = super().construct_mapping(node, deep)  # type: ignore[misc]
        return found


class _Loader(_OnceEach, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # in C, ten times faster
    """For the package's own files."""


class _UserLoader(_OnceEach, yaml.SafeLoader):
    """For files of a user: nesting that is too deep ends in an error, where C would end the process."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines of them stand for gigabytes
            raise yaml.YAMLError("it has an alias; expected values in its place")
        return super().compose_node(parent, index)


# PyYAML takes 1e-3, a number in YAML 1.2, for a text.
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_UserLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """The contents of a YAML text of the package.

    Raises:
        yaml.YAMLError: it is not YAML, or a mapping has a name twice.
    """
    return yaml.load(text, Loader=_Loader)


def parse_user_yaml(text: str) -> Any:
    """The contents of a YAML text of a user.

    Raises:
        ValueError: it is not YAML, is nested too deeply, has an alias, or a mapping has a name twice.
    """
    try:
        return yaml.load(text, Loader=_UserLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ValueError(f"{error.problem}{where}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def read_text(path: str | Path, expected: str, limit: int = TEXT) -> str:
    """The text of a user's file, in UTF-8 or, with its mark, in UTF-16 as Windows writes it.

    Args:
        path: of the file.
        expected: what the error says where it is something else.
        limit: most bytes that it may have; no more are read.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        TypeError: ``path`` is not a path.
        ValueError: it is a folder or a device, too large, or no text.
    """
    with open_file(path, expected) as file:
        return decode(file, readable(path), expected, limit)


@contextmanager
def open_file(path: str | Path, expected: str) -> Iterator[IO[bytes]]:
    """A user's file, open; raises as ``read_text`` does where there is none or it is a folder or a device."""
    check_path("path", path)
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        raise
    except (OSError, ValueError):  # a name that no file can have, too
        raise FileNotFoundError(f"{readable(path)}: no such file; expected {expected}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise ValueError(f"{readable(path)} is {kind}; expected {expected}")
    with open(path, "rb") as file:
        try:
            yield file
        except OSError as error:
            if error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, str(path)) from None


def decode(file: IO[bytes], where: str, expected: str, limit: int = TEXT) -> str:
    """The text in an open file; raises ``ValueError`` where it is none, or too long."""
    data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{where} has more than {limit:,} bytes; expected {expected}")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"{where} is not a text in UTF-8; expected {expected}")
    return text


def load_yaml(package: str, name: str) -> Any:
    """The contents of a data file of a package."""
    return parse_yaml(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


def yaml_parts(package: str, name: str, start: str) -> dict[str, str]:
    """The entries of a data file as text: a command needs one of them, and all would take it longer than all else.

    Args:
        package: where the file lies.
        name: of the file.
        start: a pattern of an entry's first line, whose group is the entry's name.
    """
    text = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    found = list(re.finditer(start, text, re.MULTILINE))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {match[1]: text[match.start() : end] for match, end in zip(found, ends, strict=True)}
