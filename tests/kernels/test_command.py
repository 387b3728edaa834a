"""``mla-edu kernels``: the table of what the compiler made of the kernel."""

import pytest
from typer.testing import CliRunner

from mla_edu import cli
from mla_edu.kernels import offline
from mla_edu.kernels.offline import Request
from mla_edu.kernels.tiles import Tiles


def run(*arguments):
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(cli.app, ["kernels", *arguments])


@pytest.fixture
def asked(monkeypatch):
    """What was asked for; nothing is compiled."""
    requests = []

    def reports(wanted):
        requests.extend(wanted)
        tiles = Tiles(64, 32, 8, 2)
        return [
            offline.KernelReport(
                each.arch, each.dtype, each.num_heads, each.s_q, 64, tiles, 253, 0, 213_552, 512, {"UTCHMMA": 148}, 1,
                0.125, b"",
            )
            for each in wanted
        ]  # fmt: skip

    monkeypatch.setattr(offline, "compile_reports", reports)
    return requests


def test_all_gpus_are_shown_within_80_columns(asked):
    result = run()
    assert result.exit_code == 0, result.output
    assert asked[0] == Request("sm_75", "fp16", 16, 1) and asked[-1] == Request("gfx942", "bf16", 128, 1)
    assert len(asked) == 16
    rows = [line for line in result.stdout.splitlines() if line.startswith(("sm_", "gfx"))]
    assert len(rows) == 16 and " ".join(rows[9].split()) == "sm_90 bf16 128 64 x 32 253 0 213,552 12% 148 UTCHMMA"


def test_gpus_heads_tokens_and_dtype_are_handed_on(asked):
    assert run("sm_90", "sm_75", "--heads", "64", "--s-q", "2", "--dtype", "fp8_mla").exit_code == 0
    assert asked == [Request(arch, "fp8_mla", 64, 2) for arch in ("sm_90", "sm_75")]


def test_an_unknown_gpu_is_one_line():
    result = run("sm_70")
    assert result.exit_code == 2
    assert result.stderr.startswith("mla-edu: arch is 'sm_70'; expected sm_75,") and result.stderr.count("\n") == 1
