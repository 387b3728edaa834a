"""Times the decode kernel on this machine's GPU, beside its peers; writes ``results/<gpu>.json``.

The same as ``mla-edu bench --results mla_edu/bench/measured``. Arguments pick a part of the grid, which is
printed and not written: ``python benchmarks/decode_kernel.py heads=16 context=64k``.
"""

import sys
from pathlib import Path

from mla_edu.cli import app

if __name__ == "__main__":
    app(["bench", "--results", str(Path(__file__).parents[1] / "mla_edu" / "bench" / "measured"), *sys.argv[1:]])
