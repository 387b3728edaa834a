"""Libraries that may not be there."""

import importlib
from types import ModuleType


class Unsupported(Exception):
    """Why a kernel does not run: here at all, or on one case."""


def load(name: str, package: str) -> ModuleType:
    """A module of a library.

    Args:
        name: of the module, with dots.
        package: what to install for it.

    Raises:
        Unsupported: the library is not installed, or cannot be imported; in one line.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a library raises that finds another version than it expects
        if isinstance(error, ModuleNotFoundError) and error.name == name.split(".")[0]:
            raise Unsupported(f"not installed: pip install {package}") from None
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise Unsupported(f"cannot be imported: {reason}") from error
