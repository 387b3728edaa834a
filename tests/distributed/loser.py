"""A rank that works with the others until one of them falls silent: ``loser.py FILE SECONDS COUNT``.

It begins once COUNT ranks have read their libraries, so that a short time is enough to meet. It notes its process in
``FILE.rank``, by which the test can end or stop it.
"""

import os
import sys
import time
from pathlib import Path

import torch

from mla_edu.distributed import connect

file, seconds, count = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
Path(f"{file}.ready{os.environ['RANK']}").touch()
while not all(Path(f"{file}.ready{rank}").exists() for rank in range(count)):
    time.sleep(0.02)
with connect(timeout=seconds, network="gloo") as ranks:
    for _ in range(10):
        ranks.all_reduce(torch.ones(5), "sums")
    Path(f"{file}.{ranks.rank}").write_text(str(os.getpid()))
    while True:
        ranks.all_reduce(torch.ones(5), "sums")
