"""Reads NVIDIA's machine code, by NVIDIA's own tools, which Triton's wheel brings.

Of a kernel's loops the one over the tiles counts: of those that have no loop within, the one that multiplies most.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MATRIX = re.compile(r"\b[A-Z]+MMA\b")
PRODUCT = re.compile(r"[A-Z]+MMA\b|FFMA|HFMA2")


def read_cubin(cubin: bytes) -> tuple[int, int, dict[str, int]]:
    """Of NVIDIA's machine code: registers and spilled bytes per thread, and how many instructions multiply matrices."""
    usage, text = _ask_tool("cuobjdump", "-res-usage", cubin), _ask_tool("nvdisasm", "-c", cubin)
    numbers = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"], dict(Counter(MATRIX.findall(text)))


def read_loop(cubin: bytes) -> list[str]:
    """Of NVIDIA's machine code: the instructions of the loop over the tiles in order.

    A loop is what stands between a label and a jump back to it.

    Raises:
        ValueError: there is none.
    """
    labels: dict[str, int] = {}
    jumps: list[tuple[int, int]] = []
    instructions: list[str] = []
    for line in _ask_tool("nvdisasm", "-c", cubin).splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(.*?)\s*;", line):
            instructions.append(re.sub(r"\s+[?&].*", "", found[1]))  # some versions add what the scheduler thinks
            jump = re.match(r"BRA.*\((\.L_x_\d+)\)", found[1])
            if jump and jump[1] in labels:
                jumps.append((labels[jump[1]], len(instructions)))
    if not jumps:
        raise ValueError(f"cubin has {len(instructions)} instructions and no jump back; expected a loop")
    products = [bool(PRODUCT.match(each)) for each in instructions]
    start, end = _innermost(jumps, products)
    return instructions[start:end]


def _innermost(jumps: Sequence[tuple[int, int]], products: Sequence[bool]) -> tuple[int, int]:
    """Of the loops without a loop within, the one with most products."""
    inner = [each for each in jumps if not any(_within(other, each) for other in jumps)]
    return max(inner, key=lambda each: (sum(products[each[0] : each[1]]), each[1] - each[0]))


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


def _ask_tool(name: str, option: str, cubin: bytes) -> str:
    """What one of NVIDIA's tools, which Triton's wheel brings, says of machine code."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
