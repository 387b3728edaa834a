"""Which ptxas makes the machine code, and what is known against it."""

import pytest

from mla_edu.kernels.assembler import Assembler, assembler, known_fault


@pytest.mark.parametrize(
    ("version", "fails"),
    [
        ("12.7", False),
        ("12.8", True),
        ("12.9", True),
        ("12.8.93", True),
        ("12.80", False),
        ("13.1", False),
        ("", False),
    ],
)
def test_versions_that_are_known_to_fail(version, fails):
    assert (known_fault(version) is not None) == fails
    assert (Assembler("/no/ptxas", version).warning is not None) == fails


def test_the_newer_one_is_advised_only_where_it_lies_beside(tmp_path):
    here = Assembler(str(tmp_path / "ptxas"), "12.8")
    assert "TRITON_PTXAS_PATH" not in here.warning
    (tmp_path / "ptxas-blackwell").touch()
    assert here.warning.endswith(f"TRITON_PTXAS_PATH={tmp_path}/ptxas-blackwell takes the newer one beside it")


def test_the_one_that_triton_runs_is_found_and_can_be_another(monkeypatch):
    pytest.importorskip("triton")
    own, newer = assembler("sm_90"), assembler("sm_100")
    assert own.path.endswith("/ptxas") and newer.path.endswith("/ptxas-blackwell")
    assert float(own.version) < float(newer.version)
    monkeypatch.setenv("TRITON_PTXAS_PATH", newer.path)
    assert assembler("sm_90") == newer and newer.warning is None
