"""Compile the decode kernel for the cases of the gate, and write the figures that may not get worse.

python tools/renew_kernel_figures.py            # tests/kernels/figures.json anew; a new case is a row in it
python tools/renew_kernel_figures.py --table    # Markdown of 16 to 128 heads, bf16 and fp8, on all GPUs; minutes
"""

import argparse
import json
import sys
from pathlib import Path

from mla_edu.kernels.offline import ARCHITECTURES, KernelReport, Request, compile_reports

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
from tests.kernels.launch_without_gpu import CALL, launch_calls  # noqa: E402

FILE = ROOT / "tests" / "kernels" / "figures.json"
CASE = ["arch", "dtype", "num_heads", "s_q", "page_size"]
GLUON_FIGURES = ["registers", "spill_bytes", "shared_bytes"]  # of stage 1
FIGURES = ["registers", "spill_bytes", "shared_bytes", "programs", "bytes_in_flight", "instructions_per_token"]


def row(report: KernelReport) -> list[str | float | None]:
    """A case and its figures; those that AMD's code does not tell are None."""
    return [getattr(report, name) for name in CASE + FIGURES]


def renew() -> None:
    """Compile every case that the file has, and write the file."""
    before = json.loads(FILE.read_text(encoding="utf-8"))
    cases = [each[: len(CASE)] for each in before["rows"]]
    calls = [each[: len(CALL)] for each in before["gluon"]["rows"]]
    gluon = [
        call + [kernels[0][name] for name in GLUON_FIGURES]
        for call, (kernels, _) in zip(calls, launch_calls(calls), strict=True)
    ]
    triton = [row(each) for each in compile_reports([Request(*case) for case in cases])]
    tables = [(CASE + FIGURES, triton), (CALL + GLUON_FIGURES, gluon)]
    first, second = (
        f'"columns": {json.dumps(columns)},\n "rows": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n ]"
        for columns, rows in tables
    )
    FILE.write_text(f'{{{first},\n "gluon": {{{second}}}}}\n', encoding="utf-8")


def table() -> None:
    """Print the figures of many cases."""
    print(f"| {' | '.join(CASE + FIGURES)} |\n|{'---|' * len(CASE + FIGURES)}")
    for arch in ARCHITECTURES:
        plain = "fp16" if arch == "sm_75" else "bf16"
        cases = [
            (dtype, heads, page) for dtype in (plain, "fp8_mla") for heads in (16, 32, 64, 128) for page in (16, 64)
        ]
        for report in compile_reports([Request(arch, dtype, heads, 1, page) for dtype, heads, page in cases]):
            print(f"| {' | '.join('-' if value is None else f'{value}' for value in row(report))} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    table() if parser.parse_args().table else renew()
