"""One decode step of a layer of DeepSeek-V2-Lite's size on the CPU: absorbed, expanded, and transformers' own layer.

All three have the same weights and the same cached tokens. They take turns, so that whatever else the machine does
falls on all alike, and before each call more memory is overwritten than a CPU's caches hold, so that weights and cached
tokens come from memory, as they do where other layers run in between. Prints a table and writes
``results/decode_step_cpu.json``.

float32 comes first, since every CPU multiplies it at full speed; bfloat16 is fast only where the CPU has units for it
(AMX or AVX512-BF16), and there the two are far apart.

The three products and sums over the cache that an absorbed step consists of, beside its projections, are timed on
their own as well, to see where its time goes.

The limit is the larger of two times: cache and weights read once at the bandwidth of copying as many bytes as the cache
has, and the multiply-adds of the step done at the rate of a large matrix product, both measured in the same rounds.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding

from mla_edu import MLAConfig, MultiHeadLatentAttention
from mla_edu.cache import LatentCache
from mla_edu.cost import attention_macs
from mla_edu.testing import relative_error

RESULTS = Path(__file__).parents[1] / "mla_edu" / "bench" / "measured" / "decode_step_cpu.json"
CACHED_TOKENS = (1024, 4096, 16384)
ROUNDS = 15
FLUSHED_BYTES = 2**29
MATMUL_SIZE = 1536

# DeepSeek-V2-Lite.
CONFIG = MLAConfig(
    hidden_size=2048,
    num_attention_heads=16,
    q_lora_rank=None,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    rope_scaling={
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
)


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def median_times(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each step, over rounds in which each runs once, on cold caches; the first round warms up."""
    times = {name: [] for name in steps}
    flush = torch.empty(FLUSHED_BYTES, dtype=torch.uint8)
    for _ in range(1 + ROUNDS):
        for name, step in steps.items():
            flush.fill_(1)
            times[name].append(seconds(step))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def transformers_step(weights: dict[str, Tensor], hidden_states: Tensor, c_kv: Tensor, k_pe: Tensor) -> Callable:
    """A step of transformers' layer after these cached tokens; each call starts from the same cache."""
    widths = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    hf_config = transformers.DeepseekV2Config(
        hidden_size=CONFIG.hidden_size,
        num_attention_heads=CONFIG.num_attention_heads,
        **{name: getattr(CONFIG, name) for name in widths},
        max_position_embeddings=163840,
        rope_parameters=CONFIG.rope_scaling.model_dump(exclude_none=True) | {"rope_theta": CONFIG.rope_theta},
        attn_implementation="sdpa",  # what transformers takes unless told otherwise
    )
    layer = DeepseekV2Attention(hf_config, layer_idx=0).to(hidden_states.dtype)
    layer.load_state_dict(weights)
    cache = DynamicCache(config=hf_config)
    cached = cache.update(c_kv[:, None], k_pe[:, None], 0)
    # transformers turns the angles into a table once for all layers, so this is not timed.
    angles = DeepseekV2RotaryEmbedding(hf_config)(hidden_states, torch.tensor([[c_kv.shape[1]]]))

    def step() -> Tensor:
        cache.layers[0].keys, cache.layers[0].values = cached
        return layer(hidden_states, past_key_values=cache, position_embeddings=angles)[0]

    return step


def our_step(layer: MultiHeadLatentAttention, cache: LatentCache, hidden_states: Tensor, mode: str) -> Callable:
    num_cached = cache.length

    def step() -> Tensor:
        cache.length = num_cached
        return layer(hidden_states, cache, mode)

    return step


def part_steps(rows: Tensor) -> dict[str, Callable]:
    """What an absorbed step does with the cache rows, each part on inputs of the right shape."""
    queries = torch.randn(CONFIG.num_attention_heads, rows.shape[1]).to(rows.dtype)
    latents = rows[:, : CONFIG.kv_lora_rank]
    scores = queries @ rows.T * CONFIG.qk_head_dim**-0.5
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(rows.dtype)
    return {
        "scores": lambda: queries @ rows.T,
        "softmax": lambda: scores.softmax(dim=-1, dtype=torch.float32).to(rows.dtype),
        "weighted_sum": lambda: weights @ latents,
    }


