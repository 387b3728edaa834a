"""Machine code read as text: which loop counts, how much is multiplied, what is on its way meanwhile."""

import pytest

from mla_edu.kernels import machine_code
from mla_edu.kernels.machine_code import (
    Turn,
    count_turns,
    matrix_flops,
    read_ahead,
    read_instructions,
    read_loop,
    shared_traffic,
)

COPY, GROUP = "LDGSTS.E.BYPASS.128 [R3], desc[UR4][R6.64], P1", "LDGDEPBAR"
HMMA = "HMMA.16816.F32.BF16 R24, R136, R8, R24"


def wait(groups):
    return f"DEPBAR.LE SB0, {groups:#x}"


@pytest.fixture
def code(monkeypatch):
    """``code([lines])``: what the disassembler shows; a line that ends in ":" is a label."""

    def show(lines):
        text = "\n".join(
            line if line.endswith(":") else f"        /*00a0*/                   {line} ;" for line in lines
        )
        monkeypatch.setattr(machine_code, "_ask_tool", lambda *arguments: text)
        machine_code._read_code.cache_clear()

    yield show
    machine_code._read_code.cache_clear()


def test_the_loop_that_multiplies_is_taken_and_of_nested_ones_the_inner(code):
    inner = ["IADD3 R1, R1, R2", HMMA, HMMA, "BRA `(.L_x_1)"]
    other = ["FADD R1, R1, R2"] * 9 + ["BRA `(.L_x_3)"]
    lines = [
        ".L_x_0:",
        "MOV R1, R2",
        HMMA,
        HMMA,
        HMMA,
        ".L_x_1:",
        *inner,
        "@P0 BRA `(.L_x_0)",
        ".L_x_3:",
        *other,
        "EXIT",
    ]
    code(lines)
    assert read_loop(b"") == inner


def test_without_matrix_units_the_loop_with_most_multiply_adds_is_taken(code):
    code([".L_x_0:", "MOV R1, R2", "BRA `(.L_x_0)", ".L_x_1:", "FFMA R1, R2, R3, R1", "@!P0 BRA `(.L_x_1)"])
    assert read_loop(b"") == ["FFMA R1, R2, R3, R1", "BRA `(.L_x_1)"]


def test_what_the_disassembler_says_of_the_schedule_is_left_out(code):
    code([".L_x_0:", f"{wait(0)}      ?WAIT4_END_GROUP", f"{HMMA}   &req={{1}} ?trans1", "BRA `(.L_x_0)  ?trans5"])
    assert read_loop(b"")[0] == wait(0) and read_ahead(read_loop(b""), 32).waits == (0,)


def test_instructions_come_without_what_they_hang_on(code):
    code(["@!P0 UTMALDG.2D [UR8], [UR4]", ".L_x_0:", "BRA `(.L_x_0)", "EXIT"])
    assert read_instructions(b"") == ["UTMALDG.2D [UR8], [UR4]", "BRA `(.L_x_0)", "EXIT"]


def test_code_without_a_loop_is_refused(code):
    code(["EXIT", ".L_x_0:"])
    with pytest.raises(ValueError, match="cubin has 1 instructions and no jump back; expected a loop"):
        read_loop(b"")


def test_turns_are_the_loops_that_multiply_without_what_they_jump_over_and_the_loaders(code):
    product = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24"
    at_the_end = ["LDS.128 R4, [R2]", "STS.128 [R2], R4"]  # rows become zero
    waits = "@!P1 BRA `(.L_x_9)"  # goes out of the loop, and back into it
    first = [".L_x_0:", product, waits, ".L_x_8:", "@P0 BRA `(.L_x_1)", *at_the_end, ".L_x_1:", "STS R1, [R2]"]
    second = [".L_x_3:", product, product, "@P0 BRA `(.L_x_3)"]
    loader = [".L_x_4:", "UTMALDG.2D [UR8], [UR4]", "UTMALDG.2D [UR8], [UR4]", "BRA `(.L_x_4)"]
    other = [".L_x_5:", "FADD R1, R1, R2", "BRA `(.L_x_5)"]
    spin = ["EXIT", ".L_x_9:", "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR10], R12", "BRA `(.L_x_8)"]
    code([*first, product, "@P0 BRA `(.L_x_0)", *loader, *second, *other, *spin])
    found = count_turns(b"", 4)
    flops, operands = 2 * 64 * 64 * 16, 2 * (64 + 64) * 16
    stored = 4 * 32 * 4
    assert found.turns == (Turn(6, 2 * flops, 2 * operands + stored), Turn(3, 2 * flops, 2 * operands))
    assert found.executed_flops == 4 * flops and found.loop_instructions == 6 + 3 + 3
    assert found.shared_traffic == 4 * operands + stored + 2 * 64 * 64 * 2
    code([*second, "EXIT"])
    with pytest.raises(ValueError, match="1 loops that multiply and 0 that load; expected both"):
        count_turns(b"", 4)


