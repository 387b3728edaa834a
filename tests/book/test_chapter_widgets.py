"""The widgets of chapters 5 and 6: they compute as Python does, by keyboard, within their limits, at any width."""

import itertools
import re
from pathlib import Path

import pytest

from mla_edu.book.widgets import AbsorptionCrossover, RopeDial
from mla_edu.book.widgets.absorption_crossover import quantities as crossover_quantities
from mla_edu.book.widgets.rope_dial import quantities as dial_quantities
from mla_edu.registry import get_model

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTERS = {"absorption-crossover": "05-absorption", "rope-dial": "06-decoupled-rope"}
CLASSES = {"absorption-crossover": AbsorptionCrossover, "rope-dial": RopeDial}
CONTROLS = {
    "absorption-crossover": ["heads", "kv_lora_rank", "new_tokens", "cached_tokens"],
    "rope-dial": ["key_position", "distance"],
}


@pytest.fixture(scope="module")
def bare(bare_page):
    """Of each widget, the address of a page that holds it alone."""
    return {widget: bare_page(chapter) for widget, chapter in CHAPTERS.items()}


def number(page, quantity):
    return float(page.locator(f"[data-quantity={quantity}]").get_attribute("data-value"))


# The same numbers


def test_crossover_counts_what_python_counts(open_page, bare):
    models = ["deepseek-v3", "glm-4.7-flash", "mistral-small-4-119b", "glm-5.3-flash", "kimi-k3"]
    grid = list(itertools.product((1, 96, 1024), (1, 128, 200, 512, 8192), (1, 170, 2**20), (0, 1, 33_000, 2**20)))
    shown = open_page(bare["absorption-crossover"]).evaluate(
        """([models, grid]) => models.flatMap((model) => {
          shown.set("model", model);
          return grid.map(([heads, kv_lora_rank, new_tokens, cached_tokens]) => {
            for (const [name, value] of Object.entries({ heads, kv_lora_rank, new_tokens, cached_tokens }))
              if (shown.root().querySelector(`[name="${name}"]`).value !== String(value)) shown.set(name, value);
            return shown.read();
          });
        })""",
        [models, grid],
    )
    assert len(shown) == len(models) * len(grid)
    cases = itertools.product(models, grid)
    for (model, (heads, rank, new, cached)), found in zip(cases, shown, strict=True):
        changed = {"num_attention_heads": heads, "kv_lora_rank": rank}
        wanted = crossover_quantities(get_model(model).config.model_copy(update=changed), new, cached)
        assert float(found.pop("ratio")) == pytest.approx(wanted.pop("ratio"), rel=1e-14)
        assert found == {name: "" if value is None else str(value) for name, value in wanted.items()}


def test_dial_scores_as_python_scores(open_page, bare):
    grid = list(itertools.product((0, 1, 17, 40, 63), range(64)))
    shown = open_page(bare["rope-dial"]).evaluate(
        """(grid) => grid.map(([key_position, distance]) => {
          shown.set("key_position", key_position);
          shown.set("distance", distance);
          return shown.read();
        })""",
        grid,
    )
    for (key_position, distance), found in zip(grid, shown, strict=True):
        wanted = dial_quantities(key_position, distance)
        assert {name: float(value) for name, value in found.items()} == pytest.approx(wanted, abs=1e-9, rel=0)


@pytest.mark.parametrize("widget", CHAPTERS)
def test_page_comes_from_the_committed_notebook(widget, saved_widget):
    _, saved, view = saved_widget(CHAPTERS[widget])
    fresh = CLASSES[widget]()
    data = "registry" if widget == "absorption-crossover" else "toy"
    for name in ("_esm", "_css", data):
        assert saved.state[view].state[name] == getattr(fresh, name), f"{name} is stale: run `make notebooks`"


# Drawings


def test_marks_stand_on_the_curve_where_it_crosses_one(open_page, bare):
    page = open_page(bare["absorption-crossover"])

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
    assert "absorbed never costs more" in page.locator("[aria-live=polite]").inner_text()


def test_hands_turn_with_their_own_positions(open_page, bare):
    page = open_page(bare["rope-dial"])

    def hands(part):
        hands = page.locator(f"[data-hand={part}]")
        return hands.evaluate_all(
            "all => all.map(e => Math.atan2(40 - e.getAttribute('y2'), e.getAttribute('x2') - 40))"
        )

    def turned(part, before):
        return [(after - first) % 6.283185307 for first, after in zip(before, hands(part), strict=True)]

    query, key = hands("query"), hands("key")
    page.locator("[name=distance]").fill("6")  # one further than at first
    frequencies = [1, 100**-0.25, 0.1, 100**-0.75, 1, 0.1]
    assert turned("query", query) == pytest.approx(frequencies, abs=1e-6)
    assert hands("key") == key
    query, scores = hands("query"), page.evaluate("shown.read()")
    page.locator("[name=key_position]").fill("1")
    assert turned("query", query) == pytest.approx(frequencies, abs=1e-6)
    assert turned("key", key) == pytest.approx(frequencies, abs=1e-6)
    for name, value in page.evaluate("shown.read()").items():
        assert float(value) == pytest.approx(float(scores[name]), abs=1e-9)


