"""The API reference covers the package, in the words of its source."""

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "book" / "api"
PAGES = "\n".join(page.read_text(encoding="utf-8") for page in API.glob("*.md"))
DOCUMENTED = set(re.findall(r"autoapimodule:: (\S+)", PAGES))


def public_modules():
    """Modules that define a public name; a package that only hands on names needs no entry."""
    for path in sorted((ROOT / "mla_edu").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        if any(not item.startswith("_") for item in defined) and not any(part.startswith("_") for part in parts[:-1]):
            yield name


@pytest.mark.parametrize("module", list(public_modules()))
def test_module_has_an_entry(module):
    assert module in DOCUMENTED


def page_text(html, name):
    text = re.sub(r"<[^>]+>", "", (html / "book" / "api" / f"{name}.html").read_text(encoding="utf-8"))
    return re.sub(r"\s+", " ", text.replace("&#39;", "'").replace("&quot;", '"'))


def test_comment_behind_a_field_is_its_description(html):
    assert "width of one head; not always hidden_size / num_attention_heads." in page_text(html, "config")
    assert "one full-attention layer; None where it is not known" in page_text(html, "hf")  # within brackets


def test_option_keeps_its_two_hyphens(html):
    assert "With --results, parts that are measured" in page_text(html, "cli")


def links(html, name):
    """The objects that the entries of a page link to, by the entry and the name that is shown."""
    text = (html / "book" / "api" / f"{name}.html").read_text(encoding="utf-8")
    for entry in re.findall(r'<dt class="sig[^>]* id="([\w.]+)"(.*?)</dt>', text, re.DOTALL):
        for target, shown in re.findall(r'<a class="reference internal"[^>]*title="([\w.]+)">(.*?)</a>', entry[1]):
            yield entry[0], re.sub(r"<[^>]+>", "", shown), target


@pytest.mark.parametrize("name", ["bench", "cache", "cli", "cost", "hf", "kernels", "layers", "models", "serving"])
def test_types_link_to_what_they_are_in_their_module(html, name):
    found = list(links(html, name))
    assert found or name == "cli"
    for entry, shown, target in found:
        module = next(importlib.import_module(each) for each in parents(entry) if each in DOCUMENTED)
        meant = functools.reduce(getattr, shown.split("."), module)
        assert f"{meant.__module__}.{meant.__qualname__}" == target, entry


def parents(name):
    """A name without its last part, without its last two parts, and so on."""
    while name := name.rpartition(".")[0]:
        yield name


def test_a_class_names_what_it_extends(html):
    assert "Bases: LockstepEngine" in page_text(html, "distributed")


def test_shapes_stand_in_signatures(html):
    assert "Float[Tensor, 'batch queries heads qk_dim']" in page_text(html, "ops")


def test_the_space_before_a_shape_of_one_dimension_is_left_out(html):
    pages = "".join(page_text(html, page.stem) for page in (html / "book" / "api").glob("*.html"))
    assert "Float[Tensor, 'vocab']" in pages and "Tensor, ' " not in pages


@pytest.mark.parametrize(
    ("page", "default"),
    [
        ("doctor", "tolerance: float = 0.02"),  # of the module itself,
        ("cli", "tolerance: float = 0.02"),  # of another one, under its name,
        ("widgets", "weights: str = 'published'"),  # of a module from which the name is imported,
        ("bench", "muon_rate: float = 0.02"),  # and one of two that are assigned at once
        ("bench", "path: Path = MEASURED / 'latent-width.json'"),
        ("models", "num_mtp_layers: NonNegativeInt = 0"),  # said in pydantic's Field
    ],
)
def test_a_default_stands_there_with_its_value(html, page, default):
    assert default in page_text(html, page)


def test_a_field_is_described_once_and_at_its_own_entry(html):
    for page in (html / "book" / "api").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        attributes = set(re.findall(r'<dl class="py attribute">\s*<dt class="sig[^>]* id="([\w.]+)"', text))
        for found in re.finditer(r'<dt class="sig[^>]* id="([\w.]+)".*?(?=<dt class="sig|\Z)', text, re.DOTALL):
            entry = found[0]
            if "sig-paren" in entry:  # a class that takes arguments: these are no fields
                entry = re.sub(r"Parameters.*?</ul>", "", entry, flags=re.DOTALL)
            told = re.findall(r"<strong>(\w+)</strong>", entry)
            assert not {f"{found[1]}.{name}" for name in told} & attributes
    assert "times that a request lost its pages." in page_text(html, "serving").partition("preempted: int = 0")[2][:80]


def test_private_and_imported_names_are_left_out(html):
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (html / "book" / "api").glob("*.html")}
    entries = [entry for page in pages.values() for entry in re.findall(r'<dt class="sig[^>]* id="([\w.]+)"', page)]
    assert "mla_edu.config.GQAConfig" in entries
    assert not [entry for entry in entries if any(part.startswith("_") for part in entry.split("."))]
    assert "mla_edu.layers.gqa.GQAConfig" not in entries
    assert len(entries) == len(set(entries))


def test_a_module_named_like_a_function_of_its_package_shows_what_it_holds(html):
    for page, name in [("models", "mla_edu.models.generate.generate"), ("cli", "mla_edu.cli.cache.cache")]:
        text = (html / "book" / "api" / f"{page}.html").read_text(encoding="utf-8")
        assert f'id="{name}"' in text and "Annotated" not in text


def test_a_comment_for_a_tool_describes_nothing(html):
    assert "fmt: skip" not in (html / "book" / "api" / "bench.html").read_text(encoding="utf-8")


def test_what_a_property_raises_is_a_field(html):
    text = (html / "book" / "api" / "cache.html").read_text(encoding="utf-8")
    entry = text.partition('id="mla_edu.cache.layer.LayerCache.length"')[2].partition('<dl class="py')[0]
    assert re.search(r'<dt class="field-\w+">Raises', entry)
