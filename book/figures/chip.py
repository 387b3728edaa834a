"""A GPU and its levels: a multiprocessor, all of them, the L2, the memory outside."""

from svg import arrow, band, centred, drawing, outlined, solid, text

from mla_edu.kernels.offline import MULTIPROCESSOR
from mla_edu.kernels.tiles import REGISTERS
from mla_edu.registry import get_gpu

H100, H200 = get_gpu("h100"), get_gpu("h200")
MULTIPROCESSORS, TENSOR_CORES, BANKS = 132, 4, 32
L2 = "H100 50 MiB, H200 60 MiB"
REGISTER_BYTES, SHARED_BYTES = 4 * REGISTERS, MULTIPROCESSOR["sm_90"][0]
CLOCK = H200.flops["bf16"] / (MULTIPROCESSORS * TENSOR_CORES * 2 * 512)
SHARED_RATE = MULTIPROCESSORS * BANKS * 4 * CLOCK
LATENCY = {"L2": 291, "memory": 700}  # cycles, an H100; Dewing 2026
WIDTH, CHIP, INNER = 400, 290, 226  # all, height of the chip, one multiprocessor
COLUMNS, PITCH = 11, 11.6


def small_ones(x, y):
    """All multiprocessors; the one drawn large is filled."""
    squares = []
    for number in range(MULTIPROCESSORS):
        left, top = x + PITCH * (number % COLUMNS), y + PITCH * (number // COLUMNS)
        box = outlined if number else solid
        squares.append(box(left, top, PITCH - 3, PITCH - 3, "neutral"))
    return squares


def kib(size):
    return f"{size // 1024} KiB"


def both(number, scale, unit):
    """A number of the datasheets of the two GPUs with this chip."""
    values = [f"{getattr(gpu, number) / scale:g} {unit}" for gpu in (H100, H200)]
    return f"H100 {values[0]}, H200 {values[1]}"


def chip():
    """The drawing."""
    middle, cores = 12 + INNER / 2, [26 + 26 * i for i in range(TENSOR_CORES)]
    return drawing(
        WIDTH,
        CHIP + 152,
        label(),
        [
            outlined(0, 0, WIDTH, CHIP, "neutral"),
            outlined(12, 12, INNER, 212, "ink"),
            text(24, 32, "*one multiprocessor*"),
            *[outlined(x, 44, 20, 20, "ink") for x in cores],
            text(cores[-1] + 28, 59, f"{TENSOR_CORES} tensor cores"),
            outlined(24, 76, INNER - 24, 46, "value"),
            centred(middle, 95, f"registers, {kib(REGISTER_BYTES)}"),
            centred(middle, 113, "sums of values"),
            arrow([(40, 152), (40, 125)]),
            text(50, 143, f"{SHARED_RATE / 1e12:.0f} TB/s, all together"),
            outlined(24, 154, INNER - 24, 60, "neutral"),
            centred(middle, 172, f"shared memory, {kib(SHARED_BYTES)}"),
            solid(34, 182, 84, 9, "key"),
            solid(34, 196, 84, 9, "key"),
            solid(128, 182, 84, 23, "query"),
            text(252, 32, f"*{MULTIPROCESSORS} of them*"),
            *small_ones(252, 44),
            arrow([(40, 246), (40, 217)]),
            text(50, 241, f"{LATENCY['L2']} cycles from the L2"),
            outlined(12, 248, WIDTH - 24, 32, "neutral"),
            centred(WIDTH / 2, 269, f"L2 cache: {L2}"),
            arrow([(40, CHIP + 44), (40, 283)]),
            text(50, CHIP + 20, f"{LATENCY['memory']} cycles from memory"),
            text(50, CHIP + 37, both("bandwidth", 1e12, "TB/s")),
            band(0, CHIP + 46, WIDTH, 72),
            text(12, CHIP + 66, f"*memory*: {both('memory', 1e9, 'GB')}"),
            *[solid(12, CHIP + 76 + 7 * i, WIDTH - 24, 5, "key") for i in range(5)],
            solid(0, CHIP + 136, 12, 12, "key"),
            text(18, CHIP + 146, "cached rows, tiles"),
            solid(160, CHIP + 136, 12, 12, "query"),
            text(178, CHIP + 146, "queries"),
        ],
    )


def label():
    """The drawing in words."""
    return (
        f"A chip with {MULTIPROCESSORS} multiprocessors, one drawn large. It has "
        f"{TENSOR_CORES} tensor cores, {kib(REGISTER_BYTES)} of registers, which hold "
        f"sums of values, and {kib(SHARED_BYTES)} of shared memory with queries and "
        f"two tiles of the cache; shared memory delivers {SHARED_RATE / 1e12:.0f} TB/s "
        f"over all multiprocessors. Below them the L2 cache, {L2}, "
        f"{LATENCY['L2']} cycles away. Outside the chip the memory, "
        f"{LATENCY['memory']} cycles away, which holds the cached rows: "
        f"{both('memory', 1e9, 'GB')}, at {both('bandwidth', 1e12, 'TB/s')}."
    )
