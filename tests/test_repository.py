"""The repository's files agree with each other: versions, addresses, pins, licences, links, and the two commands."""

import ast
import os
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mla_edu
from mla_edu.bench.results import layer_steps, measured_gpus
from mla_edu.book.readme import measured_table

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(name):
    return (ROOT / name).read_text()


def tracked_files():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def pins(name):
    lines = (line.split("#")[0].strip() for line in read(name).splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r ")]


ALL_PINS = {canonicalize_name(pin.name): pin for pin in pins("requirements-book.txt") + pins("requirements.txt")}


def run_make(*arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


# Versions and addresses


def test_version_is_the_same_everywhere():
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "mla_edu.__version__"}
    assert yaml.safe_load(read("CITATION.cff"))["version"] == mla_edu.__version__
    assert re.search(r"^## \[(.+?)\]", read("CHANGELOG.md"), flags=re.MULTILINE)[1] == mla_edu.__version__
    assert set(re.findall(r"@v(\d+\.\d+\.\d+)", read("README.md"))) == {mla_edu.__version__}


def test_version_can_be_read_without_importing_the_package():
    # What an isolated build sees: no torch, no pydantic.
    values = {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(read("mla_edu/__init__.py")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    assert values["__version__"] == mla_edu.__version__


def test_every_address_of_the_repository_is_the_configured_one():
    url = yaml.safe_load(read("_config.yml"))["repository"]["url"]
    name = url.rsplit("/", 1)[1]
    mentions = 0
    for path in tracked_files():
        if path.suffix in {".md", ".cff", ".toml", ".yml", ".ipynb", ".py", ".txt"}:
            for found in re.findall(rf"https?://(?:www\.)?github\.com/[\w.-]+/{name}\b", path.read_text()):
                assert found == url, path
                mentions += 1
    assert mentions >= 3


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_to_files(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(name)):
        if not target.startswith(("http://", "https://", "#")):
            assert (ROOT / target.split("#")[0]).is_file(), target


def test_readme_code_runs():
    (code,) = re.findall(r"```python\n(.*?)```", read("README.md"), flags=re.DOTALL)
    names = {}
    exec(code, names)
    assert names["cache"].length == 8
    assert names["y"].shape == (1, 1, 512)


def test_readme_leads_with_what_was_measured():
    wanted = measured_table(measured_gpus(), layer_steps())
    readme = read("README.md")
    assert wanted in readme
    assert readme.index(wanted) < readme.index("## What you find")


def test_readme_shows_what_the_command_prints():
    from typer.testing import CliRunner

    from mla_edu.cli import app

    (block,) = re.findall(r"```\n(mla-edu cache .*?)```", read("README.md"), flags=re.DOTALL)
    command, *shown = block.splitlines()
    result = CliRunner().invoke(app, command.split()[1:])
    assert result.exit_code == 0, result.output
    printed = [line.strip() for line in result.output.splitlines()]
    for line in filter(None, shown):
        assert line.strip() in printed


# What a user's pip sees


def test_package_data_covers_every_file_that_is_not_code():
    package = ROOT / "mla_edu"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["mla_edu"]
    covered = {path for pattern in patterns for path in package.glob(pattern)}
    present = {p for p in package.rglob("*") if p.is_file() and p.suffix != ".py" and "__pycache__" not in p.parts}
    assert present <= covered
    named = {"py.typed", "models/models.yaml", "bench/measured/decode_step_cpu.json"}
    assert {package / name for name in named} <= covered


def test_every_folder_with_code_is_a_package():
    for path in (ROOT / "mla_edu").rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), path


def ranges():
    project = PROJECT["project"]
    return [
        Requirement(text)
        for texts in (project["dependencies"], *project["optional-dependencies"].values())
        for text in texts
    ]


@pytest.mark.parametrize("requirement", ranges(), ids=str)
def test_ranges_are_loose_and_hold_the_pins(requirement):
    assert {specifier.operator for specifier in requirement.specifier} <= {">="}
    (pin,) = ALL_PINS[canonicalize_name(requirement.name)].specifier
    assert requirement.specifier.contains(pin.version)


@pytest.mark.parametrize("name", ["requirements-book.txt", "requirements.txt"])
def test_requirements_are_exact(name):
    assert "-r requirements-book.txt" in read("requirements.txt")
    for pin in pins(name):
        assert [specifier.operator for specifier in pin.specifier] == ["=="], pin


def test_rendering_needs_no_torch():
    assert not {"torch", "triton", "transformers"} & {
        canonicalize_name(pin.name) for pin in pins("requirements-book.txt")
    }


def test_what_the_pins_bring_along_is_pinned():
    for name, pin in ALL_PINS.items():
        if pin.marker and not pin.marker.evaluate():
            continue
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker and not needed.marker.evaluate({"extra": ""}):
                continue
            if not needed.name.startswith(("nvidia-", "cuda-")):  # torch's own, on machines where it wants them
                assert canonicalize_name(needed.name) in ALL_PINS, f"{name} needs {needed}"


# The commands


def test_make_offers_its_targets():
    result = run_make("help")
    for target in ("book", "test", "serve", "notebooks", "lint"):
        assert f"make {target} " in result.stdout


@pytest.mark.parametrize("state", ["is Python 3.10", "has no venv module"])
def test_an_unfit_python_gets_one_line(tmp_path, state):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {state}\n")
    python.chmod(0o755)
    result = run_make("venv-book", f"PYTHON={python}")
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert f"Python 3.11 to 3.13 with venv is needed, but {python} {state}" in line


def test_a_missing_python_gets_one_line():
    result = run_make("venv-book", "PYTHON=no-such-python")
    (line,) = result.stderr.splitlines()
    assert "no-such-python does not run" in line


def test_supported_pythons_are_the_same_everywhere():
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert "(3, 11) <= v <= (3, 13)" in read("Makefile")
    assert "Python 3.11 to 3.13" in read("README.md")
    matrix = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python-version"] == ["3.11", "3.12", "3.13"]


def test_continuous_integration_runs_make_test():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "CI=true make test" in read(".ci/run")
    assert subprocess.run([shutil.which("bash"), "-n", ROOT / ".ci" / "run"]).returncode == 0


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_sound(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 45
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])
            elif step["run"].startswith("make "):
                assert re.search(rf"^{step['run'].removeprefix('make ')}:", read("Makefile"), flags=re.MULTILINE)
            else:
                assert os.access(ROOT / step["run"], os.X_OK)


# Files


def test_licences_are_there_in_full():
    assert "Apache License\n                           Version 2.0" in read("LICENSE")
    assert "END OF TERMS AND CONDITIONS" in read("LICENSE")
    assert "Creative Commons Attribution 4.0 International" in read("LICENSE-TEXT")
    assert "Section 8 -- Interpretation." in read("LICENSE-TEXT")
    assert PROJECT["project"]["license"] == yaml.safe_load(read("CITATION.cff"))["license"] == "Apache-2.0"


def test_no_large_files():
    for path in tracked_files():
        assert path.stat().st_size <= 1.5e6, path


def test_pre_commit_runs_the_pinned_ruff():
    repos = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    (ruff,) = [repo for repo in repos if "ruff" in repo["repo"]]
    assert f"=={ruff['rev'].removeprefix('v')}" == str(ALL_PINS["ruff"].specifier)
    hooks = {hook["id"] for repo in repos for hook in repo["hooks"]}
    assert {"ruff-check", "ruff-format", "check-added-large-files"} <= hooks
