"""What each rank of a launch runs: all cases, in one process group; rank 0 writes down what every rank found.

A case compares what ranks make together with what one process makes alone, and bytes as they were counted where they
passed with what the cost model says. ``torchrun worker.py FILE``.
"""

import json
import sys
import time
import traceback
from pathlib import Path

import torch

import engine_cases
import layer_cases
from mla_edu.distributed import connect
from rank_case import Case

CASES = [
    layer_cases.tensor_latents,
    layer_cases.tensor_groups,
    layer_cases.tensor_mlps,
    layer_cases.padded_sums,
    layer_cases.data_layer,
    layer_cases.context_decode,
    layer_cases.context_rejected,
    layer_cases.context_fp8,
    layer_cases.context_bf16,
    engine_cases.serve_tensor,
    engine_cases.serve_context,
    engine_cases.serve_data,
    engine_cases.serve_sampled,
    engine_cases.disagreements,
]


def main(path, names):
    torch.set_num_threads(1)
    found, start = {}, time.perf_counter()
    with connect(timeout=40, network="gloo") as ranks, torch.no_grad():
        for run in CASES:
            if names and run.__name__ not in names:
                continue
            case, failed = Case(ranks), None
            try:
                run(case)
            except Exception:
                failed = traceback.format_exc()
            took, start = time.perf_counter() - start, time.perf_counter()
            own = {"took": took, "error": case.error, "bytes": case.bytes, "failed": failed}
            found[run.__name__] = ranks.gather_values(own)
    if ranks.rank == 0:
        Path(path).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
