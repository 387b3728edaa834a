"""A notebook's kernel in a process that was forked; it imports little, for each kernel imports it anew."""

import gc
import multiprocessing
import os
import sys
import threading

# By the process that forks, and nothing of this project.
IMPORTED_ONCE = [
    "anywidget",
    "ipykernel.kernelapp",
    "ipykernel.zmqshell",
    "matplotlib.backends.backend_svg",
    "matplotlib.pyplot",
    "torch",
    "torch.utils.flop_counter",
    "transformers.models.deepseek_v3.modeling_deepseek_v3",
    "triton.language",
]


def serve(command: list[str], environment: dict[str, str], folder: str) -> None:
    """What ``python -m ipykernel_launcher ...`` does, with random numbers of its own."""
    gc.freeze()  # what the libraries hold is not searched for garbage, and so stays shared memory
    import ipykernel_launcher
    import numpy as np
    import torch
    from ipykernel.kernelapp import launch_new_instance

    threading.Thread(target=_end_with_the_client, daemon=True).start()
    torch.seed()
    np.random.seed()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    options = command[command.index("ipykernel_launcher") + 1 :]
    sys.argv = [ipykernel_launcher.__file__, *options]
    # With a parent it does not tell the terminal how to end it.
    launch_new_instance(argv=[*options, f"--IPKernelApp.parent_handle={os.getppid()}"])


def _end_with_the_client() -> None:
    """A kernel lives no longer than the process that asked for it, however that one ends."""
    multiprocessing.parent_process().join()
    os._exit(1)
