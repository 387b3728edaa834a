"""The repository's files agree with each other: versions, addresses, pins, licences, links, and the two commands."""

import ast
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mla_edu
from execute_notebooks import chapters
from mla_edu.bench.results import layer_steps, measured, measured_gpus
from mla_edu.bench.serving_results import ServingResults
from mla_edu.book.readme import measured_table
from mla_edu.cost import kv_cache_bytes
from mla_edu.words import size

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
    """What a compiled file installs: ``{name: version}``."""
    lines = (line.split("#")[0].strip() for line in read(name).splitlines())
    found = [Requirement(line) for line in lines if line]
    assert all([each.operator for each in pin.specifier] == ["=="] for pin in found), f"{name} has a range"
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in found}


def run_make(*arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


# Versions and addresses


def test_version_is_the_same_everywhere():
    assert yaml.safe_load(read("CITATION.cff"))["version"] == mla_edu.__version__
    assert re.search(r"^## \[(.+?)\]", read("CHANGELOG.md"), flags=re.MULTILINE)[1] == mla_edu.__version__
    assert set(re.findall(r"@v(\d+\.\d+\.\d+)", read("README.md"))) == {mla_edu.__version__}
    assert "tag=v$version" in read(".github/workflows/release.yml")  # what README and the chapters install
    assert "before that version is released: @main" in read("README.md")


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


def test_address_of_the_book_is_where_the_workflow_puts_it():
    owner, name = yaml.safe_load(read("_config.yml"))["repository"]["url"].split("/")[-2:]
    address = f"https://{owner}.github.io/{name}/"
    for text in ("README.md", "PACKAGE.md", "pyproject.toml"):
        assert set(re.findall(r"https://[\w-]+\.github\.io/[\w-]*/?", read(text))) == {address}, text
    jobs = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
    published = [step.get("with", {}).get("path") for step in jobs["book"]["steps"]]
    assert "_build/html" in published and "deploy-pages" in str(jobs["publish"])


def test_readme_opens_every_chapter_here_and_on_colab():
    repository = yaml.safe_load(read("_config.yml"))["repository"]
    colab = f"https://colab.research.google.com/github/{'/'.join(repository['url'].split('/')[-2:])}"
    wanted = [
        f"(book/{path.name})** ([Colab]({colab}/blob/{repository['branch']}/book/{path.name})):" for path in chapters()
    ]
    assert len(wanted) > 1
    places = [read("README.md").find(each) for each in wanted]
    assert -1 not in places, wanted[places.index(-1)]
    assert places == sorted(places) and read("README.md").count("[Colab](") == len(wanted)


def test_readme_shows_the_explorer_in_both_colour_schemes():
    (picture,) = re.findall(r"<picture>.*?</picture>", read("README.md"), flags=re.DOTALL)
    dark, light = re.findall(r'(?:srcset|src)="([^"]+)"', picture)
    assert 'media="(prefers-color-scheme: dark)" srcset="book/figures/explorer-dark.png"' in picture
    sizes = []
    for name in (light, dark):
        data = (ROOT / name).read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) < 150_000
        sizes.append(data[16:24])  # width and height
    assert sizes[0] == sizes[1]
    widths = int.from_bytes(sizes[0][:4]), int(re.search(r'width="(\d+)"', picture)[1])
    assert widths[0] == 2 * widths[1]
    tokens = 131_072
    for model in ("deepseek-v3", "llama-3.1-405b"):
        assert size(kv_cache_bytes(model, tokens)) in re.search(r'alt="([^"]+)"', picture)[1]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_to_files(name):
    targets = re.findall(r"\]\(([^)\s]+)\)", read(name)) + re.findall(r'(?:src|srcset|href)="([^"]+)"', read(name))
    for target in targets:
        if not target.startswith(("http://", "https://", "#")):
            assert (ROOT / target.split("#")[0]).is_file(), target


def run_code(name):
    """What the Python of a text leaves behind, and the shape of ``y`` after each block."""
    names, shapes = {}, []
    for code in re.findall(r"```python\n(.*?)```", read(name), flags=re.DOTALL):
        exec(code, names)
        shapes.append(tuple(names["y"].shape))
    return names, shapes


def test_what_the_index_of_packages_shows_stands_alone():
    name = PROJECT["project"]["readme"]
    targets = re.findall(r"\]\(([^)\s]+)\)", read(name))
    assert targets and all(target.startswith("https://") for target in targets)
    assert f'pip install "{PROJECT["project"]["name"]}[hf,kernels,widgets]"' in read(name)
    assert {"hf", "kernels", "widgets"} <= set(PROJECT["project"]["optional-dependencies"])
    assert run_code(name)[1] == [(1, 1, 512)]


