"""The compile gate: what ``mla_decode`` would run on each GPU compiles, fits, and uses the tensor cores.

And it compiles no worse than ``figures.json`` says, which ``tools/renew_kernel_figures.py`` writes anew.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest

from mla_edu.bench.first_look import Step, read_first_look
from mla_edu.kernels.forecast import forecast, predict_seconds
from mla_edu.kernels.machine_code import read_loop
from mla_edu.kernels.offline import Request, compile_report, compile_reports
from mla_edu.kernels.tiles import SHARED_LIMIT, Tiles, matrix_unit, programs_per_multiprocessor, shared_bytes
from mla_edu.registry import get_gpu

pytest.importorskip("triton")
TABLE = json.loads(Path(__file__).with_name("figures.json").read_text(encoding="utf-8"))
FIGURES = {tuple(row[:5]): dict(zip(TABLE["columns"][5:], row[5:], strict=True)) for row in TABLE["rows"]}
CASES = pytest.mark.parametrize("case", FIGURES, ids=lambda case: "-".join(map(str, case)))
INSTRUCTIONS = {"fma": None, "mma": "HMMA", "wgmma": "HGMMA", "tcgen05": "UTCHMMA", "mfma": "MFMA"}


SPILLS = {("sm_90", "bf16", 128, 1, 16)}  # two registers


@pytest.fixture(scope="module")
def reports():
    return dict(zip(FIGURES, compile_reports([Request(*case) for case in FIGURES]), strict=True))


@CASES
def test_kernel_compiles_fits_and_uses_the_matrix_units(reports, case):
    report, (arch, dtype, num_heads, s_q, _) = reports[case], case
    assert (report.arch, report.dtype, report.num_heads, report.s_q, report.page_size) == case
    assert report.spill_bytes == 0 or case in SPILLS
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


# What the form that was timed reached on an H100 of its prediction, by dtype and heads: as the docstring of
# ``forecast`` says. And how many instructions that form has for a token.
REACHED = {
    ("bf16", 16): 0.8, ("bf16", 32): 0.8, ("bf16", 64): 1.05, ("bf16", 128): 0.95,
    ("fp8_mla", 16): 0.7, ("fp8_mla", 128): 0.55,
}  # fmt: skip
TIMED = {
    ("bf16", 16): 91.625, ("bf16", 32): 113.5, ("bf16", 64): 135.5, ("bf16", 128): 135.5,
    ("fp8_mla", 16): 173.5, ("fp8_mla", 128): 418.0,
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "heads"), REACHED)
def test_predictions_miss_what_was_measured_by_what_is_stated(reports, dtype, heads):
    report, look = reports["sm_90", dtype, heads, 1, 64], read_first_look()
    tile = report.tiles
    timed = round(TIMED[dtype, heads] * tile.block_n / tile.num_warps)
    report = dataclasses.replace(report, loop_instructions=timed)
    step = Step(heads=heads, batch=32, context=16_384 if heads < 64 else 8192, dtype=dtype)
    tiles = "" if (dtype, heads) not in (("bf16", 16), ("bf16", 32)) else f" {heads}x64s5"
    measured = look.times(f"triton-even{tiles}")[step]
    reached = measured.tflop_per_s * 1e12 / get_gpu("h100").flops["bf16"] / forecast(report, "h100").of_product
    assert reached == pytest.approx(REACHED[dtype, heads], abs=0.06)
    slower = measured.microseconds / 1e6 / predict_seconds(report, "h100", step.batch, step.context)
    assert 0.85 < slower < (1.7 if dtype == "fp8_mla" else 1.25)


def test_a_step_of_one_long_sequence_took_longer_than_predicted(reports):
    step = Step(heads=16, batch=1, context=65_536)
    measured = read_first_look().times("triton-even 16x64s5")[step].microseconds
    predicted = 1e6 * predict_seconds(reports["sm_90", "bf16", 16, 1, 64], "h100", 1, 65_536)
    assert 1.3 < measured / predicted < 1.5


GLUON = [("bf16", 16), ("bf16", 64), ("bf16", 128), ("fp8_mla", 16), ("fp8_mla", 32)]


@pytest.fixture(scope="module")
def gluon():
    pytest.importorskip("triton.experimental.gluon")
    return dict(zip(GLUON, compile_reports([Request("sm_90", *each, backend="gluon") for each in GLUON]), strict=True))


def test_gluons_kernels_compile_to_what_a_launch_compiles(gluon):
    rows = [dict(zip(TABLE["gluon"]["columns"], row, strict=True)) for row in TABLE["gluon"]["rows"]]
    launched = {(row["dtype"], row["num_heads"]): row for row in rows if row["num_splits"] is None and row["s_q"] == 1}
    compared = [case for case in GLUON if case in launched]
    assert len(compared) == 3
    for case in compared:
        report, before = gluon[case], launched[case]
        assert report.registers <= before["registers"] and report.spill_bytes <= before["spill_bytes"]
        assert report.shared_bytes == before["shared_bytes"] <= SHARED_LIMIT["sm_90"]
        assert report.programs == 1 and report.cubin[:4] == b"\x7fELF"


def test_gluons_groups_share_the_products_of_a_pair(gluon):
    """Each multiplies half; scores by 4 KB of operands an instruction, sums by 8 KB and by 10 where weights are shared.

    The tile itself comes by TMA. What makes rows zero, about 600 instructions of each loop, is for the last tile only.
    """
    report = gluon["bf16", 64]
    first, second = report.turns
    assert first.flops == second.flops == report.useful_flops / 2 and report.useful_share == 1
    assert gluon["bf16", 16].useful_share == 0.25
    operands = 36 * 4096 + 4 * 8192 + 4 * 10_240
    assert operands <= first.shared_traffic <= 1.06 * operands
    assert report.shared_traffic == first.shared_traffic + second.shared_traffic + 128 * 1152
    assert all(600 < each.instructions < 900 for each in report.turns)
    assert 100 < report.loop_instructions - first.instructions - second.instructions < 300  # of the loader
    assert report.ahead is None


@pytest.mark.parametrize("rows", [16, 32])
def test_gluons_fp8_kernel_multiplies_no_more_than_it_must_with_a_tile_on_its_way(gluon, rows):
    report = gluon["fp8_mla", rows]
    assert report.useful_share == 1 and report.turns == ()
    assert report.ahead.overlap == 1 and report.bytes_in_flight > 0.9 * report.tile_bytes


# What an earlier form of Gluon's bf16 kernel reached of the prediction on an H100: as the docstring of ``forecast``.
GLUON_REACHED = {(64, 132, 8192): 0.84, (128, 132, 8192): 0.84, (64, 32, 16_384): 0.8, (128, 32, 16_384): 0.8}
GLUON_SLOWER = {
    (64, 132, 8192): (1.1, 1.2), (128, 32, 16_384): (1.1, 1.2), (64, 32, 4096): (1.3, 1.4), (128, 32, 4096): (1.3, 1.4),
    (64, 1, 65_536): (1.6, 1.9), (128, 1, 65_536): (1.6, 1.9), (16, 32, 4096): (1.4, 1.45),
}  # fmt: skip


def timed_of_gluon(heads, batch, context):
    step = Step(heads=heads, batch=batch, context=context)
    return read_first_look().times("gluon" if heads == 16 else "gluon-first")[step]


@pytest.mark.parametrize("step", GLUON_REACHED)
def test_gluon_reached_of_its_prediction_what_is_stated(gluon, step):
    predicted = forecast(gluon["bf16", step[0]], "h100").of_product
    reached = timed_of_gluon(*step).tflop_per_s * 1e12 / get_gpu("h100").flops["bf16"] / predicted
    assert reached == pytest.approx(GLUON_REACHED[step], abs=0.04)


@pytest.mark.parametrize("step", GLUON_SLOWER)
def test_gluon_took_longer_than_predicted_as_is_stated(gluon, step):
    least, most = GLUON_SLOWER[step]
    heads, batch, context = step
    predicted = 1e6 * predict_seconds(gluon["bf16", heads], "h100", batch, context)
    assert least - 0.02 < timed_of_gluon(*step).microseconds / predicted < most + 0.02


def test_gluons_fp8_kernel_was_never_timed():
    """So nothing is said of how far off its predictions are."""
    look = read_first_look()
    assert not [each for each in look.timings if "gluon" in each.kernel and each.step.dtype == "fp8_mla"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("sm_80", backend="gluon"), "backend 'gluon' needs a GPU of sm_90; arch is 'sm_80'"),
        (Request("sm_90", "fp16", backend="gluon"), "backend 'gluon' needs bf16, or the fp8 cache; q is torch.float16"),
        (Request("sm_90", "fp8_mla", 64, backend="gluon"), "needs 32 rows of queries or fewer with the fp8 cache"),
        (Request("sm_90", page_size=16, backend="gluon"), "pages of a multiple of 64 tokens; got 16"),
        (Request("sm_90", tiles=Tiles(64, 64, 4, 2), backend="gluon"), "tiles are .*; expected None, since those of"),
        (Request("sm_90", backend="cuda"), "backend is 'cuda'; expected 'triton' or 'gluon'"),
    ],
)
def test_what_gluon_cannot_do_is_named_before_anything_is_compiled(request_, message):
    pytest.importorskip("triton.experimental.gluon")
    with pytest.raises(ValueError, match=message):
        compile_reports([request_])


def test_gluon_needs_a_triton_that_has_it(monkeypatch):
    monkeypatch.setattr("mla_edu.kernels.launch.TRITON", (3, 5))
    with pytest.raises(ValueError, match="backend 'gluon' needs Triton 3.6 or later; this is 3.5"):
        Request("sm_90", backend="gluon").plan()


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
