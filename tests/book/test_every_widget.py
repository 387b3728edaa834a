"""What holds for every widget: saved as the code has it, legible, named, reached by keyboard, told bad numbers."""

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
        [
            *("chat", "agent", "long", "model", "model-2", "model-3", "model-4", *with_sliders("tokens")),
            *("batch", "dtype", "gpu", "gpus", "weights", "reset", "copy"),
        ],
    ),
    "absorption-crossover": (
        widgets.AbsorptionCrossover,
        "absorption",
        ["model", *with_sliders("kv_lora_rank", "new_tokens", "cached_tokens"), "reset", "copy"],
    ),
    "rope-dial": (
        widgets.RopeDial,
        "decoupled-rope",
        [*with_sliders("key_position", "distance"), "play", "reset", "copy"],
    ),
    "decode-roofline": (
        widgets.DecodeRoofline,
        "what-a-gpu-can-do",
        ["gpu", "dtype", *with_sliders("heads", "s_q"), "reset", "copy"],
    ),
    "engine-stepper": (
        widgets.EngineStepper,
        "serving",
        [*with_sliders("step"), "previous", "next", "play", "reset", "copy"],
    ),
    "many-gpus": (
        widgets.ManyGPUs,
        "many-gpus",
        ["model", "layout_name", "dtype", "gpu", *with_sliders("gpus", "batch", "tokens"), "reset", "copy"],
    ),
    "softmax-stepper": (
        widgets.SoftmaxStepper,
        "triton-and-online-softmax",
        [*with_sliders("tile", "step"), "previous", "next", "play", "reset", "copy"],
    ),
    "measured-results": (
        lambda: widgets.MeasuredResults(measured_gpus(), layer_steps()),
        "measured",
        ["machine", "dtype", "heads", "s_q", "context", "batch", "reset", "copy"],
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
    while reached[-1] != controls[-1] and len(reached) < 24:
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
    assert page.locator(".mla-part-summary").inner_text()
    targets = page.locator("[data-widget] :is(select, input, button)").evaluate_all(
        "all => all.filter(e => e.offsetParent).map(e => [e.name, e.offsetHeight, e.offsetWidth])"
    )
    assert not [each for each in targets if min(each[1:]) < 24]


@pytest.mark.parametrize(
    ("name", "field", "lowest", "highest", "label"),
    [
        ("kv-cache-explorer", "tokens", 1, 2**20, "tokens in a sequence"),
        ("kv-cache-explorer", "batch", 1, 2**16, "sequences at once"),
        ("kv-cache-explorer", "gpus", 1, 1024, "GPUs of that kind"),
        ("absorption-crossover", "kv_lora_rank", 1, 8192, "width of the latent"),
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
        assert field.input_value() == field.get_attribute("aria-valuemin")
        before = page.evaluate("shown.root().innerText")
        page.keyboard.press("End")
        assert field.input_value() == field.get_attribute("aria-valuemax")
        assert page.evaluate("document.activeElement.name") == slider
        assert page.evaluate("document.activeElement.ariaValueText") == f"{int(field.input_value()):,}"
        assert page.evaluate("shown.root().innerText") != before


@every_widget
def test_widget_is_legible_and_fits_its_page(open_page, serve, html, name):
    page = open_page(f"{serve(html)}book/{WIDGETS[name][1]}.html")
    for theme, width in (("light", 1280), ("dark", 390)):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
        assert page.locator(f"[data-widget={name}]").evaluate(LOOK) == FINE, (theme, width)


@every_widget
def test_text_enters_the_page_as_text_alone(name):
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|import\(|fetch"
    assert not re.search(unsafe, str(WIDGETS[name][0]()._esm))


# Of each widget: a control, and a value that it does not have at first.
CHANGED = {
    "kv-cache-explorer": ("tokens", "4096"),
    "absorption-crossover": ("new_tokens", "17"),
    "rope-dial": ("distance", "12"),
    "decode-roofline": ("gpu", "mi300x"),
    "engine-stepper": ("step", "9"),
    "many-gpus": ("layout_name", "context"),
    "softmax-stepper": ("step", "2"),
    "measured-results": ("context", "1024"),
}


@every_widget
def test_address_keeps_the_view_and_reset_leaves_both(open_page, bare, name):
    control, value = CHANGED[name]
    page = open_page(bare[name] + "?other=x#part")
    first = page.evaluate("shown.read()")
    page.evaluate("([name, value]) => shown.set(name, value)", [control, value])
    page.wait_for_function(f"location.search.includes('{control}={value}')")
    changed, address = page.evaluate("shown.read()"), page.url
    assert changed != first and "other=x" in address and address.endswith("#part")
    again = open_page(address)
    assert again.evaluate("shown.read()") == changed
    assert not again.locator("[role=status]").inner_text()
    page.locator("[name=reset]").click()
    assert page.evaluate("shown.read()") == first
    page.wait_for_function("location.search + location.hash === '?other=x#part'")


@every_widget
def test_link_to_the_view_is_copied(open_page, bare, name):
    control, value = CHANGED[name]
    page = open_page(bare[name])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("([name, value]) => shown.set(name, value)", [control, value])
    page.locator("[name=copy]").click()
    page.wait_for_function("document.querySelector('[role=status]').textContent.startsWith('The link')")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    assert f"{control}={value}" in page.url


@every_widget
def test_address_that_means_nothing_is_said_and_changes_nothing(open_page, bare, name):
    control, _ = CHANGED[name]
    page = open_page(bare[name])
    first = page.evaluate("shown.read()")
    tampered = open_page(f"{bare[name]}?{control}=<img src=x onerror=alert(1)>")
    assert tampered.evaluate("shown.read()") == first
    assert "ignored “<img src=x" in tampered.locator("[role=status]").inner_text()
    assert tampered.locator("[data-widget] :is(img, script)").count() == 0


def test_a_screen_reader_is_told_once_when_a_change_has_come_to_rest(open_page, bare):
    page = open_page(bare["decode-roofline"])
    live = page.locator("[aria-live=polite]")
    page.wait_for_timeout(700)
    assert live.text_content() == ""
    page.evaluate("[32, 48, 64].forEach((heads) => shown.set('heads', heads))")
    assert live.text_content() == "" and "64 rows" in page.locator(".mla-part-summary").inner_text()
    page.wait_for_timeout(700)
    assert live.text_content() == page.locator(".mla-part-summary").inner_text()


@pytest.mark.parametrize("name", ["kv-cache-explorer", "absorption-crossover", "measured-results"])
def test_bars_are_seen_where_the_system_sets_the_colours(open_page, bare, name):
    page = open_page(bare[name], forced_colors="active")
    bars = ".mla-part-bar span, .mla-measured-ours .mla-measured-bar"
    colours = page.locator(bars).evaluate_all(
        "all => all.map(e => [getComputedStyle(e).backgroundColor, getComputedStyle(document.body).backgroundColor])"
    )
    assert colours and all(bar != ground for bar, ground in colours)


@pytest.mark.parametrize(
    ("text", "tokens"), [("128k", 131_072), ("1M", 2**20), ("131,072", 131_072), (" 64K ", 65_536), ("4096", 4096)]
)
def test_a_number_may_be_written_as_the_command_takes_it(open_page, bare, text, tokens):
    from mla_edu.words import parse_count

    page = open_page(bare["kv-cache-explorer"])
    page.locator("[name=tokens]").fill(text)
    assert not page.locator("[role=status]").inner_text()
    assert page.evaluate("Number(new URLSearchParams(location.search).get('tokens'))") == tokens
    assert parse_count(text.replace(",", ""), "tokens") == tokens
