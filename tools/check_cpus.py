"""Execute the chapters as other machines would and compare with the committed outputs: `python tools/check_cpus.py`.

First as a processor without vector units would, on one thread, in another time zone and a narrow terminal; then with
this processor's own instructions on two threads. Says which cell differs and how. PATHS are notebooks; without any,
all chapters.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import numpy as np
from nbclient.exceptions import CellExecutionError

from compare_outputs import notebook_differences
from execute_notebooks import chapters, longest_first
from run_notebook import run

# Each library computes in its own way; what does not apply to a processor is ignored there.
PLAIN = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "NPY_DISABLE_CPU_FEATURES": " ".join(np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])),
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4",  # Python's own math
}
ELSEWHERE = {"TZ": "Pacific/Kiritimati", "COLUMNS": "60", "LC_ALL": "C", "PYTHONHASHSEED": "1"}
MACHINES = {
    "plain instructions, one thread": PLAIN | ELSEWHERE | {"OMP_NUM_THREADS": "1"},
    # Threads that wait sleep, since notebooks run side by side.
    "native instructions, two threads": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
}


def differences(path: Path, warm: bool) -> list[str]:
    """What differs in one notebook, executed in this process's environment, from what was committed."""
    try:
        return notebook_differences(nbformat.read(path, as_version=4), run(path, warm=warm))
    except CellExecutionError as error:
        return [f"a cell failed\n{error}"]


def compare_here() -> None:
    """Execute the notebooks named on the command line, as many at once as there are processors.

    Raises:
        SystemExit: with 1, where an output differs.
    """
    paths = [Path(argument) for argument in sys.argv[1:]]
    same = True
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, found in zip(paths, pool.map(differences, paths, [len(paths) > 1] * len(paths)), strict=True):
            for words in found:
                same = False
                print(f"{path.name}: {words}", flush=True)
    sys.exit(not same)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the outputs that other machines would give.")
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="notebooks; all chapters if none is named")
    named = [path.resolve() for path in parser.parse_args().paths]
    for path in named:
        if not path.is_file():
            parser.error(f"there is no {path}; expected a notebook")
    paths = longest_first(named or chapters())
    differing = []
    for machine, environment in MACHINES.items():
        print(f"Executing {len(paths)} notebooks: {machine} ...", flush=True)
        # By -c, so that there is no script that each kernel would import.
        command = [sys.executable, "-c", "import check_cpus; check_cpus.compare_here()", *map(str, paths)]
        tools = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
        here = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": tools}
        if subprocess.run(command, env=here | environment).returncode:
            differing.append(machine)
    if differing:
        sys.exit(f"Not the same on every machine: {'; '.join(differing)}")
    print("The same outputs each time.")


if __name__ == "__main__":
    main()
