"""Compile the kernels and run a part of their interpreted tests with several versions of Triton (needs the network).

    python tools/check_triton_versions.py 3.4.0 3.7.1

Each version is installed beside the environment, for the length of its run; nothing in the environment changes.
Registers are allotted by the assembler that a version brings, so spills are shown here and forbidden only for the
pinned version, by tests/kernels/test_offline.py.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ["3.4.0", "3.5.1", "3.6.0", "3.7.1", "3.8.0", "3.9.0"]
OLD_NUMPY = "numpy<2.4"  # the interpreters before 3.7 make integers of arrays, which newer ones refuse
TESTS = ["tests/kernels/test_decode.py", "-k", "not every_tile and not any_shape and not 2_to_the_31"]
COMPILE = """
import triton
from mla_edu.kernels.offline import ARCHITECTURES, Request, compile_reports
from mla_edu.kernels.tiles import SHARED_LIMIT

nvidia = [arch for arch in ARCHITECTURES if arch.startswith("sm_")]  # some wheels cannot link for AMD
requests = [Request(arch, "fp16" if arch == "sm_75" else "bf16", heads) for arch in nvidia for heads in (16, 128)]
requests += [Request("sm_90", "bf16", heads) for heads in (32, 64)]
fp8 = [Request("sm_80", "fp8_mla", 16), *(Request("sm_90", "fp8_mla", heads) for heads in (16, 32, 128))]
reports = compile_reports([*requests, *fp8])
assert all(report.shared_bytes <= SHARED_LIMIT[report.arch] for report in reports)
assert all(report.tensor_core_instructions or report.arch == "sm_75" for report in reports)
spills = [f"{r.arch} {r.dtype} {r.num_heads} heads {r.spill_bytes} B" for r in reports if r.spill_bytes]
ptxas = " and ".join(dict.fromkeys(report.assembler for report in reports))
print(f"Triton {triton.__version__}, ptxas {ptxas}: {len(reports)} kernels compile and fit")
print(f"  spills: {', '.join(spills) or 'none'}")
"""


def check(version: str) -> bool:
    """Whether the kernels compile and are right with this version; what fails is printed."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        numpy = [OLD_NUMPY] if tuple(map(int, version.split(".")[:2])) < (3, 7) else []
        subprocess.run([*pip, "--target", folder, f"triton=={version}", *numpy], check=True)
        cache = str(Path(folder) / "cache")
        environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "TRITON_CACHE_DIR": cache}
        compiled = subprocess.run([sys.executable, "-c", COMPILE], env=environment, cwd=ROOT)
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", *TESTS]
        tests = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    failures = [line for line in tests.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    print(f"  interpreted: {(tests.stdout.splitlines() or [tests.stderr])[-1]}", *failures, sep="\n    ", flush=True)
    return compiled.returncode == tests.returncode == 0


if __name__ == "__main__":
    passed = [check(version) for version in sys.argv[1:] or VERSIONS]
    sys.exit(not all(passed))
