"""The compile gate: what ``mla_decode`` would run on each GPU compiles, fits, and uses the tensor cores."""

import sys

import pytest

from mla_edu.kernels.offline import ARCHITECTURES, MULTIPROCESSOR, compile_report, compile_reports
from mla_edu.kernels.tiles import SHARED_LIMIT, Tiles, matrix_unit, programs_per_multiprocessor, shared_bytes

pytest.importorskip("triton")
GATE = [(arch, "fp16" if arch == "sm_75" else "bf16", heads, 1) for arch in ARCHITECTURES for heads in (16, 128)]
MORE = [
    ("sm_90", "bf16", 16, 4),
    ("sm_90", "bf16", 32, 1),
    ("sm_100", "bf16", 32, 1),
    ("sm_80", "bf16", 32, 1),
    ("sm_90", "fp8", 128, 1),
    ("sm_90", "fp8", 16, 1),
    ("sm_86", "fp8", 16, 1),
]
MORE += [("sm_86", "fp32", 16, 1)]
INSTRUCTIONS = {"fma": None, "mma": "HMMA", "wgmma": "HGMMA", "tcgen05": "UTCHMMA", "mfma": "MFMA"}


@pytest.fixture(scope="module")
def reports():
    requests = GATE + MORE
    return dict(zip(requests, compile_reports(requests), strict=True))


@pytest.mark.parametrize("request_", GATE + MORE, ids=lambda request: "-".join(map(str, request)))
def test_kernel_compiles_fits_and_uses_the_matrix_units(reports, request_):
    report, (arch, dtype, num_heads, s_q) = reports[request_], request_
    assert (report.arch, report.dtype, report.num_heads, report.s_q) == request_
    assert report.spill_bytes == 0
    assert report.shared_bytes <= SHARED_LIMIT[arch]
    assert report.tensor_memory <= 512
    assert 0 < report.occupancy <= 1
    assert report.cubin[:4] == b"\x7fELF"

    instruction = INSTRUCTIONS[matrix_unit(arch)]
    if matrix_unit(arch) in ("wgmma", "tcgen05") and num_heads * s_q < 64:
        instruction = "HMMA"  # the large ones take 64 rows at least
    expected = {instruction} if instruction and dtype != "fp32" else set()
    assert set(report.tensor_core_instructions) == expected


@pytest.mark.parametrize("request_", GATE + MORE, ids=lambda request: "-".join(map(str, request)))
def test_shared_memory_is_foreseen(reports, request_):
    """Else a tile is chosen that the GPU then refuses."""
    report, (arch, dtype, *_) = reports[request_], request_
    assert report.shared_bytes <= shared_bytes(report.tiles, matrix_unit(arch), 512, 64, dtype)


@pytest.mark.parametrize("request_", GATE + MORE, ids=lambda request: "-".join(map(str, request)))
def test_programs_that_fit_at_a_time_are_foreseen(reports, request_):
    """Else sequences are cut into splits for places that are not there."""
    report, (arch, dtype, *_) = reports[request_], request_
    _, warps = MULTIPROCESSOR[arch]
    fit = round(report.occupancy * warps / report.tiles.num_warps)
    foreseen = programs_per_multiprocessor(report.tiles, matrix_unit(arch), 512, 64, dtype, SHARED_LIMIT[arch])
    assert foreseen == fit


def test_another_tile_can_be_tried():
    too_few_warps = Tiles(64, 64, 4, 2)
    report = compile_report("sm_90", tiles=too_few_warps)
    assert report.tiles == too_few_warps and report.spill_bytes > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sm_70",), "arch is 'sm_70'; expected sm_75, sm_80"),
        (("sm_90", "bf16", 0), "num_heads is 0; expected at least 1"),
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


def test_what_the_compiler_says_is_handed_on(monkeypatch):
    monkeypatch.setattr("mla_edu.kernels.offline._plan", lambda *request: (*request[:-1], "no tiles"))
    with pytest.raises(RuntimeError, match="(?s)compiling failed:.*AttributeError"):
        compile_report("sm_90")
