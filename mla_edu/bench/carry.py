"""What to take along to a machine without a network, on which some packages are installed already."""

import re
from collections.abc import Iterable
from importlib import metadata
from typing import NamedTuple

EXTRAS = ("kernels", "hf")
# Kernels of others that come as one wheel, each with what it imports of what it asks for (FlashInfer 0.6.18 imports
# neither cutlass-dsl nor cudnn-frontend nor nccl4py where its MLA kernels are compiled; FlashMLA asks for a torch that
# it does not need).
OTHERS: dict[str, tuple[str, ...]] = {
    "flashinfer-python": (
        "apache-tvm-ffi", "charset-normalizer", "click", "einops", "ninja", "numpy", "nvidia-ml-py", "packaging",
        "requests", "tabulate", "tqdm",
    ),
    "sgl-flash-mla": (),
}  # fmt: skip
# pip takes wheels for these names alone, as exactly as they are written.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


class Luggage(NamedTuple):
    """What the other machine lacks, as pip is asked for it; and what it has that is older than is asked for."""

    ours: list[str]  # what this package needs, each as "name==version" of what is installed here
    others: list[str]  # kernels of others
    outdated: list[str]  # as "transformers 5.17.0, where >=5.18 is asked for"


def read_environment(lines: Iterable[str]) -> dict[str, str]:
    """Names and versions of what is installed, from what ``pip freeze`` or ``pip list`` printed there; or only names.

    Raises:
        ValueError: a line is neither.
    """
    found = {}
    for line in filter(None, map(str.strip, lines)):
        if line.startswith(("#", "-")) or line.split() == ["Package", "Version"]:
            continue
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?: @ .*|(?:==|\s+)(\S+).*)?", line)
        if not match:
            raise ValueError(f"the environment has the line {line!r}; expected one of pip freeze or pip list")
        found[_normal(match[1])] = match[2] or ""
    return found


def luggage(environment: dict[str, str], python: str) -> Luggage:
    """What to carry.

    Args:
        environment: from ``read_environment``.
        python: of the other machine, as "3.12".

    Raises:
        ImportError: the package ``packaging`` is not installed.
    """
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        raise ImportError("reading what packages need takes packaging: pip install packaging") from None
    marker_values = {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux",
        "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix", "extra": "",
    }  # fmt: skip
    ours: dict[str, str] = {}
    outdated: list[str] = []
    todo = [(each, extra) for each in metadata.requires("mla-edu") or () for extra in ("", *EXTRAS)]
    while todo:
        text, extra = todo.pop(0)
        need = Requirement(text)
        name = _normal(need.name)
        if name in ours or (need.marker and not need.marker.evaluate(marker_values | {"extra": extra})):
            continue
        if name in environment:
            version = environment[name]
            note = f"{need.name} {version}, where {need.specifier} is asked for"
            if version and not need.specifier.contains(version, prereleases=True) and note not in outdated:
                outdated.append(note)
            continue
        ours[name] = metadata.version(name).partition("+")[0]  # the build for this machine is not that for the other
        todo += [(each, "") for each in metadata.requires(name) or ()]
    others = dict.fromkeys(each for name, needs in OTHERS.items() for each in (name, *needs))
    return Luggage(
        [f"{name}=={version}" for name, version in ours.items()],
        [name for name in others if name not in environment and name not in ours],
        outdated,
    )


def download_command(packages: Iterable[str], python: str) -> str:
    """The command that fetches wheels for a machine of another Python, into the folder ``wheels``."""
    platforms = " ".join(f"--platform {name}" for name in PLATFORMS)
    return (
        f"python -m pip download --no-deps --only-binary=:all: --python-version {python} --implementation cp "
        f"{platforms} -d wheels {' '.join(packages)}"
    )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