def test_readme_code_runs():
    names, shapes = run_code("README.md")
    assert shapes[:2] == [(1, 1, 512), (2, 1, 512)]
    assert len(names["tokens"]) == 8
    assert names["cache"].length == 8
    assert names["pages"].lengths == [1, 6]


def test_readme_leads_with_what_was_measured():
    wanted = measured_table(measured_gpus(), layer_steps(), measured(ServingResults))
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
    named = {"py.typed", "registry/models.yaml", "bench/measured/layer-cpu.json"}
    assert {package / name for name in named} <= covered


def test_every_folder_with_code_is_a_package():
    for path in (ROOT / "mla_edu").rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), path


def published():
    project = PROJECT["project"]
    return [*project["dependencies"], *(text for texts in project["optional-dependencies"].values() for text in texts)]


@pytest.mark.parametrize("requirement", published())
def test_installing_the_package_replaces_no_newer_torch_or_triton(requirement):
    assert {specifier.operator for specifier in Requirement(requirement).specifier} <= {">="}


# What the repository's own environment holds


def direct(group):
    for entry in PROJECT["dependency-groups"][group]:
        if isinstance(entry, dict):
            yield from direct(entry["include-group"])
        else:
            yield entry


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("requirements-book.txt", list(direct("render"))), ("requirements.txt", published() + list(direct("dev")))],
)
def test_compiled_requirements_hold_every_dependency_in_its_range(name, wanted):
    for requirement in map(Requirement, wanted):
        version = pins(name)[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is {version}: run `make requirements`"


def test_rendering_installs_a_part_of_the_whole_and_no_torch():
    book = pins("requirements-book.txt")
    assert book.items() <= pins("requirements.txt").items()
    assert not {"torch", "triton", "transformers"} & book.keys()


def test_torch_may_be_the_cpu_build_and_any_index_may_serve_it():
    assert not [name for name in pins("requirements.txt") if name.startswith(("nvidia", "cuda"))]
    for name in ("requirements-book.txt", "requirements.txt"):
        assert not re.search(r"--hash|--index|--find-links|://", read(name))
    packages = json.loads(read("tools/package-lock.json"))["packages"]
    assert all("resolved" not in package for package in packages.values())


def test_tools_that_are_named_twice_have_one_version():
    (ruff,) = [repo for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] if "ruff" in repo["repo"]]
    assert ruff["rev"] == f"v{pins('requirements.txt')['ruff']}"
    biome = json.loads(read("tools/package.json"))["devDependencies"]["@biomejs/biome"]
    assert f"/schemas/{biome}/" in read("biome.jsonc")


# The commands


def targets():
    return set(re.findall(r"^make (\S+) ", run_make("help").stdout, flags=re.MULTILINE))


@pytest.mark.parametrize("name", [".ci/run", "CONTRIBUTING.md", "README.md", *(str(path) for path in WORKFLOWS)])
def test_commands_that_are_named_are_there(name):
    text = read(name)
    named = set(re.findall(r"(?:^|`|run: |CI=true )make ([a-z][a-z-]*)", text, flags=re.MULTILINE))
    assert named <= targets()


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
    first, last = re.search(r"\(3, (\d+)\) <= v <= \(3, (\d+)\)", read("Makefile")).groups()
    versions = [f"3.{minor}" for minor in range(int(first), int(last) + 1)]
    project = PROJECT["project"]
    assert project["requires-python"] == f">={versions[0]}"
    classifiers = [text.rsplit(" ", 1)[1] for text in project["classifiers"] if ":: Python :: 3." in text]
    assert classifiers == versions
    assert f"Python {versions[0]} to {versions[-1]}" in read("README.md")
    assert set(re.findall(r'"(3\.\d+)"', read(".github/workflows/ci.yml"))) == set(versions)


def test_continuous_integration_can_be_run_here():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_only_what_they_need_and_run_no_moving_code(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 45
        for step in job["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step.get("uses", "own/step@" + 40 * "0"))


def test_tests_that_are_left_out_of_the_quick_ones_are_there(pytestconfig):
    conftest = pytestconfig.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    assert conftest.SLOW
    for name in conftest.SLOW:
        assert (ROOT / "tests" / name).is_file()


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


def test_what_tools_leave_in_a_folder_makes_no_book_stale(pytestconfig):
    conftest = pytestconfig.pluginmanager.get_plugin(str(ROOT / "tests" / "book" / "conftest.py"))
    if conftest is None:
        pytest.skip("the tests of the book are not among those that run")
    for name in ("book/.ruff_cache/CACHEDIR.TAG", "mla_edu/__pycache__/cost.pyc", "book/.ipynb_checkpoints/a.ipynb"):
        assert conftest.is_made_by_a_tool(ROOT / name)
    assert not conftest.is_made_by_a_tool(ROOT / "book" / "index.md")
