"""``mla-edu kernels``: the table of what the compiler made of the kernel."""

import dataclasses

import pytest
from typer.testing import CliRunner

from mla_edu import cli
from mla_edu.kernels import assembler, offline
from mla_edu.kernels.machine_code import Ahead
from mla_edu.kernels.offline import Request
from mla_edu.kernels.tiles import Tiles


def report(request):
    """What a compiler might make of it."""
    of_nvidia = {
        "assembler": "12.8", "loop_instructions": 1000, "executed_flops": 10_000_000, "shared_traffic": 400_000,
        "ahead": Ahead(0.75, 50_000.0, 40_000, (1,)),
    }  # fmt: skip
    return offline.KernelReport(
        request.arch, request.dtype, request.num_heads, request.s_q, request.page_size, Tiles(64, 32, 8, 2), 253, 0,
        213_552, 512, {"HGMMA": 148}, 1, 0.125, b"", **(of_nvidia if request.arch.startswith("sm_") else {}),
    )  # fmt: skip


def run(*arguments):
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(cli.app, ["kernels", *arguments])


@pytest.fixture
def asked(monkeypatch):
    """What was asked for; nothing is compiled."""
    requests = []

    def reports(wanted, note):
        requests.extend(wanted)
        note(len(requests))
        return [report(each) for each in wanted]

    monkeypatch.setattr(offline, "compile_reports", reports)
    return requests


def test_all_gpus_are_shown_within_80_columns(asked):
    result = run()
    assert result.exit_code == 0, result.output
    assert asked[0] == Request("sm_75", "fp16", 16, 1) and asked[-1] == Request("gfx942", "bf16", 128, 1)
    assert len(asked) == 16
    rows = [" ".join(line.split()) for line in result.stdout.splitlines() if line.startswith(("sm_", "gfx"))]
    assert len(rows) == 32 and rows[9] == "sm_90 bf16 128 64 x 32 253 0 213,552 12% 148 HGMMA"
    assert rows[16 + 9] == "sm_90 bf16 128 1 46,080 1 75% 250 45%"
    assert rows[16 + 15] == "gfx942 bf16 128 1 - - - - -"
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if "warning" not in line)


def test_predictions_are_called_predictions_and_made_for_known_gpus(asked):
    lines = run("sm_90", "sm_86", "--heads", "64").stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("predicted on"))
    found = [line.split() for line in lines[start + 2 : start + 4]]
    assert [row[0] for row in found] == ["h100", "h200"] and found[1][:4] == ["h200", "bf16", "64", "19,841"]
    assert any("Predictions from these counts" in line and "nothing was timed" in line for line in lines[start:])
    assert "predicted" not in run("sm_86").stdout


@pytest.mark.parametrize(("version", "warned"), [("12.8", True), ("13.1", False)])
def test_an_assembler_that_is_known_to_fail_is_named_with_what_helps(asked, monkeypatch, tmp_path, version, warned):
    (tmp_path / "ptxas-blackwell").touch()
    here = assembler.Assembler(str(tmp_path / "ptxas"), "12.8")
    monkeypatch.setattr(assembler, "assembler", lambda arch: here)
    monkeypatch.setattr(offline, "compile_reports", lambda wanted, note: [
        dataclasses.replace(report(each), assembler=version) for each in wanted
    ])  # fmt: skip
    shown = run("sm_90").stdout
    assert ("warning: ptxas 12.8 is known" in shown) == warned
    assert (f"TRITON_PTXAS_PATH={tmp_path}/ptxas-blackwell" in shown) == warned


def test_the_time_of_a_step_of_any_batch_is_predicted(asked):
    def times(*options):
        lines = run("sm_90", "--heads", "16", *options).stdout.splitlines()
        assert any("as predicted on an H100" in line for line in lines)
        return [int(line.split()[6]) for line in lines if line.startswith(("h100", "h200"))], lines

    (short, _), lines = times("--batch", "1", "--context", "64k")
    assert any(line.startswith("us: of a whole step of 1 x 65,536 tokens") for line in lines)
    (long, _), _ = times("--batch", "16", "--context", "64k")
    assert 10 * short < long < 17 * short


def test_gpus_heads_tokens_and_dtype_are_handed_on(asked):
    assert run("sm_90", "sm_75", "--heads", "64", "--s-q", "2", "--dtype", "fp8_mla").exit_code == 0
    assert asked == [Request(arch, "fp8_mla", 64, 2) for arch in ("sm_90", "sm_75")]
    assert run("sm_90", "--heads", "16", "--page-size", "16").exit_code == 0
    assert asked[2:] == [Request("sm_90", "bf16", 16, 1, 16)]


def test_gluon_is_compiled_for_hopper_with_what_its_kernels_can_do(asked):
    lines = run("--backend", "gluon").stdout.splitlines()
    cases = [("bf16", 16), ("bf16", 32), ("bf16", 64), ("bf16", 128), ("fp8_mla", 16), ("fp8_mla", 32)]
    assert asked == [Request("sm_90", dtype, heads, backend="gluon") for dtype, heads in cases]
    found = [line.split()[:3] for line in lines if line.startswith(("h100", "h200"))]
    assert found == [[gpu, dtype, str(heads)] for dtype, heads in cases for gpu in ("h100", "h200")]
    text = " ".join(lines)
    assert "took 1.1 to 1.9 times as long as predicted on an H100, by earlier forms of the bf16 kernel" in text
    assert "fp8 was never timed" in text and all(len(line) <= 80 for line in lines if "warning" not in line)
    assert "fp8 1.3 to 1.7" not in text
    asked.clear()
    run("sm_90", "--backend", "gluon", "--heads", "8")
    run("sm_90", "--backend", "gluon", "--dtype", "fp8_mla", "--heads", "8")
    run("sm_90", "--backend", "gluon", "--dtype", "fp8_mla")
    assert asked[:2] == [Request("sm_90", dtype, 8, backend="gluon") for dtype in ("bf16", "fp8_mla")]
    assert [(each.dtype, each.num_heads) for each in asked[2:]] == cases[4:]


def test_what_gluon_cannot_do_is_one_line():
    result = run("sm_80", "--backend", "gluon")
    assert result.exit_code == 2
    assert result.stderr == "mla-edu: backend 'gluon' needs a GPU of sm_90; arch is 'sm_80'\n"
    assert run("--backend", "cuda").stderr == "mla-edu: --backend is 'cuda'; expected 'triton' or 'gluon'\n"


def test_an_unknown_gpu_is_one_line():
    result = run("sm_70")
    assert result.exit_code == 2
    assert result.stderr.startswith("mla-edu: arch is 'sm_70'; expected sm_75,") and result.stderr.count("\n") == 1