def test_operations_of_matrix_instructions_are_counted():
    assert matrix_flops([HMMA, "MOV R1, R2", HMMA], 8) == 2 * 8 * 2 * 16 * 8 * 16
    warpgroups = ["HGMMA.64x32x16.F32.BF16 R24, gdesc[UR8], R24", "HGMMA.64x256x16.F32.BF16 R24, R4, gdesc[UR8], R24"]
    assert matrix_flops(warpgroups, 8) == 2 * 2 * 64 * (32 + 256) * 16
    assert matrix_flops(["UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR5]"], 8) is None
    assert matrix_flops(["FFMA R1, R2, R3, R1"], 8) == 0


@pytest.mark.parametrize(
    ("loop", "overlap", "tiles"),
    [
        ([wait(0), HMMA, HMMA, COPY, GROUP], 0, 0),  # asked for after the products, waited for before them
        ([wait(0), COPY, GROUP, HMMA, HMMA], 1, 1),
        ([wait(0), HMMA, COPY, GROUP, HMMA], 0.5, 0.5),
        ([wait(1), HMMA, HMMA, COPY, GROUP], 1, 1),
        ([wait(2), HMMA, HMMA, COPY, GROUP], 1, 2),
        ([wait(1), COPY, GROUP, HMMA, HMMA], 1, 2),
        ([HMMA, COPY, wait(0), HMMA], 0, 0),  # a group that was never closed is waited for by nobody
    ],
)
def test_copies_are_under_way_between_their_group_and_the_wait_for_it(loop, overlap, tiles):
    found = read_ahead(loop, 256)
    assert (found.overlap, found.num_bytes, found.loaded_bytes) == (overlap, tiles * 16 * 256, 16 * 256)
    assert found.waits == tuple(int(line[-1]) for line in loop if line.startswith("DEPBAR"))


@pytest.mark.parametrize(
    ("loop", "overlap"),
    [
        (["LDG.E.128 R52, desc[UR22][R80.64]", HMMA, "PRMT R1, R54, 0x5410, R2"], 1),
        (["LDG.E.128 R52, desc[UR22][R80.64]", "PRMT R1, R54, 0x5410, R2", HMMA], 0),
        (
            ["LDG.E.128 R52, desc[UR22][R80.64]", "PRMT R1, R56, 0x5410, R2", HMMA, "STS.128 [R5], R52"],
            1,
        ),  # not its own
        (["LDG.E R52, desc[UR22][R80.64]", "R2UR UR4, R52", HMMA], 0),
        ([HMMA, "LDG.E R52, desc[UR22][R80.64]", "IADD3 R52, R1, R2", "IADD3 R3, R52, R2"], 0),
    ],
)
def test_a_load_into_registers_is_under_way_until_one_of_them_is_read(loop, overlap):
    found = read_ahead(loop, 128)
    size = 16 if any(".128" in line for line in loop) else 4
    assert (found.overlap, found.num_bytes, found.loaded_bytes) == (overlap, overlap * size * 128, size * 128)


def test_a_wait_leaves_the_newest_groups():
    found = read_ahead([COPY, COPY, GROUP, COPY, GROUP, wait(1), HMMA], 256)
    assert found.num_bytes == 16 * 256


def test_a_pages_number_alone_is_no_overlap():
    number = "LDG.E R9, desc[UR4][R2.64]"
    loop = [wait(0), number, HMMA, "IMAD.WIDE R6, R9, R8, R6", *[COPY] * 18, GROUP]
    found = read_ahead(loop, 256)
    assert found.overlap == 0 and found.num_bytes == 4 * 256


def test_multiply_adds_count_as_products_only_without_matrix_units():
    loop = [COPY, GROUP, "FFMA R1, R2, R3, R1", wait(0), HMMA]
    assert read_ahead(loop, 32).overlap == 0
    assert read_ahead(loop[:-1], 32).overlap == 1


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        ("LDS.128 R4, [R2]", 8 * 32 * 16),
        ("LDS R4, [R2+0x10]", 8 * 32 * 4),
        ("STS.64 [R2], R4", 8 * 32 * 8),
        (COPY, 8 * 32 * 16),
        ("LDSM.16.MT88.4 R4, [R2]", 8 * 4 * 128),
        ("STSM.16.M88.2 [R2], R4", 8 * 2 * 128),
        ("LDSM.16.M88 R4, [R2]", 8 * 128),
        ("HGMMA.64x32x16.F32.BF16 R152, gdesc[UR56], R152", 2 * 2 * (64 * 16 + 32 * 16)),
        ("HGMMA.64x256x16.F32.BF16 R24, R184, gdesc[UR4].tnspB, R24", 2 * 2 * 256 * 16),
        (HMMA, 0),
        ("LDG.E.128 R4, [R2.64]", 0),
        ("UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8]", None),
    ],
)
def test_what_passes_through_shared_memory_is_counted(line, moved):
    """By eight warps; a wgmma by two groups of four, its first operand only where it lies there."""
    assert shared_traffic(["IADD3 R1, R1, R2", line], 8) == moved
    assert moved is None or shared_traffic([line, line], 8) == 2 * moved