def measure(num_cached: int, dtype: torch.dtype) -> dict[str, float]:
    torch.manual_seed(0)
    layer = MultiHeadLatentAttention(CONFIG, dtype=dtype)
    hidden_states = torch.randn(1, 1, CONFIG.hidden_size, dtype=dtype)
    c_kv = torch.randn(1, num_cached, CONFIG.kv_lora_rank, dtype=dtype)
    k_pe = torch.randn(1, num_cached, CONFIG.qk_rope_head_dim, dtype=dtype)
    cache = LatentCache(CONFIG, max_seq_len=num_cached + 1, dtype=dtype)
    cache.append(c_kv, k_pe)
    steps = {
        "absorbed": our_step(layer, cache, hidden_states, "absorbed"),
        "expanded": our_step(layer, cache, hidden_states, "expanded"),
        "transformers": transformers_step(layer.state_dict(), hidden_states, c_kv, k_pe),
        **part_steps(cache.rows[0]),
        "copy": copy_step(cache.rows),
        "matmul": matmul_step(dtype),
    }
    theirs = steps["transformers"]().float()
    errors = {mode: relative_error(steps[mode]().float(), theirs) for mode in ("absorbed", "expanded")}
    bound = 1e-4 if dtype == torch.float32 else 0.05
    if max(errors.values()) > bound:
        raise RuntimeError(f"the layers disagree: {errors}; expected at most {bound}")

    times = median_times(steps)
    bandwidth = 2 * cache.rows.nbytes / times["copy"]  # copying reads and writes
    rate = MATMUL_SIZE**3 / times["matmul"]
    weights = sum(parameter.numel() for parameter in layer.parameters())
    up = layer.kv_b_proj.weight.numel()  # its multiply-adds are those of absorption, which attention_macs counts
    macs = weights - up + attention_macs(CONFIG, 1, num_cached + 1, "absorbed", causal=False)
    cache_bytes = cache.rows.nbytes
    weight_bytes = weights * dtype.itemsize
    limits = {"memory": (cache_bytes + weight_bytes) / bandwidth, "arithmetic": macs / rate}
    pace = max(limits, key=limits.get)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "cached_tokens": num_cached,
        "absorbed_ms": 1e3 * times["absorbed"],
        "expanded_ms": 1e3 * times["expanded"],
        "transformers_ms": 1e3 * times["transformers"],
        **{f"{name}_ms": 1e3 * times[name] for name in ("scores", "softmax", "weighted_sum")},
        "absorbed_speedup": times["transformers"] / times["absorbed"],
        "expanded_speedup": times["transformers"] / times["expanded"],
        "largest_relative_error": max(errors.values()),
        "copy_gb_per_s": bandwidth / 1e9,
        "matmul_gmac_per_s": rate / 1e9,
        "limit_ms": 1e3 * limits[pace],
        "pace_set_by": pace,
        "fraction_of_limit": limits[pace] / times["absorbed"],
        "cache_bytes": cache_bytes,
        "weight_bytes": weight_bytes,
    }


def copy_step(source: Tensor) -> Callable:
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def matmul_step(dtype: torch.dtype) -> Callable:
    a, b = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE).to(dtype)
    return lambda: a @ b


def hardware() -> dict[str, str | int]:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].split(":")[1].strip() if models else platform.processor(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


@torch.inference_mode()
def main() -> None:
    rows = [measure(tokens, dtype) for dtype in (torch.float32, torch.bfloat16) for tokens in CACHED_TOKENS]
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions["transformers"] = transformers.__version__
    RESULTS.write_text(json.dumps({"hardware": hardware(), "versions": versions, "steps": rows}, indent=2) + "\n")

    table = Table("dtype", "cached tokens", title="One decode step, hidden 2048, 16 heads, latent 512 + 64")
    for name in ("transformers ms", "expanded ms", "absorbed ms", "speed-up", "of the limit", "set by"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["dtype"],
            str(row["cached_tokens"]),
            *(f"{row[f'{name}_ms']:.2f}" for name in ("transformers", "expanded", "absorbed")),
            f"{row['absorbed_speedup']:.1f}x",
            f"{row['fraction_of_limit']:.0%}",
            row["pace_set_by"],
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
