"""A decode step of a whole layer of DeepSeek-V2-Lite's size: absorbed, expanded, and as transformers does it.

All three have the same weights and the same cached tokens. They take turns, and before each call more memory is read
than a processor's caches hold, so that weights and cached tokens come from memory, as they do where other layers run in
between.

The limit is the larger of two times: cache and weights read once at the rate of a copy of as many bytes, and the
operations of the absorbed step at the rate of a large product, both measured in the same rounds.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import mla_edu.bench.run as bench
from mla_edu.bench.clock import Call, Clock, copy_call, matmul_call, record
from mla_edu.bench.grid import LITE, LayerCase
from mla_edu.bench.libraries import Unsupported
from mla_edu.bench.results import LAYERS, CaseLimits, LayerMeasurement, LayerResults
from mla_edu.bench.transformers_layer import TransformersLayer, probe_transformers
from mla_edu.cache import LatentCache
from mla_edu.layers.mla import Mode, MultiHeadLatentAttention
from mla_edu.testing import relative_error

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BOUNDS = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.05}  # on how far the layers may be apart
MATMUL_SIZES = {"cpu": 1536, "cuda": 8192}


def absorbed_parts(rows: Tensor) -> dict[str, Call]:
    """What an absorbed step does with the cached rows, each part by itself on inputs of the right shape.

    Args:
        rows: of one sequence, ``[cached, kv_lora_rank + qk_rope_head_dim]``.
    """
    queries = torch.randn(LITE.num_attention_heads, rows.shape[1], device=rows.device).to(rows.dtype)
    latents = rows[:, : LITE.kv_lora_rank]
    scores = queries @ rows.T * LITE.qk_head_dim**-0.5
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(rows.dtype)
    return {
        "scores": lambda: queries @ rows.T,
        "softmax": lambda: scores.softmax(dim=-1, dtype=torch.float32).to(rows.dtype),
        "weighted_sum": lambda: weights @ latents,
    }


def our_step(layer: MultiHeadLatentAttention, cache: LatentCache, hidden_states: Tensor, mode: Mode) -> Call:
    """A step of our layer; each call starts from the same cache."""
    num_cached = cache.length

    def call() -> Tensor:
        cache.truncate(num_cached)
        out: Tensor = layer(hidden_states, cache, mode)
        return out

    return call


def _disagreement(steps: dict[str, Call]) -> float:
    """How far the outputs of ours are from that of transformers, at most, relative to its largest number."""
    outputs = {name: steps[name]().float().clone() for name in LAYERS}  # recorded calls share their memory
    return max(relative_error(outputs[name], outputs["transformers"]) for name in LAYERS)


@torch.inference_mode()
def measure(case: LayerCase, clock: Clock, matmul_size: int) -> tuple[list[LayerMeasurement], CaseLimits]:
    """The three layers on one case, checked, then timed in turn with a copy and a product.

    Args:
        case: of how many tokens, in which format.
        clock: which times.
        matmul_size: of the product's two square matrices.

    Raises:
        AssertionError: the layers disagree.
        Unsupported: transformers is not there.
    """
    dtype, device = DTYPES[case.dtype], clock.device
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = MultiHeadLatentAttention(LITE, dtype=dtype, device=device)
        hidden_states = torch.randn(1, 1, LITE.hidden_size, dtype=dtype, device=device)
        rows = torch.randn(1, case.context, LITE.kv_lora_rank + LITE.qk_rope_head_dim, dtype=dtype, device=device)
        cache = LatentCache(LITE, max_seq_len=case.context + case.s_q, dtype=dtype, device=device)
        cache.append(*rows.split((LITE.kv_lora_rank, LITE.qk_rope_head_dim), dim=-1))
        parts = absorbed_parts(cache.rows[0])
    steps = {
        "absorbed": our_step(layer, cache, hidden_states, "absorbed"),
        "expanded": our_step(layer, cache, hidden_states, "expanded"),
        "transformers": TransformersLayer("deepseek_v2", layer).step(hidden_states, rows),
        **parts,
        "copy": copy_call(case.bytes, device),
        "product": matmul_call(matmul_size, dtype, device),
    }
    steps = dict(zip(steps, record(list(steps.values()), device), strict=True))
    error, bound = _disagreement(steps), BOUNDS[case.dtype]
    if not error <= bound:
        raise AssertionError(f"the layers disagree by {error:.2g}; expected at most {bound}")
    timings = dict(zip(steps, clock.time_in_turn([[call] for call in steps.values()]), strict=True))
    found = [
        LayerMeasurement(
            case=case,
            kernel=name,
            microseconds=timings[name].microseconds,
            spread=timings[name].spread,
            error=error,
            parts={part: timings[part].microseconds for part in parts} if name == "absorbed" else None,
        )
        for name in LAYERS
    ]
    limits = CaseLimits(
        case=case,
        copy_bytes_per_s=2 * case.bytes / (1e-6 * timings["copy"].microseconds),  # a copy reads and writes
        matmul_flop_per_s=2 * matmul_size**3 / (1e-6 * timings["product"].microseconds),
    )
    return found, limits


def run(cases: Sequence[LayerCase], device: torch.device, *, toy: bool, seconds: float | None = None) -> LayerResults:
    """Measure the layers on every case. An interrupt from the keyboard ends the run early, with what it has.

    Args:
        cases: in the order in which they are measured.
        device: a GPU or a CPU.
        toy: few rounds, a small product: the times mean nothing.
        seconds: no case starts later than so many seconds from now; those that are left out say so.

    Raises:
        ImportError: transformers is not installed, or one that caches no latent.
    """
    deadline = bench.deadline_in(seconds)
    try:
        theirs = probe_transformers()
    except Unsupported as reason:
        raise ImportError(f"the layer is measured beside that of transformers: {reason}") from None
    machine = bench.describe_cpu() if device.type == "cpu" else bench.describe_gpu(device)
    clock = Clock(device, fewest=2, evicted_bytes=2**20) if toy else Clock(device, fewest=15)
    limits: list[CaseLimits] = []

    def measure_or_say(case: LayerCase, names: Sequence[str]) -> Iterator[LayerMeasurement]:
        try:
            found, reached = measure(case, clock, 64 if toy else MATMUL_SIZES[device.type])
        except Exception as error:
            reason = bench.why_not(error, device)
            found = [LayerMeasurement(case=case, kernel=name, why_not=reason) for name in names]
        else:
            limits.append(reached)
        yield from found

    measurements, _ = bench.measure_all(
        cases, LAYERS, measure_or_say, LayerMeasurement, always=LAYERS, deadline=deadline
    )
    return LayerResults(
        machine=machine,
        versions=bench.versions() | {"transformers": theirs},
        date=bench.today(),
        toy=toy,
        limits=limits,
        measurements=measurements,
    )
