"""What the counts of a compiled kernel let one expect on a GPU: predictions, to be held against measurements.

Little's law: a rate needs rate x latency bytes on their way at any time. Per multiprocessor, one round is a tile for
each of its programs, and takes the longest of

- the tiles' bytes at its share of the memory's bandwidth,
- their bytes, as fast as those on their way allow: a latency for each time that these are replaced,
- their instructions, one in each cycle from each of four schedulers,
- what the matrix units compute, useful or not.

Where a program asks for a tile only after it has multiplied the last, its own round is latency, load and work one after
the other, and only other programs fill the gaps.
"""

from dataclasses import dataclass

from mla_edu.kernels.offline import KernelReport
from mla_edu.registry import get_gpu

SCHEDULERS = 4  # of a multiprocessor, since sm_70
FORMATS = {"bf16": "bf16", "fp16": "fp16", "fp8_mla": "bf16"}  # in which a cache's numbers are multiplied
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
    set_by: str  # what takes longest: "memory", "bytes in flight", "instructions", "products" or "waiting"


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
    ahead, in_flight, loop = report.ahead, report.bytes_in_flight, report.loop_instructions
    if ahead is None or in_flight is None or not loop or not report.executed_flops or report.dtype not in FORMATS:
        return None
    bandwidth = spec.bandwidth / chip.multiprocessors
    product = spec.flops[FORMATS[report.dtype]] / chip.multiprocessors
    reached = product * (MMA_SYNC.get(report.arch, 1.0) if "HMMA" in report.tensor_core_instructions else 1.0)
    programs, tile = report.programs, report.tile_bytes / report.row_blocks  # blocks of rows find it in the L2
    issue = loop * report.tiles.num_warps / SCHEDULERS / chip.hertz
    work = max(issue, report.executed_flops / reached)
    times = {
        "memory": programs * tile / bandwidth,
        "instructions": programs * issue,
        "products": programs * report.executed_flops / reached,
    }
    if ahead.overlap > 0.5:
        times["bytes in flight"] = programs * report.tile_bytes * chip.latency / in_flight
    else:
        times["waiting"] = chip.latency + tile / bandwidth + work
    set_by, longest = max(times.items(), key=lambda each: each[1])
    useful = programs * report.useful_flops / product
    return Forecast(gpu, bandwidth * chip.latency, times["memory"] / longest, useful / longest, set_by)
