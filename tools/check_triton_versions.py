"""Run the compile gate and a part of the interpreted tests on several versions of Triton (needs the network).

    python tools/check_triton_versions.py 3.4.0 3.7.1

Each version is installed beside the environment, for the length of its run; nothing in the environment changes.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ["3.4.0", "3.5.1", "3.6.0", "3.7.1"]
TESTS = ["tests/kernels/test_offline.py", "tests/kernels/test_decode.py", "-k", "not every_tile and not any_shape"]


def check(version: str) -> bool:
    """Whether the tests pass with this version; what failed is printed."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", folder, f"triton=={version}"], check=True)
        cache = str(Path(folder) / "cache")
        environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "TRITON_CACHE_DIR": cache}
        found = subprocess.run(
            [sys.executable, "-c", "import triton; print(triton.__version__)"],
            env=environment, cwd=ROOT, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        if found != version:
            sys.exit(f"Triton {version} was installed, but {found or 'none'} is imported.")
        tests = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--no-header", *TESTS],
            env=environment, cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
    lines = [line for line in tests.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    print(f"Triton {version}: {tests.stdout.splitlines()[-1]}", *lines, sep="\n  ", flush=True)
    return tests.returncode == 0


if __name__ == "__main__":
    passed = [check(version) for version in sys.argv[1:] or VERSIONS]
    sys.exit(not all(passed))
