"""Times the decode kernel on this machine's GPU, beside its peers; writes ``results/<gpu>.json``.

The same as ``mla-edu bench --results benchmarks/results``. Arguments pick a part of the grid, which is printed and not
written: ``python benchmarks/decode_kernel.py heads=16 context=64k``.
"""

import sys
from pathlib import Path

from mla_edu.cli import app

if __name__ == "__main__":
    app(["bench", "--results", str(Path(__file__).with_name("results")), *sys.argv[1:]])
