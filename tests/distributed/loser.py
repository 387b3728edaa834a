"""A rank that works with the others, until the last one falls silent: ``loser.py FILE SECONDS``.

It notes its process in ``FILE.rank``, so that the test can end or stop that process itself.
"""

import os
import sys
from pathlib import Path

import torch

from mla_edu.distributed import connect

torch.set_num_threads(1)
with connect(timeout=float(sys.argv[2]), network="gloo") as ranks:
    for _ in range(10):
        ranks.all_reduce(torch.ones(5), "sums")
    Path(f"{sys.argv[1]}.{ranks.rank}").write_text(str(os.getpid()))
    while True:
        ranks.all_reduce(torch.ones(5), "sums")
