"""What the counts of a compiled kernel let one expect on a GPU: predictions, to be held against measurements.

Little's law: a rate needs rate x latency bytes on their way at any time. Per multiprocessor, one round is a tile for
each of its programs, and takes the longest of

- the tiles' bytes at its share of the memory's bandwidth,
- their bytes, as fast as those on their way allow: a latency for each time that these are replaced,
- their instructions, one in each cycle from each of four schedulers,
- what passes between shared memory and registers or matrix units, 128 bytes in each cycle,
- what the matrix units compute, useful or not,
- the work of one program: its instructions, and after them whichever is longer of its shared memory and its products.
  Its warps wait for each other several times a tile, so that all issue or all wait for operands at a time.

Where a program asks for a tile only after it has multiplied the last, its own round is latency, load and work one after
the other, and only other programs fill the gaps.

Where two groups of warps take turns and a third loads (``gluon.seesaw``, whose round is a pair of tiles), loads do
not wait for their instructions, and the products of one cover the instructions of the other, with an exception: between
the scores and the first weights neither has anything to multiply. So there the work is the instructions of one group,
and after them the shared memory or the products of both. And each tile of a pair has one place, which is free when its
group is done: a round cannot be shorter than that group's own work, a latency and the load of a tile one after the
other.

How far off they are: Triton's kernels were timed on an H100 (``mla_edu/bench/measured/first-look-h100.json``) in a form
with more instructions for each token. Of the rates predicted for that form it reached in bf16 0.8 with 16 or 32 heads,
1.05 with 64 and 0.95 with 128; in fp8 0.7 with 16 and 0.55 with 128. At 16 heads of bf16 the memory is the limit, and
of its datasheet rate a copy reached 0.73 there. Short steps are further off: one sequence of 64k tokens with 16 heads
took 1.4 times the predicted time, 32 of 1k tokens 1.7 times. Shared memory and the work of one program were counted
only after that run, since without them fp8 read four times too fast; no other GPU has tried them.

Of Gluon's kernels, that of bf16 was timed there in a form before the first that is committed. It reached of its
predicted rates, at 64 heads and at 128 alike, 0.84 with 132 sequences of 8k tokens and 0.8 with 32 of 16k; a step took
1.1 to 1.2 times the predicted time, with 32 of 4k tokens 1.3 to 1.4 times, and with one sequence 1.6 to 1.9 times. With
16 heads there is one time, of the first committed form, 32 of 4k tokens: 1.4 times the predicted. The fp8 kernel has
not been timed on any GPU. The model of the turns was made when these times were known, but none of its numbers was
chosen by them.
"""

from dataclasses import dataclass

from mla_edu.kernels.offline import KernelReport
from mla_edu.kernels.plan import GPU, Shape, choose_share, make_plan, tiles_of_part
from mla_edu.kernels.tiles import SHARED_LIMIT, cdiv
from mla_edu.registry import get_gpu

SCHEDULERS = 4  # of a multiprocessor, since sm_70
SHARED_BYTES = 128  # that shared memory moves in a cycle: 32 banks of 4 bytes (CUDA C++ Programming Guide)
FORMATS = {"bf16": "bf16", "fp16": "fp16", "fp8_mla": "bf16"}  # in which a cache's numbers are multiplied
LAUNCH = 4.6e-6  # seconds of a step that does nothing, as the benchmark timed it on an H100
MMA_SYNC = {"sm_90": 0.62}  # share of the peak that mma.sync reaches, where only wgmma reaches all (arXiv:2402.13499)


@dataclass(frozen=True)
class Chip:
    """What a datasheet does not say of a GPU's multiprocessors."""

    arch: str
    multiprocessors: int
    hertz: float  # boost clock
    idle_latency: float  # seconds from a load to its data, when memory has nothing else to do

    @property
    def latency(self) -> float:
        """Of a memory that is kept busy, reckoned as twice the idle one."""
        return 2 * self.idle_latency


# Multiprocessors and clocks from NVIDIA's architecture whitepapers; latencies in cycles from Luo et al., "Benchmarking
# and Dissecting the Nvidia Hopper GPU Architecture" (arXiv:2402.13499), measured on A100, RTX 4090 and H100 PCIe; the
# H200 has an H100's multiprocessors.
CHIPS = {
    "a100-80gb": Chip("sm_80", 108, 1.41e9, 466.3 / 1.41e9),
    "rtx-4090": Chip("sm_89", 128, 2.52e9, 541.5 / 2.52e9),
    "h100": Chip("sm_90", 132, 1.83e9, 478.8 / 1.755e9),
    "h200": Chip("sm_90", 132, 1.83e9, 478.8 / 1.755e9),
}


@dataclass(frozen=True)
class Forecast:
    """A prediction for long sequences, in the shares that the benchmark measures."""

    gpu: str
    needed_bytes: float  # on their way in each multiprocessor, for the memory's full rate
    of_bandwidth: float  # predicted share of the datasheet's bandwidth
    of_product: float  # predicted share of the datasheet's dense rate
    round_seconds: float  # of one tile for each of the programs of a multiprocessor
    # What takes longest: "memory", "bytes in flight", "instructions", "shared memory", "products", "work" or "waiting".
    set_by: str


