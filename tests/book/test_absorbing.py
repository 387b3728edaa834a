"""The drawing of absorption: it counts as the cost model does, by keyboard, from an address, and at rest."""

import sys
from pathlib import Path

import pytest

from mla_edu.config import MLAConfig
from mla_edu.cost import attention_macs
from mla_edu.registry import get_model

FIGURES = Path(__file__).resolve().parents[2] / "book" / "figures"
V3 = get_model("deepseek-v3").config
CONFIGS = {
    "deepseek-v3": V3,
    "glm-5": get_model("glm-5").config,
    "mistral-small-4-119b": get_model("mistral-small-4-119b").config,
    "odd": MLAConfig(
        hidden_size=35,
        num_attention_heads=7,
        q_lora_rank=None,
        kv_lora_rank=33,
        qk_nope_head_dim=11,
        qk_rope_head_dim=6,
        v_head_dim=5,
    ),
}
LAST = 9


@pytest.fixture(scope="module")
def drawing():
    """The module that draws it, imported as where it is run."""
    sys.path.insert(0, str(FIGURES))
    import absorbing

    yield absorbing
    sys.path.remove(str(FIGURES))


@pytest.fixture(scope="module")
def address(drawing, serve, tmp_path_factory):
    """The folder of a page for each layer, with the drawing alone."""
    folder = tmp_path_factory.mktemp("absorbing")
    for name, config in CONFIGS.items():
        head = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>absorbing</title>'
        svg = f'<figure style="width: 358px">{drawing.absorbing(config)}</figure>'
        (folder / f"{name}.html").write_text(head + svg, encoding="utf-8")
    return serve(folder)


@pytest.fixture
def open_drawing(browser, address):
    """``open_drawing(name, query)`` opens the drawing of a layer, at rest unless motion is wanted."""
    pages, faults = [], []

    def start(query="", name="deepseek-v3", **options):
        page = browser.new_page(**{"reduced_motion": "reduce", **options})
        pages.append(page)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.goto(f"{address}{name}.html{query}")
        return page

    yield start
    for page in pages:
        page.close()
    assert not faults


def shown(page):
    """What the counters show, by mode, and both totals."""
    return page.evaluate(
        """() => {
          const read = (name) => Object.fromEntries([...document.querySelectorAll(`[data-${name}]`)]
            .map((e) => [e.dataset[name], [e.dataset.macs, e.textContent]]));
          return { count: read("count"), total: read("total") };
        }"""
    )


def one_head(config, num_cached, mode):
    """Multiply-adds of one head for one new token that sees so many."""
    return attention_macs(config.model_copy(update={"num_attention_heads": 1}), 1, num_cached, mode, causal=True)


def test_both_numbers_follow_from_the_widths(drawing):
    assert drawing.counts(V3) == {"expanded": 512 * 128 * 2 + 192 + 128, "absorbed": 512 + 64 + 512}
    assert drawing.counts(V3) == {"expanded": 131_392, "absorbed": 1_088}
    assert [stage["macs"] for stage in drawing.stages(V3)] == [65536, 192, 65536, 128, 0, 65536, 576, 512, 65536]


@pytest.mark.parametrize("name", CONFIGS)
def test_page_counts_as_the_cost_model(open_drawing, drawing, name):
    config = CONFIGS[name]
    for tokens in (1, 37, 32_768, 2**20):
        page = open_drawing(f"?flow.tokens={tokens}", name)
        found = shown(page)
        for mode in ("expanded", "absorbed"):
            more = one_head(config, tokens + 1, mode) - one_head(config, tokens, mode)
            assert found["count"][mode] == [str(more), f"{more:,}"]
            assert found["total"][mode] == [str(one_head(config, tokens, mode)), f"{one_head(config, tokens, mode):,}"]


@pytest.mark.parametrize("name", CONFIGS)
def test_each_step_adds_what_python_says(open_drawing, drawing, name):
    page, tokens = open_drawing("?flow=0&flow.tokens=1000", name), 1000
    each, all_ = {"expanded": 0, "absorbed": 0}, {"expanded": 0, "absorbed": 0}
    for step, stage in enumerate(drawing.stages(CONFIGS[name]), start=1):
        page.locator("[name=step]").click()
        each[stage["mode"]] += stage["macs"] * stage["each"]
        all_[stage["mode"]] += stage["macs"] * (tokens if stage["each"] else 1)
        found = shown(page)
        assert {mode: int(macs) for mode, (macs, _) in found["count"].items()} == each, step
        assert {mode: int(macs) for mode, (macs, _) in found["total"].items()} == all_, step
        assert f"Step {step} of {LAST}. {stage['words']}" in page.locator("[role=status]").inner_text()
    page.locator("[name=step]").click()
    assert "Nothing is counted yet" in page.locator("[role=status]").inner_text()


