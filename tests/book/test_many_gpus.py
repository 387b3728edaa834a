"""One model on many GPUs, in a browser: it shows what Python computes, and each box what its GPU holds."""

import itertools

import pytest

from mla_edu.book.widgets import ManyGPUs
from mla_edu.book.widgets.many_gpus import DTYPES, WAYS, quantities, shown_models
from mla_edu.registry import get_gpu, get_model, list_gpus


@pytest.fixture(scope="module")
def bare(bare_page):
    """The address of a page that holds the widget alone."""
    return bare_page(ManyGPUs())


def test_page_shows_what_python_computes(open_page, bare):
    names = ("model", "gpu", "gpus", "layout_name", "tokens", "batch", "dtype")
    sizes = itertools.cycle(itertools.product((1, 3, 8, 32), (1, 7, 100_000), (1, 5, 4096)))
    cards = itertools.cycle(list_gpus())
    grid = [("deepseek-v2-lite", "h200", 32, "tensor", 7, 5, "bf16")]
    for model, layout, dtype in itertools.product(shown_models(), WAYS, DTYPES):
        gpus, tokens, batch = next(sizes)
        grid.append((model, next(cards), gpus, layout, tokens, batch, dtype))
    shown = open_page(bare).evaluate(
        """([names, grid]) => grid.map((settings) => {
          names.forEach((name, i) => shown.set(name, settings[i]));
          return shown.read();
        })""",
        [names, grid],
    )
    assert {None} in [set(quantities(get_model(m), get_gpu(g), *more).values()) for m, g, *more in grid]
    for (model, gpu, *more), found in zip(grid, shown, strict=True):
        wanted = quantities(get_model(model), get_gpu(gpu), *more)
        written = {name: "" if value is None else str(value) for name, value in wanted.items()}
        assert found == written, (model, gpu, *more)


def test_a_box_shows_what_its_gpu_holds(open_page, bare):
    page = open_page(bare)

    def held(layout, batch):
        page.locator("[name=layout_name]").select_option(layout)
        page.locator("[name=batch]").fill(str(batch))
        return [int(each) for each in page.locator("[data-gpu]").evaluate_all("all => all.map(e => e.dataset.bytes)")]

    def wanted(layout, batch):
        found = quantities(get_model("deepseek-v3"), get_gpu("h200"), 8, layout, 131_072, batch, "bf16")
        return found["weight_bytes"], found["cache_bytes"]

    for layout in ("tensor", "context"):
        assert held(layout, 5) == [sum(wanted(layout, 5))] * 8
    weights, cache = wanted("data", 1)
    assert held("data", 1) == [weights + cache] + [weights] * 7
    assert held("data", 11) == [weights + 2 * cache] * 3 + [weights + cache] * 5


def test_too_much_is_said_and_drawn(open_page, bare):
    page = open_page(bare)
    said, edge = page.locator(".mla-part-summary"), page.locator("[data-gpu='7'] rect").last
    assert "that fits. The cache is kept 8 times. Beside the weights there is room for 6 such" in said.inner_text()
    assert edge.get_attribute("stroke") == "var(--quiet)"
    page.locator("[name=batch]").fill("7")
    assert "that is more than it has" in said.inner_text()
    assert edge.get_attribute("stroke") == "var(--key)"
    page.locator("[name=layout_name]").select_option("context")
    assert "that fits. The cache is kept once. Beside the weights there is room for 48" in said.inner_text()
    page.locator("[name=model]").select_option("deepseek-v2-lite")
    page.locator("[name=gpus]").fill("17")
    assert said.inner_text() == "17 GPUs are more than the 16 heads of DeepSeek-V2-Lite: one would have none."


def test_one_gpu_has_all(open_page, bare):
    page = open_page(bare)
    page.locator("[name=model]").select_option("deepseek-v2-lite")
    page.locator("[name=gpus]").fill("1")
    assert page.locator(".mla-part-summary").inner_text().startswith("The GPU keeps 31.4 GB of weights")
    assert page.evaluate("shown.read()")["state_bytes"] == "0"