def forecast(report: KernelReport, gpu: str) -> Forecast | None:
    """What to expect of a kernel on a GPU of the registry; None where its code does not say enough.

    Args:
        report: of what was compiled for the GPU's architecture.
        gpu: one of ``CHIPS``.

    Raises:
        ValueError: an unknown GPU, or one of another architecture.
    """
    if gpu not in CHIPS:
        raise ValueError(f"gpu is {gpu!r}; expected {', '.join(CHIPS)}")
    chip, spec = CHIPS[gpu], get_gpu(gpu)
    if report.arch != chip.arch:
        raise ValueError(f"report is for {report.arch}; expected {chip.arch}, which {gpu} is")
    loop, flops, moved = report.loop_instructions, report.executed_flops, report.shared_traffic
    if not loop or not flops or moved is None or report.dtype not in FORMATS:
        return None
    bandwidth = spec.bandwidth / chip.multiprocessors
    product = spec.flops[FORMATS[report.dtype]] / chip.multiprocessors
    reached = product * (MMA_SYNC.get(report.arch, 1.0) if "HMMA" in report.tensor_core_instructions else 1.0)
    programs, tile = report.programs, report.tile_bytes / report.row_blocks  # blocks of rows find it in the L2
    issue, shared = loop * report.tiles.num_warps / SCHEDULERS / chip.hertz, moved / SHARED_BYTES / chip.hertz
    work = issue + max(shared, flops / reached)
    times = {
        "memory": programs * tile / bandwidth,
        "instructions": programs * issue,
        "shared memory": programs * shared,
        "products": programs * flops / reached,
        "work": work,
    }
    if report.turns:
        rounds = [
            (each.instructions / chip.hertz, max(each.shared_traffic / SHARED_BYTES / chip.hertz, each.flops / reached))
            for each in report.turns
        ]
        times["work"] = max(alone for alone, _ in rounds) + max(shared, flops / reached)
        times["waiting"] = chip.latency + tile / len(rounds) / bandwidth + max(map(sum, rounds))
    elif report.ahead is None or report.bytes_in_flight is None:
        return None
    elif report.ahead.overlap > 0.5:
        times["bytes in flight"] = programs * report.tile_bytes * chip.latency / report.bytes_in_flight
    else:
        times["waiting"] = chip.latency + tile / bandwidth + work
    set_by, longest = max(times.items(), key=lambda each: each[1])
    useful = programs * report.useful_flops / product
    return Forecast(gpu, bandwidth * chip.latency, times["memory"] / longest, useful / longest, longest, set_by)


def predict_seconds(report: KernelReport, gpu: str, batch: int, context: int) -> float | None:
    """What to expect of a whole decode step: a launch, the longest share of the tokens, and the merge of its parts.

    The merge waits a latency for each of its loads of many parts, and moves every partial result once. None as in
    ``forecast``.

    Args:
        report: of what was compiled for the GPU's architecture.
        gpu: one of ``CHIPS``.
        batch: sequences, all of one length.
        context: cached tokens of each.

    Raises:
        ValueError: an unknown GPU, or one of another architecture.
    """
    found = forecast(report, gpu)
    if found is None:
        return None
    chip, sizes = CHIPS[gpu], (report.kv_lora_rank, report.qk_rope_head_dim)
    shape = Shape(batch, report.s_q, report.num_heads, *sizes, report.dtype, context)
    walks = True if report.backend == "gluon" else None
    plan = make_plan(
        shape, GPU(chip.arch, SHARED_LIMIT[chip.arch], chip.multiprocessors), tiles=report.tiles, walks=walks
    )
    tiles = cdiv(context, plan.tiles.block_n)
    if plan.even:
        in_share = min(max(cdiv(tiles * batch, plan.num_parts), plan.min_tiles), tiles * batch)
        num_programs = plan.num_programs
    else:
        in_share = tiles_of_part(tiles, choose_share([tiles] * batch, plan.num_parts, plan.min_tiles, plan.num_slots))
        num_programs = batch * cdiv(tiles, in_share) * plan.num_blocks
    rounds = cdiv(num_programs, report.programs * chip.multiprocessors) * in_share
    stage_1 = chip.latency + rounds * found.round_seconds
    if in_share % tiles == 0:
        return LAUNCH + stage_1
    parts = cdiv(tiles, in_share) + (plan.even and batch > 1)
    moved = 4 * batch * parts * report.num_heads * report.s_q * (report.kv_lora_rank + 1)
    trips = 2 + cdiv(parts, plan.merge_tile.block_p)  # where the parts lie, each load of them, and the result
    return LAUNCH + stage_1 + trips * chip.latency + moved / get_gpu(gpu).bandwidth
