"""NVIDIA's assembler, ptxas, as Triton finds it: which one makes the machine code, and whether it is known to fail."""

import re
from pathlib import Path
from typing import NamedTuple


def known_fault(version: str) -> str | None:
    """What is known against a version of ptxas, such as "12.8"; None if nothing is.

    12.8 and 12.9 give registers away that a wgmma which still runs reads: wrong numbers without an error, on sm_90
    from 64 rows of queries on. 13.1 does not. Source: Triton's pull requests 9433 and 11781.
    """
    if re.match(r"12\.[89]\b", version):
        return f"ptxas {version} is known to overwrite registers that wgmma (sm_90, from 64 rows on) still reads"
    return None


class Assembler(NamedTuple):
    """One ptxas."""

    path: str
    version: str  # as "12.8"

    @property
    def warning(self) -> str | None:
        """``known_fault``, with what helps: Triton's wheel has a newer one for sm_100, which can be taken for all."""
        fault, other = known_fault(self.version), Path(self.path).with_name("ptxas-blackwell")
        if fault is None or not other.is_file():
            return fault
        return f"{fault}; TRITON_PTXAS_PATH={other} takes the newer one beside it"


def assembler(arch: str) -> Assembler:
    """The ptxas that Triton runs for ``"sm_90"`` and the like; ``TRITON_PTXAS_PATH`` names another.

    Raises:
        ImportError: Triton is not installed.
        RuntimeError: Triton finds no ptxas.
    """
    from triton import knobs

    blackwell = int(arch[3:]) >= 100 and hasattr(knobs.nvidia, "ptxas_blackwell")
    tool = knobs.nvidia.ptxas_blackwell if blackwell else knobs.nvidia.ptxas
    return Assembler(tool.path, tool.version)
