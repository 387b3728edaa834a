"""How much memory loading a whole model takes: the peak of a process of its own, beside the weights."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from mla_edu.models import Decoder, ModelConfig, save_model
from mla_edu.models.load import checkpoint_places

# In a process of its own: what Python and torch take is measured before, the highest mark of all after.
CHILD = """
import re, sys
from pathlib import Path
import safetensors.torch
from mla_edu.models import load_model


def highest_mark():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])


before = highest_mark()
model = load_model(sys.argv[1])
print(highest_mark() - before)
"""


class LoadResult(NamedTuple):
    """What loading took, in bytes."""

    weights: int
    largest_tensor: int  # of the checkpoint
    peak: int  # beyond what Python and torch take

    @property
    def share(self) -> float:
        """The peak beyond the largest tensor, over the weights."""
        return (self.peak - self.largest_tensor) / self.weights


def measure_load(num_experts: int = 160) -> LoadResult:
    """Write a random model of MLA and experts in bf16 into a temporary folder, and load it.

    Args:
        num_experts: of each layer; 160 make 1.2 GB.

    Raises:
        RuntimeError: the system is not Linux, which alone tells the peak of a process; or the process failed; says how.
    """
    import torch

    if sys.platform != "linux":
        raise RuntimeError(f"the system is {sys.platform}; expected linux, which tells the peak of a process")

    config = ModelConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2048,
        layers=("mla", "mla"),
        feed_forward=("dense", "moe"),
        mla={  # type: ignore[arg-type]
            "num_attention_heads": 16,
            "q_lora_rank": 384,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "v_head_dim": 64,
        },
        moe={  # type: ignore[arg-type]
            "n_routed_experts": num_experts,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1024,
            "n_shared_experts": 1,
        },
    )
    with tempfile.TemporaryDirectory() as parent:
        model = Decoder(config, dtype=torch.bfloat16)
        sizes = [tensor.nbytes for tensor in checkpoint_places(model).values()]
        folder = Path(parent) / "model"
        save_model(model, folder)
        del model
        child = subprocess.run([sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True)
        if child.returncode:
            raise RuntimeError(f"the process that loads ended with {child.returncode}: {child.stderr[-500:]}")
    return LoadResult(sum(sizes), max(sizes), int(child.stdout))
