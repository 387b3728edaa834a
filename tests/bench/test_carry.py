"""What to carry to a machine without a network: what is lacking there, no more, and how pip is asked for it."""

from importlib import metadata

import pytest
from typer.testing import CliRunner

from mla_edu import cli
from mla_edu.bench import carry
from mla_edu.bench.carry import download_command, luggage, read_environment

INSTALLED = {  # on the machine where the command runs
    "mla-edu": (
        "0.1.0",
        ["torch>=2.4", "pydantic>=2.8", 'triton>=3.4; extra == "kernels"', 'figures; extra == "book"'],
    ),
    "pydantic": ("2.14.3", ["pydantic_core==2.50.4", 'tzdata; platform_system == "Windows"', "torch>=1"]),
    "pydantic-core": ("2.50.4", ["typing-extensions>=4.16", 'backport; python_version < "3.12"']),
    "backport": ("1.0", None),
    "typing-extensions": ("4.16.0", None),
    "triton": ("3.7.1+git1", []),  # built here
}


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: INSTALLED[name][1])
    monkeypatch.setattr(metadata, "version", lambda name: INSTALLED[name][0])
    monkeypatch.setattr(carry, "OTHERS", {"flashinfer-python": ("apache-tvm-ffi", "requests"), "sgl-flash-mla": ()})


def test_what_is_lacking_is_carried_with_what_it_needs_on_that_python():
    found = luggage({"torch": "2.11.0+cu130", "requests": "2.1"}, "3.12")
    assert found.ours == ["pydantic==2.14.3", "triton==3.7.1", "pydantic-core==2.50.4", "typing-extensions==4.16.0"]
    assert found.others == ["flashinfer-python", "apache-tvm-ffi", "sgl-flash-mla"] and found.outdated == []
    assert "backport==1.0" in luggage({"torch": "2.11.0"}, "3.11").ours


def test_what_is_there_is_left_and_named_where_it_is_older_than_asked_for():
    names = ["pydantic", "triton", "flashinfer-python", "apache-tvm-ffi", "requests", "sgl-flash-mla"]
    found = luggage(dict.fromkeys(names, "9") | {"torch": "2.1.0+cu121"}, "3.12")
    assert found == ([], [], ["torch 2.1.0+cu121, where >=2.4 is asked for"])
    assert luggage(dict.fromkeys([*names, "torch"], ""), "3.12").outdated == []  # names alone do not tell


def test_an_environment_is_read_as_pip_prints_it():
    listed = ["Package   Version", "--------- -------", "torch     2.11.0+cu130", "Typing_Extensions 4.15.0", ""]
    frozen = ["# a comment", "torch==2.11.0+cu130", "typing.extensions==4.15.0", "-e git+https://x", "own @ file:///x"]
    expected = {"torch": "2.11.0+cu130", "typing-extensions": "4.15.0"}
    assert read_environment(listed) == expected
    assert read_environment(frozen) == expected | {"own": ""}
    assert read_environment(["torch", "numpy"]) == {"torch": "", "numpy": ""}
    with pytest.raises(
        ValueError, match=r"the environment has the line 'a, b'; expected one of pip freeze or pip list"
    ):
        read_environment(["a, b"])


def test_pip_is_asked_for_wheels_of_the_other_machine():
    command = download_command(["a==1", "b"], "3.12")
    assert command.startswith("python -m pip download --no-deps --only-binary=:all: --python-version 3.12 ")
    assert command.endswith(" -d wheels a==1 b") and "--platform manylinux_2_28_x86_64 " in command


def run(*arguments):
    return CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, ["bench", "carry", *arguments])


def test_the_command_lists_all_and_says_how(tmp_path):
    (tmp_path / "there.txt").write_text("torch==2.11.0\ntriton==3.6.0\nrequests==2.0\n")
    result = run(str(tmp_path / "there.txt"))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "this package needs: pydantic==2.14.3, pydantic-core==2.50.4, typing-extensions==4.16.0"
    assert lines[1] == "kernels of others: flashinfer-python, apache-tvm-ffi, sgl-flash-mla"
    assert lines[2] == "older there than asked for: nothing"
    assert lines[5] == download_command(
        ["pydantic==2.14.3", "pydantic-core==2.50.4", "typing-extensions==4.16.0", "flashinfer-python",
         "apache-tvm-ffi", "sgl-flash-mla"], "3.12",
    )  # fmt: skip


def test_bad_arguments_are_one_line(tmp_path):
    (tmp_path / "there.txt").write_text("torch\n")
    result = run(str(tmp_path / "there.txt"), "--python", "three")
    assert result.exit_code == 2 and result.stderr == "mla-edu: --python is 'three'; expected one like 3.12\n"
    result = run(str(tmp_path / "no.txt"))
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "no.txt" in result.stderr
