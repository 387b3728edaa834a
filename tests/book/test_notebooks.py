"""The committed notebooks keep the book's rules. That their outputs are true is for conftest.py, which runs them."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
import yaml

import mla_edu
from execute_notebooks import STATUS, STATUS_TABLE, chapters, code_hash, status_table

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(p for p in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
UNCHECKED = {"nbval-ignore-output", "nbval-skip"}
INSTALL_CELL = f"""\
import sys

if "google.colab" in sys.modules:  # v{mla_edu.__version__} not released yet? Write @main
    %pip install -q "mla-edu[kernels,widgets,hf] @ git+{REPOSITORY["url"]}@v{mla_edu.__version__}"

from mla_edu.book import environment

print(environment())"""


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture
def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def printed_lines(cell):
    return sum(len(output.text.splitlines()) for output in cell.outputs if output.output_type == "stream")


def test_table_of_contents_lists_every_notebook():
    assert NOTEBOOKS
    assert sorted(chapters()) == NOTEBOOKS


def test_every_cell_was_executed_in_order(code_cells):
    assert [cell.execution_count for cell in code_cells] == list(range(1, len(code_cells) + 1))


def test_notebook_is_small_enough_to_review(path):
    assert path.stat().st_size <= 1.5e6


def test_no_unexpected_error_among_the_outputs(code_cells):
    for cell in code_cells:
        if "raises-exception" not in tags(cell):
            assert not [output.ename for output in cell.outputs if output.output_type == "error"], cell.source


def test_at_most_one_cell_in_five_goes_unchecked(code_cells):
    unchecked = [cell.source for cell in code_cells if tags(cell) & UNCHECKED]
    assert len(unchecked) <= len(code_cells) / 5, unchecked


def test_volatile_cells_are_tagged_not_commented(code_cells):
    for cell in code_cells:
        assert not re.search(r"#\s*(NBVAL_|PYTEST_)", cell.source), cell.source


def test_first_cell_installs_this_version_on_colab_only(code_cells):
    assert code_cells[0].source == INSTALL_CELL
    assert tags(code_cells[0]) == {"nbval-ignore-output", "hide-input"}


def test_cells_that_only_set_up_are_folded(code_cells):
    for cell in code_cells[1:]:
        only_imports = all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(cell.source).body)
        assert not only_imports or "hide-input" in tags(cell), cell.source


def test_checks_print_what_they_saw(code_cells):
    """A number says more than that something is true."""
    for cell in code_cells:
        if not tags(cell) & UNCHECKED:
            text = "".join(output.text for output in cell.outputs if output.output_type == "stream")
            assert not re.search(r"\bTrue\b", text), cell.source


def test_chapters_go_by_their_titles(notebook):
    """The order lives in _toc.yml alone."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"\bchapters? \d|\b(last|next|previous) chapter", cell.source, re.IGNORECASE), (
                cell.source
            )
            for target in re.findall(r"\]\(([\w-]+)\)", cell.source):
                assert not (ROOT / "book" / f"{target}.ipynb").exists(), f"link to {target}.ipynb"


def test_only_the_first_cell_installs_anything(code_cells):
    for cell in code_cells[1:]:
        assert not re.search(r"^\s*[%!]", cell.source, flags=re.MULTILINE), cell.source


def test_links_to_colab_and_to_the_repository_agree_with_the_configuration(path, notebook):
    slug = REPOSITORY["url"].removeprefix("https://github.com/")
    own = f"/github/{slug}/blob/{REPOSITORY['branch']}/{path.relative_to(ROOT).as_posix()}"
    for cell in notebook.cells:
        for link in re.findall(r"colab\.research\.google\.com([^\s)\"'>]*)", cell.source):
            assert link == own
        for link in re.findall(r"https://github\.com/[\w.-]+/" + slug.split("/")[1] + r"\b", cell.source):
            assert link == REPOSITORY["url"]


def test_code_lines_fit_the_page(code_cells):
    for cell in code_cells:
        for line in cell.source.splitlines():
            assert len(line) < 100 or cell is code_cells[0], line


def test_cells_print_little(code_cells):
    for cell in code_cells:
        assert printed_lines(cell) <= 20, cell.source


def test_every_figure_has_alternative_text(code_cells):
    for cell in code_cells:
        for output in cell.outputs:
            data = output.get("data", {})
            assert not {"image/png", "image/jpeg"} & set(data), f"figures are SVG: {cell.source}"
            markup = "".join(data.get("image/svg+xml", "")) + "".join(data.get("text/html", ""))
            for element in re.findall(r"<svg\b[^>]*>", markup):
                assert re.search(r'aria-label="[^"]{10,}"', element) or 'aria-hidden="true"' in element, cell.source
            for element in re.findall(r"<img\b[^>]*>", markup):
                assert re.search(r'alt="[^"]{10,}"', element), cell.source


def test_outputs_hold_no_addresses_of_objects_or_paths_of_a_machine(code_cells):
    for cell in code_cells:
        if not tags(cell) & UNCHECKED:
            text = json.dumps(cell.outputs)
            assert not re.search(r"\bat 0x[0-9a-f]{6,}|/home/\w+|/root/|/Users/\w+|/tmp/", text), cell.source


def test_metadata_is_in_the_normal_form(notebook):
    assert set(notebook.metadata) <= {"kernelspec", "language_info", "widgets"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert dict(notebook.metadata.language_info) == {"name": "python"}
    for cell in notebook.cells:
        assert "execution" not in cell.metadata


def test_status_page_speaks_of_this_code(path, notebook):
    assert json.loads(STATUS.read_text())[path.stem]["code_sha256"] == code_hash(notebook), "run `make notebooks`"


def test_status_table_is_made_from_the_status():
    status = json.loads(STATUS.read_text())
    assert list(status) == [chapter.stem for chapter in chapters()]
    assert STATUS_TABLE.read_text() == status_table(status)


def test_letters_of_figures_have_nine_pixels_on_a_phone(code_cells):
    """A figure is shrunk to the column of a screen of 390 pixels, 358."""
    for cell in code_cells:
        for output in cell.outputs:
            svg = output.get("data", {}).get("image/svg+xml", "")
            sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:\d+ )?([\d.]+)px", svg)]
            scale = min(4 / 3, 358 / float(re.search(r'viewBox="0 0 ([\d.]+) ', svg)[1])) if svg else 1
            assert all(size * scale >= 9 for size in sizes), f"{min(sizes) * scale:.1f} pixels: {cell.source[:60]}"
            assert "1e+" not in svg, cell.source[:60]