# Readers


@pytest.mark.parametrize("widget", CHAPTERS)
def test_keyboard_alone_is_enough(open_page, bare, widget):
    page = open_page(bare[widget])
    first = "model" if widget == "absorption-crossover" else "key_position"
    page.locator(f"[name={first}]").focus()
    reached, before = [first], page.evaluate("shown.read()")
    while reached[-1] != f"{CONTROLS[widget][-1]}-slider" and len(reached) < 20:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
    fields = [name for control in CONTROLS[widget] for name in (control, f"{control}-slider")]
    assert [name for name in reached if name != "model"] == fields
    page.keyboard.press("ArrowRight")
    assert page.evaluate("shown.read()") != before
    value = page.locator(f"[name={CONTROLS[widget][-1]}]").input_value()
    assert page.evaluate("document.activeElement.ariaValueText") == f"{int(value):,}"
    page.keyboard.press("Home")
    assert page.locator(f"[name={CONTROLS[widget][-1]}]").input_value() == "0"


@pytest.mark.parametrize("widget", CHAPTERS)
def test_every_control_has_a_name(open_page, bare, widget):
    page = open_page(bare[widget])
    unnamed = page.locator("[data-widget] :is(select, input)").evaluate_all(
        "all => all.filter(e => !e.ariaLabel && ![...e.labels].some(l => l.textContent.trim())).map(e => e.name)"
    )
    assert not unnamed
    assert page.locator("svg[role=img]").get_attribute("aria-label")
    assert page.locator("[aria-live=polite]").inner_text()


@pytest.mark.parametrize(
    ("widget", "name", "highest", "label"),
    [
        ("absorption-crossover", "heads", 1024, "heads"),
        ("absorption-crossover", "cached_tokens", 2**20, "cached tokens"),
        ("rope-dial", "distance", 63, "distance t − s"),
    ],
)
def test_number_out_of_range_is_put_right_and_said(open_page, bare, widget, name, highest, label):
    page = open_page(bare[widget])
    field, note = page.locator(f"[name={name}]"), page.locator("[role=status]")
    field.fill("5000000")
    assert note.inner_text() == f"{label}: 5000000 became {highest:,}."
    field.blur()
    assert field.input_value() == str(highest)
    field.fill("-3")
    assert "-3 became" in note.inner_text()
    field.fill("")
    assert "expected a whole number from" in note.inner_text()
    field.fill("7")
    assert not note.inner_text()


def test_choosing_a_model_sets_its_heads_and_latent(open_page, bare):
    page = open_page(bare["absorption-crossover"])
    page.locator("[name=heads]").fill("3")
    page.locator("[name=model]").select_option("mistral-small-4-119b")
    assert [page.locator(f"[name={name}]").input_value() for name in ("heads", "kv_lora_rank")] == ["32", "256"]


LOOK = """(root) => {
  const channels = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = channels(getComputedStyle(root.querySelector("input")).backgroundColor);
  const contrast = (colour) => {
    const both = [channels(colour), paper].map((c) => luminance(c.slice(0, 3)) + 0.05);
    return Math.max(...both) / Math.min(...both);
  };
  const right = (element) => element.getBoundingClientRect().right;
  const seen = [...root.querySelectorAll("*")].filter((e) => e.getClientRects().length);
  const has_text = (e) => e.matches("select, input[type=number]") || [...e.childNodes].some((n) => n.nodeType === 3);
  const written = seen.filter(has_text);
  const ink = (e) => (e.namespaceURI.endsWith("svg") ? getComputedStyle(e).fill : getComputedStyle(e).color);
  return {
    faint: written.filter((e) => contrast(ink(e)) < 4.5).map((e) => e.outerHTML),
    outside: seen.filter((e) => right(e) > right(root) + 1).map((e) => e.outerHTML),
    small: [...root.querySelectorAll("svg text")].filter((e) => e.getBoundingClientRect().height < 10).length,
    sideways: document.documentElement.scrollWidth - innerWidth,
  };
}"""


@pytest.mark.parametrize("widget", CHAPTERS)
def test_widget_is_legible_and_fits_its_page(open_page, serve, html, widget):
    page = open_page(f"{serve(html)}book/{CHAPTERS[widget]}.html")
    for theme, width in itertools.product(("light", "dark"), (1280, 390)):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
        look = page.locator(f"[data-widget={widget}]").evaluate(LOOK)
        assert look == {"faint": [], "outside": [], "small": 0, "sideways": 0}, (theme, width)


@pytest.mark.parametrize("widget", CHAPTERS)
def test_text_enters_the_page_as_text_alone(widget):
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|import\(|fetch"
    assert not re.search(unsafe, CLASSES[widget]._esm)
