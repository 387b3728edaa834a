"""The compile gate: what ``mla_decode`` would run on each GPU compiles, fits, and uses the tensor cores.

And it compiles no worse than ``figures.json`` says, which ``tools/renew_kernel_figures.py`` writes anew.
"""

import json
import re
import sys
from pathlib import Path

import pytest

from mla_edu.kernels.machine_code import read_loop
from mla_edu.kernels.offline import Request, compile_report, compile_reports
from mla_edu.kernels.tiles import SHARED_LIMIT, Tiles, matrix_unit, programs_per_multiprocessor, shared_bytes

pytest.importorskip("triton")
TABLE = json.loads(Path(__file__).with_name("figures.json").read_text(encoding="utf-8"))
FIGURES = {tuple(row[:5]): dict(zip(TABLE["columns"][5:], row[5:], strict=True)) for row in TABLE["rows"]}
CASES = pytest.mark.parametrize("case", FIGURES, ids=lambda case: "-".join(map(str, case)))
INSTRUCTIONS = {"fma": None, "mma": "HMMA", "wgmma": "HGMMA", "tcgen05": "UTCHMMA", "mfma": "MFMA"}


@pytest.fixture(scope="module")
def reports():
    return dict(zip(FIGURES, compile_reports([Request(*case) for case in FIGURES]), strict=True))


@CASES
def test_kernel_compiles_fits_and_uses_the_matrix_units(reports, case):
    report, (arch, dtype, num_heads, s_q, page_size) = reports[case], case
    assert (report.arch, report.dtype, report.num_heads, report.s_q, report.page_size) == case
    assert report.spill_bytes == 0 or page_size < 64
    assert report.shared_bytes <= SHARED_LIMIT[arch]
    assert report.tensor_memory <= 512
    assert 0 < report.occupancy <= 1
    assert report.cubin[:4] == b"\x7fELF"

    instruction = INSTRUCTIONS[matrix_unit(arch)]
    if matrix_unit(arch) in ("wgmma", "tcgen05") and num_heads * s_q < 64:
        instruction = "HMMA"  # the large ones take 64 rows at least
    expected = {instruction} if instruction and dtype != "fp32" else set()
    assert set(report.tensor_core_instructions) == expected


@CASES
def test_no_case_compiles_worse_than_it_did(reports, case):
    report, before = reports[case], FIGURES[case]
    assert report.spill_bytes <= before["spill_bytes"]
    assert report.shared_bytes <= before["shared_bytes"]
    assert report.programs >= before["programs"]
    if report.arch != "gfx942":
        assert report.bytes_in_flight >= before["bytes_in_flight"] - report.tile_bytes / 16  # a page's number is noise
        assert report.instructions_per_token <= before["instructions_per_token"]


@CASES
def test_shared_memory_is_foreseen(reports, case):
    """Else a tile is chosen that the GPU then refuses."""
    report, (arch, dtype, *_) = reports[case], case
    assert report.shared_bytes <= shared_bytes(report.tiles, matrix_unit(arch), 512, 64, dtype)


@CASES
def test_programs_that_fit_at_a_time_are_foreseen(reports, case):
    """Else sequences are cut into splits for places that are not there."""
    report, (arch, dtype, *_) = reports[case], case
    foreseen = programs_per_multiprocessor(report.tiles, matrix_unit(arch), 512, 64, dtype, SHARED_LIMIT[arch])
    assert report.programs == foreseen


@CASES
def test_the_loop_over_the_tiles_is_found(reports, case):
    """It has all matrix instructions of the kernel; on sm_100 others stand around it, and one tile takes 36 + 4."""
    report = reports[case]
    if report.arch == "gfx942":
        assert report.loop_instructions is report.ahead is report.assembler is None
        return
    assert report.loop_instructions == len(read_loop(report.cubin)) and re.fullmatch(r"1\d\.\d", report.assembler)
    loop = read_loop(report.cubin)
    in_loop = sum(re.split("[. ]", line)[0] in report.tensor_core_instructions for line in loop)
    in_all = sum(report.tensor_core_instructions.values())
    assert in_loop == (40 if "UTCHMMA" in report.tensor_core_instructions else in_all)
    assert loop[-1].startswith("BRA")


@CASES
def test_what_a_loop_loads_is_one_tile_and_its_page_numbers(reports, case):
    """fp8's scales are asked for by several threads each."""
    report = reports[case]
    if report.arch == "gfx942":
        return
    threads = 32 * report.tiles.num_warps
    assert report.tile_bytes * 0.9 <= report.ahead.loaded_bytes
    most = 2.5 if report.dtype == "fp8_mla" or report.arch == "sm_75" else 1
    assert report.ahead.loaded_bytes <= most * report.tile_bytes + 4 * threads * (64 if report.page_size < 64 else 16)


def test_the_loop_copies_one_tile(reports):
    """Of 64 tokens with 1,152 bytes each, 16 bytes at a time by each of 256 threads, and the number of a page."""
    loop = read_loop(reports["sm_90", "bf16", 16, 1, 64].cubin)
    copies = [line for line in loop if line.startswith("LDGSTS")]
    of_rows = [line for line in copies if line.startswith("LDGSTS.E.BYPASS.128 ")]
    assert len(of_rows) * 16 * 256 == 64 * 1152
    assert len(copies) == len(of_rows) + 1


@pytest.mark.parametrize(("heads", "share"), [(16, 1.0), (32, 1.0), (64, 1088 / 1664)])
def test_useful_tensor_work_is_known(reports, heads, share):
    """With 64 rows both warpgroups compute all scores: (1088 + 576) where 1088 would do."""
    assert reports["sm_90", "bf16", heads, 1, 64].useful_share == pytest.approx(share)


def test_another_tile_can_be_tried():
    too_few_warps = Tiles(64, 64, 4, 2)
    report = compile_report("sm_90", tiles=too_few_warps)
    assert report.tiles == too_few_warps and report.spill_bytes > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sm_70",), "arch is 'sm_70'; expected sm_75, sm_80"),
        (("sm_90", "bf16", 0), "num_heads is 0; expected an integer from 1 to 1,024"),
        (("sm_90", "fp8"), "dtype is 'fp8'; expected bf16, fp16, fp32, fp8_mla"),
        (("sm_90", "bf16", 16, 1, 0), "page_size is 0; expected an integer from 1 to 65,536"),
        (("sm_75", "fp32"), "in fp32 need 75776 bytes of shared memory; expected at most the 65536 of sm_75"),
        (("sm_90", "int4"), "dtype is 'int4'"),
    ],
)
def test_bad_input_is_named_before_anything_is_compiled(arguments, message):
    with pytest.raises(ValueError, match=message):
        compile_report(*arguments)


def test_a_missing_triton_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match="compiling needs Triton: pip install 'mla-edu\\[kernels\\]'"):
        compile_report("sm_90")


def test_what_the_compiler_says_is_handed_on():
    with pytest.raises(RuntimeError, match="(?s)compiling failed:.*power of 2"):
        compile_report("sm_90", tiles=Tiles(16, 24, 4, 2))
