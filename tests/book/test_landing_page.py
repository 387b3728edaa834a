"""What the landing page says in figures is what the package computes; what it says of chapters they say."""

import json
import re
from pathlib import Path

import pytest
import yaml

from mla_edu.bench.results import measured
from mla_edu.bench.serving_results import ServingResults
from mla_edu.cost import kv_cache_bytes
from mla_edu.registry import get_model

BOOK = Path(__file__).resolve().parents[2] / "book"
SOURCE = (BOOK / "index.md").read_text(encoding="utf-8")
PROSE = " ".join(SOURCE.split())
CONTENTS = yaml.safe_load((BOOK.parent / "_toc.yml").read_text(encoding="utf-8"))
TILES = re.findall(r"<div>\s+\*\*([^*]+)\*\* (.*?)\s+</div>", SOURCE.partition("mla-proof")[2], re.DOTALL)


def chapter(name):
    return json.loads((BOOK / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def first_words(name):
    """The title of a chapter and the question that opens it."""
    text = " ".join("".join(chapter(name)[0]["source"]).split())
    return re.match(r"# (.*?) \*\*(.*?)\*\*", text).groups()


def outputs(name):
    return [
        "".join(output["text"])
        for cell in chapter(name)
        for output in cell.get("outputs", ())
        if output["output_type"] == "stream"
    ]


def test_sizes_in_the_prose_are_computed():
    tokens = 128 * 1024
    v3 = get_model("deepseek-v3")
    config, kept = v3.config, kv_cache_bytes("deepseek-v3", 1)
    key_and_value = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    expanded = 2 * v3.num_layers * config.num_attention_heads * key_and_value
    assert re.findall(r"(?<!\w)[\d.,]+ [kMGT]B\b", PROSE.partition("Three ways")[0].replace("H100 80GB", "")) == [
        f"{kept / 1e3:.1f} kB",
        f"{expanded / 1e6:.1f} MB",
        f"{kv_cache_bytes('llama-3.1-405b', tokens) / 1e9:.1f} GB",
        f"{kv_cache_bytes('deepseek-v3', tokens) / 1e9:.1f} GB",
    ]
    assert f"{expanded / kept:.0f} times as much" in PROSE
    assert f"{tokens:,} tokens" in PROSE


def test_both_models_have_as_many_heads_as_the_prose_says():
    v3, llama = get_model("deepseek-v3").config, get_model("llama-3.1-405b").config
    assert "with just as many query heads" in PROSE and llama.num_attention_heads == v3.num_attention_heads


def test_tile_of_the_families_counts_them():
    families = pytest.importorskip("mla_edu.models.oracle").MLA_FAMILIES
    number, words = TILES[0]
    assert number == f"{len(families)}" and "(the-full-layer.ipynb)" in words
    assert any(f"{number} families" in text for text in outputs("the-full-layer"))


def test_tile_of_the_claims_counts_them():
    (counted,) = [text for text in outputs("claims-on-trial") if re.search(r"^ *\d+ wrong$", text, re.MULTILINE)]
    verdicts = {verdict: int(number) for number, verdict in re.findall(r"(\d+) (.+)", counted)}
    number, words = TILES[1]
    assert number == f"{sum(verdicts.values())}"
    assert f"of which {verdicts['wrong']} are wrong: [Claims on trial](claims-on-trial.ipynb)" in " ".join(
        words.split()
    )


def test_tile_of_the_measurement_names_its_hardware():
    (served,) = [each for each in measured(ServingResults) if each.machine.name.startswith("NVIDIA H100")]
    most = served.texts[-1]
    number, words = TILES[2]
    assert number == f"{most.step_speed_up('transformers'):.1f}×"
    assert f"for {most.batch} texts, on an {served.machine.name}: [Serving](serving.ipynb)" in " ".join(words.split())


def test_tile_of_the_kernel_counts_its_versions():
    sections = re.findall(r"^## (\d+)\. ", "\n".join("".join(c["source"]) for c in chapter("the-decode-kernel")), re.M)
    number, words = TILES[3]
    assert sections == [str(n + 1) for n in range(int(number))]
    assert "(the-decode-kernel.ipynb)" in words
    assert len(TILES) == 7  # four, and the three ways to use the book


def test_downloads_and_times_are_those_of_the_readme():
    table = (BOOK.parent / "README.md").read_text(encoding="utf-8").partition("## Get it")[2]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `make")]
    book, test = (next(row for row in rows if f"`make {name}`" in row[0]) for name in ("book", "test"))
    assert all(re.fullmatch(r"\d+\.\d+ GB", row[1]) for row in rows)
    said = f"`make book` downloads {book[1]}, once, and then takes {book[2]}; `make test` downloads {test[1]}"
    assert said in PROSE and "[README](https://github.com/mla-book/mla-book#get-it)" in PROSE


def test_a_card_for_each_chapter_asks_its_question():
    cards = re.findall(r"<div>\s+\[(.*?)\]\(([\w-]+)\.ipynb\) \*\*(.*?)\*\* \S", SOURCE)
    parts = [part for part in CONTENTS["parts"] if part["numbered"]]
    names = [entry["file"].removeprefix("book/") for part in parts for entry in part["chapters"]]
    assert [name for _, name, _ in cards] == names
    assert [(title, question) for title, _, question in cards] == [first_words(name) for name in names]
    assert re.findall("^### (.*)$", SOURCE, re.M) == [part["caption"] for part in parts]


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_first_screen_shows_what_the_book_is_and_where_to_start(browser, serve, html, width, height):
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(serve(html) + "book/index.html")
    bottoms = page.locator("article h1, .mla-lede, .mla-start a").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect().bottom)"
    )
    figure = page.locator("[data-figure=absorbing]").bounding_box()
    targets = page.locator(".mla-start a").evaluate_all("all => all.map(e => e.getAttribute('href'))")
    sideways = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    page.close()
    assert len(bottoms) == 5 and max(bottoms) < height
    assert figure["y"] + 200 < height
    assert targets[:2] == ["one-token-at-a-time.html", "absorption.html"]
    assert targets[2].startswith("https://colab.research.google.com/") and sideways <= 0
