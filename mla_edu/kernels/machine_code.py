"""Reads NVIDIA's machine code, by NVIDIA's own tools, which Triton's wheel brings.

Of a kernel's loops the one over the tiles counts: of those that have no loop within, the one that multiplies most.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

MATRIX = re.compile(r"\b[A-Z]+MMA\b")
BOX = 64 * 64 * 2  # bytes of each of the Gluon kernels' TMA copies, which the instruction does not say
PRODUCT = re.compile(r"[A-Z]+MMA\b|FFMA|HFMA2")


def read_cubin(cubin: bytes) -> tuple[int, int, dict[str, int]]:
    """Of NVIDIA's machine code: registers and spilled bytes per thread, and how many instructions multiply matrices."""
    usage = _ask_tool("cuobjdump", "-res-usage", cubin)
    numbers = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    products = (found[0] for found in map(MATRIX.match, _read_code(cubin).instructions) if found)
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"], dict(Counter(products))


def read_instructions(cubin: bytes) -> list[str]:
    """All instructions of NVIDIA's machine code in order."""
    return list(_read_code(cubin).instructions)


def read_loop(cubin: bytes) -> list[str]:
    """Of NVIDIA's machine code: the instructions of the loop over the tiles in order.

    A loop is what stands between a label and a jump back to it.

    Raises:
        ValueError: there is none.
    """
    code = _read_code(cubin)
    products = [bool(PRODUCT.match(each)) for each in code.instructions]
    start, end = max(code.innermost(), key=lambda each: (sum(products[each[0] : each[1]]), each[1] - each[0]))
    return list(code.instructions[start:end])


def read_turns(cubin: bytes) -> tuple[list[list[str]], list[str]]:
    """Of machine code whose groups of warps take turns: the loop of each group that multiplies, and the loader's.

    Without what a loop jumps over, if it only must where sequences end.

    Raises:
        ValueError: there is no such loop.
    """
    code = _read_code(cubin)
    loops = [code.without_skipped(*each) for each in code.innermost()]
    groups = [loop for loop in loops if any(map(MATRIX.match, loop))]
    loaders = [loop for loop in loops if any(line.startswith("UTMALDG") for line in loop)]
    if not groups or len(loaders) != 1:
        raise ValueError(f"cubin has {len(groups)} loops that multiply and {len(loaders)} that load; expected both")
    return groups, loaders[0]


class _Code(NamedTuple):
    instructions: tuple[str, ...]
    jumps: tuple[tuple[int, int], ...]  # from the place of an instruction to that of a label

    def innermost(self) -> list[tuple[int, int]]:
        """First and end of each loop without a loop within."""
        loops = {(to, at + 1) for at, to in self.jumps if to <= at}
        if not loops:
            raise ValueError(f"cubin has {len(self.instructions)} instructions and no jump back; expected a loop")
        return sorted(each for each in loops if not any(_within(other, each) for other in loops))

    def without_skipped(self, start: int, end: int) -> list[str]:
        """A loop's instructions, as if each jump forward within it were taken."""
        skipped = {i for at, to in self.jumps if start <= at < to < end for i in range(at + 1, to)}
        return [self.instructions[i] for i in range(start, end) if i not in skipped]


@lru_cache(maxsize=128)  # the disassembler takes half a second
def _read_code(cubin: bytes) -> _Code:
    labels: dict[str, int] = {}
    targets: list[tuple[int, str]] = []
    instructions: list[str] = []
    for line in _ask_tool("nvdisasm", "-c", cubin).splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(.*?)\s*;", line):
            if jump := re.match(r"BRA.*\((\.L_x_\d+)\)", found[1]):
                targets.append((len(instructions), jump[1]))
            instructions.append(re.sub(r"\s+[?&].*", "", found[1]))  # some versions add what the scheduler thinks
    return _Code(tuple(instructions), tuple((at, labels[label]) for at, label in targets if label in labels))


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]


def matrix_flops(loop: Sequence[str], num_warps: int) -> int | None:
    """Operations of the matrix instructions of a loop, by all warps of a program, once through it.

    None where an instruction does not say its size, as those of sm_100. Those of a warpgroup count once for four warps.
    """
    flops = 0
    for line in loop:
        if not MATRIX.match(line):
            continue
        name, sizes = line.split(".")[0], line.split(" ")[0]
        if name == "HMMA" and (found := re.search(r"\.(\d+)(\d{2})\.F", sizes)):  # .16816: 16 x 8 x 16
            m, n, k = 16, int(found[1][2:]), int(found[2])
            flops += 2 * m * n * k * num_warps
        elif name == "HGMMA" and (found := re.search(r"\.(\d+)x(\d+)x(\d+)\.", sizes)):
            m, n, k = map(int, found.groups())
            flops += 2 * m * n * k * num_warps // 4
        else:
            return None
    return flops


def shared_traffic(loop: Sequence[str], num_warps: int) -> int | None:
    """Bytes that all warps of a program move to and from shared memory, once through a loop.

    Loads, stores and copies by their width, as if all 32 lanes took part; and of a wgmma the operands that lie there,
    for each group of four warps. None where an instruction does not say, as those of sm_100.
    """
    moved = 0
    for line in loop:
        name, _, operands = line.partition(" ")
        kind, *parts = name.split(".")
        bits = max((int(part) for part in parts if part in ("64", "128")), default=32)
        if kind in ("LDS", "STS", "LDGSTS"):
            moved += 32 * bits // 8 * num_warps
        elif kind in ("LDSM", "STSM"):  # matrices of 8 x 8 numbers of two bytes: one, two or four
            moved += 128 * max((int(part) for part in parts if part in ("2", "4")), default=1) * num_warps
        elif kind == "HGMMA":
            m, n, k = map(int, parts[0].split("x"))
            first_is_shared = operands.split(", ")[1].startswith("gdesc")
            moved += 2 * (n * k + first_is_shared * m * k) * num_warps // 4
        elif MATRIX.match(kind) and kind != "HMMA":
            return None
    return moved


