"""The crossover in a browser: it shows what Python computes, and marks where the curve crosses one."""

import itertools

import pytest

from mla_edu.book.widgets import AbsorptionCrossover
from mla_edu.book.widgets.absorption_crossover import quantities
from mla_edu.registry import get_model


@pytest.fixture(scope="module")
def bare(bare_page):
    """The address of a page that holds the widget alone."""
    return bare_page(AbsorptionCrossover())


def number(page, quantity):
    return float(page.locator(f"[data-quantity={quantity}]").get_attribute("data-value"))


def test_page_shows_what_python_computes(open_page, bare):
    models = ["deepseek-v3", "glm-4.7-flash", "mistral-small-4-119b", "glm-5.3-flash", "kimi-k3"]
    shapes = [(512, 1, 0), (128, 170, 1), (8192, 2**20, 2**20), (1, 170, 33_000), (200, 1, 33_000)]
    grid = list(itertools.product(models, shapes))
    shown = open_page(bare).evaluate(
        """(grid) => grid.map(([model, [kv_lora_rank, new_tokens, cached_tokens]]) => {
          const settings = { model, kv_lora_rank, new_tokens, cached_tokens };
          for (const [name, value] of Object.entries(settings)) shown.set(name, value);
          return shown.read();
        })""",
        grid,
    )
    for (model, (rank, new, cached)), found in zip(grid, shown, strict=True):
        wanted = quantities(get_model(model).config.model_copy(update={"kv_lora_rank": rank}), new, cached)
        assert float(found.pop("ratio")) == pytest.approx(wanted.pop("ratio"), rel=1e-14)
        assert found == {name: "" if value is None else str(value) for name, value in wanted.items()}


def test_marks_stand_on_the_curve_where_it_crosses_one(open_page, bare):
    page = open_page(bare)

    def place(mark, name):
        return float(page.locator(f"[data-mark={mark}]").get_attribute(name))

    page.locator("[name=new_tokens]").fill("169")
    assert number(page, "crossover") == 169
    assert place("present", "cx") == pytest.approx(place("crossover", "x1"), abs=0.01)
    assert number(page, "ratio") == pytest.approx(1, abs=0.01)
    right = place("present", "cx")
    page.locator("[name=new_tokens]").fill("1")
    assert place("present", "cx") < right
    page.locator("[name=kv_lora_rank]").fill("100")
    assert page.locator("[data-mark=crossover]").count() == 0
    assert "absorbed never costs more" in page.locator(".mla-part-summary").inner_text()


def test_counts_are_said_in_words_and_stand_beside_them(open_page, bare):
    shown = open_page(bare).locator("[data-quantity=expanded_macs]")
    assert shown.inner_text() == "551 billion"
    assert shown.get_attribute("title") == "551,114,809,344"


def test_choosing_a_model_sets_its_latent(open_page, bare):
    page = open_page(bare)
    page.locator("[name=kv_lora_rank]").fill("3")
    page.locator("[name=model]").select_option("mistral-small-4-119b")
    assert page.locator("[name=kv_lora_rank]").input_value() == "256"
