"""The wheel, where nothing else is: every command runs, and a missing extra is one line that names it.

The environment holds the distributions that the wheel requires and no others, linked from the one that runs the tests.
``WHEEL=dist/mla_edu-...whl`` names a wheel to check; else one is built.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.main import get_command

from mla_edu.cli import app

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 11,
}
IMPORT_ALL = """
import importlib, pkgutil, mla_edu

for module in pkgutil.walk_packages(mla_edu.__path__, "mla_edu."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        print(f"{module.name}: {error}")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if "WHEEL" in os.environ:
        return Path(os.environ["WHEEL"]).resolve()
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "PACKAGE.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "mla_edu", folder / "mla_edu", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", folder, "-w", folder], check=True
    )
    return next(folder.glob("*.whl"))


def test_the_source_archive_holds_what_builds_the_wheel_and_no_part_of_the_tests(tmp_path):
    for name in ("pyproject.toml", "PACKAGE.md", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "mla_edu", tmp_path / "mla_edu", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_any.py").touch()  # which setuptools takes along, unless it is told not to
    code = "import setuptools.build_meta as backend; print(backend.build_sdist('.'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    with tarfile.open(tmp_path / done.stdout.split()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"PKG-INFO", "PACKAGE.md", "LICENSE", "pyproject.toml", "mla_edu/registry/models.yaml"} <= names
    assert not [name for name in names if name.startswith("tests")]


def requirements(name, extras):
    """The distributions that one requires, and what these require."""
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        environments = [{"extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            yield requirement.name
            yield from requirements(requirement.name, requirement.extras)


def link(name, site):
    """Put an installed distribution into another environment's site-packages."""
    for file in metadata.files(name):
        top = site / file.parts[0]
        if file.parts[0] not in ("..", "__pycache__") and not top.exists():
            top.symlink_to(file.locate().parents[len(file.parts) - 2] if len(file.parts) > 1 else file.locate())


@pytest.fixture(scope="module")
def install(wheel, tmp_path_factory):
    """``install(*extras)`` is the bin folder of an environment with the wheel and what it then requires."""

    def make(*extras):
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, symlinks=True)
        python = folder / "bin" / "python"
        subprocess.run([*PIP, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        for name in set(requirements("mla-edu", extras)):
            link(name, site)
        return folder / "bin"

    return make


@pytest.fixture(scope="module")
def bare(install):
    return install()


@pytest.fixture(scope="module")
def whole(install):
    return install("hf", "kernels", "widgets")


@pytest.fixture
def run(tmp_path):
    """Run a command in a folder that holds one checkpoint; nothing of the repository can be found from there."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").touch()

    def run(folder, command, *arguments):
        environment = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [folder / command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return run


def test_nothing_but_the_wheel_and_what_it_requires_is_there(bare, run):
    found = run(bare, "python", "-c", "import mla_edu, numpy, torch; print(mla_edu.__file__); import pytest")
    assert str(bare.parent) in found.stdout
    assert "No module named 'pytest'" in found.stderr


def commands(command, *names):
    yield list(names)
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *names, name)


@pytest.mark.parametrize("command", list(commands(get_command(app))), ids=" ".join)
def test_every_command_explains_itself(bare, run, command):
    found = run(bare, "mla-edu", *command, "--help")
    assert (found.returncode, found.stderr) == (0, "")
    assert "Usage" in found.stdout


def test_facts_need_no_extra(bare, run):
    assert "deepseek-v3" in run(bare, "mla-edu", "models").stdout
    found = run(bare, "mla-edu", "cache", "deepseek-v3", "config.json", "--gpu", "h200")
    assert (found.returncode, found.stderr) == (0, "")
    assert "70.3 kB" in found.stdout


MISSING = {
    "kernels": [["mla-edu", "kernels", "sm_90"], ["mla-edu", "bench", "kernel", "--toy"]],
    "widgets": [["python", "-c", "import mla_edu.widgets"]],
    "hf": [
        ["python", "-c", "import mla_edu.models as m; m.load_attention('.')"],
        ["mla-edu", "bench", "layer", "--toy"],
    ],
}


@pytest.mark.parametrize(("extra", "call"), [(extra, call) for extra, calls in MISSING.items() for call in calls])
def test_a_missing_extra_is_one_line_that_names_it(bare, run, extra, call):
    found = run(bare, *call)
    assert found.returncode != 0
    *before, line = found.stderr.strip().splitlines()
    assert line.endswith(f"pip install 'mla-edu[{extra}]'")
    assert not before or call[0] == "python"


def test_a_module_that_cannot_be_imported_says_which_extra_it_needs(bare, run):
    found = run(bare, "python", "-c", IMPORT_ALL)
    assert found.returncode == 0, found.stderr
    for line in found.stdout.splitlines():  # Triton's programs stand behind functions that name the extra
        assert re.search(r"pip install 'mla-edu\[[a-z]+\]'$|^mla_edu\.kernels\..* 'triton'$", line)


def test_with_its_extras_every_module_can_be_imported(whole, run):
    found = run(whole, "python", "-c", IMPORT_ALL)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["kernels", "sm_90", "--heads", "16"],
        ["bench", "kernel", "--toy", "s_q=1", "dtype=bf16"],
        ["bench", "layer", "--toy"],
    ],
    ids=" ".join,
)
def test_with_its_extra_a_command_does_its_work(whole, run, arguments):
    found = run(whole, "mla-edu", *arguments)
    assert found.returncode == 0, found.stderr