class Turn(NamedTuple):
    """What one of the groups of warps that take turns does, once through its loop."""

    instructions: int  # of one warp
    flops: int
    shared_traffic: int  # bytes


class Ahead(NamedTuple):
    """Loads of one program that are on their way while it multiplies."""

    overlap: float  # share of the products that start while a sixteenth of what the loop loads, or more, is under way
    num_bytes: float  # under way, on average over the products
    loaded_bytes: int  # asked for once through the loop, by all threads
    waits: tuple[int, ...]  # cp.async's wait_group N: groups of loads that each wait of the loop leaves under way


def read_ahead(loop: Sequence[str], num_threads: int) -> Ahead:
    """What of a loop's loads is under way when a product starts, by the order of its instructions.

    A copy to shared memory (cp.async: LDGSTS) is under way from the end of its group (commit_group: LDGDEPBAR) to the
    wait that leaves no more than N groups (wait_group N: DEPBAR.LE); a load into registers (LDG) until one is read. The
    loop is followed until it is filled, and once more.
    """
    groups: list[int] = []  # bytes of each under way
    under_way: dict[str, int] = {}  # bytes of each load, by its first register
    owner: dict[str, str] = {}  # by each of its registers
    filling = loaded = 0
    found: list[int] = []  # bytes under way at each product
    product = MATRIX if any(map(MATRIX.match, loop)) else PRODUCT
    waits = [int(line.rpartition(",")[2], 0) for line in loop if line.startswith("DEPBAR.LE")]
    turns = 2 + max(waits, default=0)
    for turn in range(turns):
        counted = turn == turns - 1
        for line in loop:
            name, _, operands = line.partition(" ")
            registers = re.findall(r"\bR\d+\b", operands)
            size = max((int(each) for each in re.findall(r"\.(\d+)\b", name)), default=32) // 8 * num_threads
            is_load = re.match(r"LDG\.", name) is not None
            for register in registers[is_load:]:
                under_way.pop(owner.get(register, ""), None)
            if name.startswith("LDGSTS"):
                filling, loaded = filling + size, loaded + counted * size
            elif name == "LDGDEPBAR":
                groups.append(filling)
                filling = 0
            elif name.startswith("DEPBAR.LE"):
                left = int(operands.rpartition(",")[2], 0)
                groups = groups[max(len(groups) - left, 0) :]
            elif is_load:
                first = int(registers[0][1:])
                owner |= {f"R{first + i}": registers[0] for i in range(max(size // num_threads // 4, 1))}
                under_way[registers[0]] = size
                loaded += counted * size
            if counted and product.match(line):
                found.append(sum(groups) + sum(under_way.values()))
    share = sum(16 * each >= loaded > 0 for each in found) / max(len(found), 1)
    return Ahead(share, sum(found) / max(len(found), 1), loaded, tuple(waits))


class LoopCounts(NamedTuple):
    """Of the loop over the tiles, or of the loops of warps that take turns."""

    loop_instructions: int  # of one warp; with turns, of one of each group and of the loader
    executed_flops: int | None  # of all warps of a program; None where the code does not say
    shared_traffic: int | None  # bytes
    ahead: Ahead | None  # None where a warp only loads
    turns: tuple[Turn, ...] = ()


def count_loop(cubin: bytes, num_warps: int) -> LoopCounts:
    """Count the loop of a kernel whose warps all do the same.

    Raises:
        ValueError: there is none.
    """
    loop = read_loop(cubin)
    flops, moved = matrix_flops(loop, num_warps), shared_traffic(loop, num_warps)
    return LoopCounts(len(loop), flops, moved, read_ahead(loop, 32 * num_warps))


def count_turns(cubin: bytes, num_warps: int) -> LoopCounts:
    """Count the loops of groups of ``num_warps`` warps that take turns, and of the warp that loads for them.

    Raises:
        ValueError: a loop is missing, or does not say what it multiplies.
    """
    groups, loader = read_turns(cubin)
    turns = []
    for loop in groups:
        flops, moved = matrix_flops(loop, num_warps), shared_traffic(loop, num_warps)
        if flops is None or moved is None:
            raise ValueError("a matrix instruction does not say its size; expected wgmma's")
        turns.append(Turn(len(loop), flops, moved))
    copied = BOX * sum(line.startswith("UTMALDG") for line in loader)
    return LoopCounts(
        sum(each.instructions for each in turns) + len(loader),
        sum(each.flops for each in turns),
        sum(each.shared_traffic for each in turns) + copied,
        None,
        tuple(turns),
    )


def _ask_tool(name: str, option: str, cubin: bytes) -> str:
    """What one of NVIDIA's tools, which Triton's wheel brings, says of machine code."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def read_amdgcn(text: str) -> tuple[int, int, dict[str, int]]:
    """As ``read_cubin``, of AMD's assembly."""
    numbers = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", text))
    instructions = dict(Counter("MFMA" for _ in re.findall(r"\bv_mfma_", text)))
    return int(numbers["vgpr_count"]), int(numbers["private_segment_fixed_size"]), instructions
