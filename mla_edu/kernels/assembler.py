"""NVIDIA's assembler, ptxas, as Triton finds it: which one makes the machine code, and whether it is known to fail."""

import re
from pathlib import Path
from typing import NamedTuple


class Assembler(NamedTuple):
    """One ptxas."""

    path: str
    version: str  # as "12.8"

    @property
    def warning(self) -> str | None:
        """What is known against it, and what helps; None if nothing is.

        ptxas 12.8 and 12.9 give registers away that a wgmma which still runs reads: wrong numbers without an error,
        on sm_90 from 64 rows of queries on. 13.1 does not. Source: Triton's pull requests 9433 and 11781.
        """
        if not re.match(r"12\.[89]\b", self.version):
            return None
        other = Path(self.path).with_name("ptxas-blackwell")
        advice = f"; TRITON_PTXAS_PATH={other} takes the one beside it" if other.is_file() else ""
        return f"ptxas {self.version} is known to overwrite registers that wgmma (sm_90) still reads{advice}"


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
