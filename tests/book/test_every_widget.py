"""What holds for every widget: saved as the code has it, legible, named, reached by keyboard, told bad numbers."""

import itertools
import re
from pathlib import Path

import pytest

from mla_edu.bench.results import layer_steps, measured_gpus
from mla_edu.book import widgets

LOOK = Path(__file__).with_name("look.js").read_text(encoding="utf-8").rstrip(";\n")
FINE = {"faint": [], "small": 0, "moved": 0, "outside": [], "sideways": 0}


def with_sliders(*names):
    return [each for name in names for each in (name, f"{name}-slider")]


# Of each widget: how it is made, the chapter that shows it, and its controls in order.
WIDGETS = {
    "kv-cache-explorer": (
        widgets.KVCacheExplorer,
        "what-the-cache-costs",
        ["model", "model-2", "model-3", "model-4", *with_sliders("tokens"), "batch", "dtype", "gpu", "gpus", "weights"],
    ),
    "absorption-crossover": (
        widgets.AbsorptionCrossover,
        "absorption",
        ["model", *with_sliders("heads", "kv_lora_rank", "new_tokens", "cached_tokens")],
    ),
    "rope-dial": (widgets.RopeDial, "decoupled-rope", with_sliders("key_position", "distance")),
    "decode-roofline": (
        widgets.DecodeRoofline,
        "what-a-gpu-can-do",
        ["gpu", "dtype", *with_sliders("heads", "s_q")],
    ),
    "engine-stepper": (
        widgets.EngineStepper,
        "serving",
        [*with_sliders("step"), "reset", "previous", "next", "play"],
    ),
    "many-gpus": (
        widgets.ManyGPUs,
        "many-gpus",
        ["model", "layout_name", "dtype", "gpu", *with_sliders("gpus", "batch", "tokens")],
    ),
    "softmax-stepper": (widgets.SoftmaxStepper, "triton-and-online-softmax", with_sliders("tile", "step")),
    "measured-results": (
        lambda: widgets.MeasuredResults(measured_gpus(), layer_steps()),
        "measured",
        ["machine", "dtype", "heads", "s_q", "context", "batch"],
    ),
}
every_widget = pytest.mark.parametrize("name", WIDGETS)


@pytest.fixture(scope="module")
def bare(bare_page):
    """Of each widget, the address of a page that holds it alone."""
    return {name: bare_page(make()) for name, (make, _, _) in WIDGETS.items()}


@every_widget
def test_page_comes_from_the_committed_notebook(saved_widget, name):
    make, chapter, _ = WIDGETS[name]
    saved, fresh = saved_widget(chapter), make()
    for part in ("_esm", "_css", "data"):
        assert saved.get(part) == getattr(fresh, part), f"{part} is stale: run `make notebooks`"


@every_widget
def test_keyboard_reaches_every_control_and_shows_where_it_is(open_page, bare, name):
    page, controls = open_page(bare[name]), WIDGETS[name][2]
    page.locator(f"[name={controls[0]}]").focus()
    reached = controls[:1]
    while reached[-1] != controls[-1] and len(reached) < 20:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
    assert reached == controls


@every_widget
def test_controls_drawings_and_numbers_have_names(open_page, bare, name):
    page = open_page(bare[name])
    unnamed = page.locator("[data-widget] :is(select, input)").evaluate_all(
        "all => all.filter(e => !e.ariaLabel && ![...e.labels].some(l => l.textContent.trim())).map(e => e.name)"
    )
    assert not unnamed
    ids = page.locator("[data-widget] [id]").evaluate_all(
        "all => all.map(e => document.querySelectorAll('#' + e.id).length)"
    )
    assert set(ids) == {1}
    assert page.locator("[data-widget] dl div").evaluate_all("all => all.every(d => d.querySelector('dt + dd'))")
    assert page.locator("svg[role=img]").evaluate_all("all => all.every(e => e.getAttribute('aria-label'))")
    assert page.locator("[aria-live=polite]").inner_text()


@pytest.mark.parametrize(
    ("name", "field", "lowest", "highest", "label"),
    [
        ("kv-cache-explorer", "tokens", 1, 2**20, "tokens in a sequence"),
        ("kv-cache-explorer", "batch", 1, 2**16, "sequences at once"),
        ("kv-cache-explorer", "gpus", 1, 1024, "how many"),
        ("absorption-crossover", "heads", 1, 1024, "heads"),
        ("absorption-crossover", "cached_tokens", 0, 2**20, "cached tokens"),
        ("rope-dial", "distance", 0, 63, "distance t − s"),
        ("decode-roofline", "heads", 1, 128, "heads on this GPU"),
        ("many-gpus", "gpus", 1, 32, "GPUs"),
        ("many-gpus", "tokens", 1, 2**20, "tokens in a sequence"),
        ("engine-stepper", "step", 0, 15, "step, of 15"),
        ("softmax-stepper", "tile", 1, 24, "keys in a tile"),
    ],
)
def test_number_out_of_range_is_put_right_and_said(open_page, bare, name, field, lowest, highest, label):
    page = open_page(bare[name])
    control, note = page.locator(f"[name={field}]"), page.locator("[role=status]")
    control.fill("5000000")
    assert note.inner_text() == f"{label}: 5000000 became {highest:,}."
    control.blur()
    assert control.input_value() == str(highest)
    control.fill("-3")
    assert note.inner_text() == f"{label}: -3 became {lowest}."
    control.fill("")
    assert note.inner_text() == f"{label}: expected a whole number from {lowest} to {highest:,}."
    control.blur()
    assert control.input_value() == str(lowest)
    control.fill("7")
    assert not note.inner_text()


@every_widget
def test_sliders_say_their_numbers_and_move_by_keyboard(open_page, bare, name):
    page = open_page(bare[name])
    for slider in [control for control in WIDGETS[name][2] if control.endswith("-slider")]:
        field = page.locator(f"[name={slider.removesuffix('-slider')}]")
        page.locator(f"[name={slider}]").focus()
        page.keyboard.press("Home")
        assert field.input_value() == field.get_attribute("min")
        before = page.evaluate("shown.root().innerText")
        page.keyboard.press("End")
        assert field.input_value() == field.get_attribute("max")
        assert page.evaluate("document.activeElement.name") == slider
        assert page.evaluate("document.activeElement.ariaValueText") == f"{int(field.input_value()):,}"
        assert page.evaluate("shown.root().innerText") != before


@every_widget
def test_widget_is_legible_and_fits_its_page(open_page, serve, html, name):
    page = open_page(f"{serve(html)}book/{WIDGETS[name][1]}.html")
    for theme, width in itertools.product(("light", "dark"), (1280, 390)):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
        assert page.locator(f"[data-widget={name}]").evaluate(LOOK) == FINE, (theme, width)


@every_widget
def test_text_enters_the_page_as_text_alone(name):
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|import\(|fetch"
    assert not re.search(unsafe, str(WIDGETS[name][0]()._esm))