def test_the_bracket_moves_the_matrices_and_back(open_drawing):
    page = open_drawing("?flow=4")
    places = "() => [...document.querySelectorAll('[data-matrix]')].map((e) => e.getBoundingClientRect().x)"
    before = page.evaluate(places)
    assert shown(page)["count"] == {"expanded": ["131392", "131,392"], "absorbed": ["0", "–"]}
    page.get_by_role("button", name="Move the bracket").click()
    assert all(after < x - 100 for x, after in zip(before, page.evaluate(places), strict=True))
    assert shown(page)["count"]["absorbed"] == ["1088", "1,088"]
    page.get_by_role("button", name="Move it back").click()
    assert page.evaluate(places) == before


def test_latents_walk_and_the_counter_runs_until_it_stands(open_drawing):
    page = open_drawing("?flow=0", reduced_motion="no-preference")
    page.locator("[name=step]").click()
    latents = page.locator("[data-latent]")
    assert latents.count() == 12  # six and their walking copies
    running = int(page.locator("[data-count=expanded]").text_content().replace(",", ""))
    assert 0 <= running < 65_536
    page.wait_for_function("document.querySelector('[data-count=expanded]').textContent === '65,536'")
    page.wait_for_function("document.querySelectorAll('[data-latent]').length === 6")


def test_play_runs_through_all_steps_and_a_press_ends_it(open_drawing):
    page = open_drawing("?flow=7", reduced_motion="no-preference")
    play = page.locator("[name=play]")
    play.click()
    assert play.inner_text() == "Pause"
    page.wait_for_function("document.querySelector('svg').dataset.step === '9'", timeout=10_000)
    assert play.inner_text() == "Play"
    play.click()
    assert page.evaluate("document.querySelector('svg').dataset.step") == "0"
    page.locator("[name=reset]").click()
    assert (play.inner_text(), page.evaluate("document.querySelector('svg').dataset.step")) == ("Play", "9")


def test_nothing_moves_for_who_asked_for_less_motion(open_drawing):
    page = open_drawing("?flow=0")
    assert not page.locator("[name=play]").is_visible()
    page.locator("[name=step]").click()
    assert page.locator("[data-count=expanded]").text_content() == "65,536"
    assert page.locator("[data-latent]").count() == 6
    assert page.evaluate("document.getAnimations().length") == 0


def test_without_a_script_the_last_step_stands_there(open_drawing):
    page = open_drawing(java_script_enabled=False)
    assert page.locator("[data-count=expanded]").text_content() == "131,392"
    assert page.locator("[data-count=absorbed]").text_content() == "1,088"
    assert page.locator("button, input").count() == 0


def test_keyboard_alone_is_enough_and_the_address_keeps_the_state(open_drawing):
    page = open_drawing("?other=x#part")
    names = []
    for _ in range(4):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.name"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert names == ["bracket", "step", "reset", "flow-tokens"]
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.ariaValueText") == "1"
    page.locator("[name=bracket]").press("Enter")
    page.wait_for_url("**/deepseek-v3.html?other=x&flow=4&flow.tokens=1#part")
    page.reload()
    assert "1 cached token" in page.locator("label").inner_text()
    assert page.evaluate("document.querySelector('svg').dataset.step") == "4"
    page.locator("[name=reset]").press("Enter")
    page.wait_for_url("**/deepseek-v3.html?other=x#part")


@pytest.mark.parametrize("query", ["?flow=10&flow.tokens=0", "?flow=-1&flow.tokens=1e5", "?flow=&flow.tokens=9999999"])
def test_tampered_address_changes_nothing(open_drawing, query):
    page = open_drawing(query)
    assert page.evaluate("document.querySelector('svg').dataset.step") == str(LAST)
    assert "32,768 cached tokens" in page.locator("label").inner_text()
