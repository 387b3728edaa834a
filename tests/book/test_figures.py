"""The drawn figures: up to date, true to the package, legible on a phone and in both modes, part of the page."""

import itertools
import re
import sys
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from mla_edu import GQAConfig
from mla_edu.book import KEY, NEUTRAL, QUERY, ROPE, VALUE
from mla_edu.cost import attention_macs, kv_cache_bytes
from mla_edu.registry import get_model

BOOK = Path(__file__).resolve().parents[2] / "book"
FIGURES = BOOK / "figures"
WIDTHS = {"four-attentions-wide.svg": 1088}  # for slides
PHONE = 358  # what the others get on a screen of 390 pixels
SMALLEST = 9  # pixels of a letter's size
TEXT, RECT = "{http://www.w3.org/2000/svg}text", "{http://www.w3.org/2000/svg}rect"
V3 = get_model("deepseek-v3")


@pytest.fixture(scope="module", autouse=True)
def sources():
    """The drawing programs and the Sphinx extension can be imported, as where they are run."""
    folders = [str(FIGURES), str(BOOK / "_ext")]
    sys.path[:0] = folders
    yield
    for folder in folders:
        sys.path.remove(folder)


NAMES = sorted(path.name for path in FIGURES.glob("*.svg"))
every_figure = pytest.mark.parametrize("name", NAMES)


def read(name):
    return (FIGURES / name).read_text(encoding="utf-8")


def words(name):
    """Each text of a figure, its scripts in line."""
    return ["".join(text.itertext()) for text in ElementTree.fromstring(read(name)).iter(TEXT)]


@every_figure
def test_committed_figure_is_the_one_drawn_today(name):
    from make_figures import DRAWINGS

    assert read(name) == DRAWINGS[name]()


def test_every_drawing_is_committed():
    from make_figures import DRAWINGS

    assert sorted(DRAWINGS) == NAMES


@every_figure
def test_figure_says_what_it_shows(name):
    svg = ElementTree.fromstring(read(name))
    assert svg.get("role") == "img"
    assert len(svg.get("aria-label")) > 100


@pytest.mark.parametrize("name", ["four-attentions.svg", "four-attentions-wide.svg"])
def test_cached_numbers_are_computed(name):
    heads, width = V3.config.num_attention_heads, V3.config.qk_nope_head_dim
    numbers = [2 * groups * width for groups in (heads, 8, 1)]
    assert numbers == [
        GQAConfig(
            hidden_size=1, num_attention_heads=heads, num_key_value_heads=groups, head_dim=width
        ).elements_per_token
        for groups in (heads, 8, 1)
    ]
    numbers.append(kv_cache_bytes(V3.config, 1, dtype="fp8"))
    shown = [line.split("= ")[1] for line in words(name) if line.startswith("cached: ")]
    assert shown == [f"{count:,}" for count in numbers]
    label = ElementTree.fromstring(read(name)).get("aria-label")
    assert all(count in label for count in shown)


GROWTH = {  # what the parts of that figure show: groups of MHA, GQA and MQA, or the latent alone
    "attention-multi-head.svg": [V3.config.num_attention_heads],
    "attention-shared-heads.svg": [V3.config.num_attention_heads, 8, 1],
    "attention-latent.svg": [8, None],
}


@pytest.mark.parametrize("name", GROWTH)
def test_parts_show_the_numbers_of_the_whole(name):
    shown = [line.split("= ")[1] for line in words(name) if line.startswith("cached: ")]
    width, latent = V3.config.qk_nope_head_dim, V3.config.kv_lora_rank
    assert shown == [f"{2 * groups * width if groups else latent:,}" for groups in GROWTH[name]]
    whole = [line.split("= ")[1] for line in words("four-attentions.svg") if line.startswith("cached: ")]
    assert set(shown) - {f"{latent:,}"} <= set(whole)
    label = ElementTree.fromstring(read(name)).get("aria-label")
    assert all(count in label for count in shown)


def test_the_cache_grows_by_one_key_and_one_value_a_step():
    """A panel has a query, one weight for each key, and the earlier steps' weights as dots."""
    for position, panel in zip(
        (3, 4, 5), ElementTree.fromstring(read("cache-growing.svg")).findall("{*}g"), strict=True
    ):
        styles = [rect.get("style", "") for rect in panel.iter(RECT)]
        cached = {kind: sum(f"fill:var(--mla-{kind}," in style for style in styles) for kind in ("key", "value")}
        assert cached == {"key": position + 1, "value": position + 1}
        assert sum("stroke:var(--mla-query," in style for style in styles) == 1 + position + 1
        assert len(panel.findall("{*}circle")) == position * (position + 1) / 2


@pytest.mark.parametrize("name", GROWTH)
def test_parts_show_no_rotary_part(name):
    assert "rotary part" not in words(name)
    assert "--mla-rope" not in read(name)


def test_cached_boxes_are_as_wide_as_their_tensors():
    config, boxes = V3.config, {}
    *shared, latent = ElementTree.fromstring(read("four-attentions.svg")).findall("{*}g")
    for panel in (shared[0], latent):
        for rect in panel.iter(RECT):
            kind = re.match(r"fill:var\(--mla-(\w+),", rect.get("style", ""))
            if kind:
                boxes.setdefault((panel is latent, kind[1]), []).append(float(rect.get("width")))
    unit = boxes[False, "key"][0] / config.qk_nope_head_dim
    assert boxes == {
        (False, "key"): [unit * config.qk_nope_head_dim] * 8,
        (False, "value"): [unit * config.v_head_dim] * 8,
        (True, "key"): [unit * config.kv_lora_rank],
        (True, "rope"): [unit * config.qk_rope_head_dim],
    }


def test_data_flow_shows_the_shapes_and_costs_of_the_layer():
    config = V3.config
    shapes = [line for line in words("data-flow.svg") if re.search(r"× \d", line)]
    key, row = config.qk_head_dim, config.kv_lora_rank + config.qk_rope_head_dim
    out, latent = config.v_head_dim, config.kv_lora_rank
    both = [f"qi: 1 × {key}", f"oi: 1 × {out}"]
    expanded = [f"Ki: T × {key}", f"T × {latent}", f"T × {latent}", f"Vi: T × {out}"]
    absorbed = [f"1 × {row}", f"T × {row}", f"T × {latent}", f"1 × {latent}"]
    assert shapes == both + expanded + both + absorbed

    costs = [line.split()[0] for line in words("data-flow.svg") if "multiply-adds" in line]
    one_head = config.model_copy(update={"num_attention_heads": 1})

    def per_token(mode):
        longer, shorter = (attention_macs(one_head, 1, keys, mode, causal=True) for keys in (1001, 1000))
        return f"{longer - shorter:,}"

    assert costs == [per_token("expanded"), per_token("absorbed")]


MEASURE = """() => {
  const svg = document.querySelector("svg"), frame = svg.getBoundingClientRect();
  const box = (element) => {
    const { left, right, top, bottom } = element.getBoundingClientRect();
    return { left, right, top, bottom, words: element.textContent };
  };
  const seen = (element) => element.checkVisibility({ visibilityProperty: true });
  const scale = frame.width / svg.viewBox.baseVal.width;
  const sizes = [...svg.querySelectorAll("text, tspan")].map((t) => parseFloat(getComputedStyle(t).fontSize) * scale);
  const solid = [...svg.querySelectorAll("rect")].filter((r) => r.style.fill);
  const texts = [...svg.querySelectorAll("text")].filter(seen);
  return { frame: box(svg), texts: texts.map(box), solid: solid.map(box), sizes };
}"""


def overlap(a, b):
    """Whether two boxes share more than a pixel's width and the white above and below letters."""
    across = min(a["right"], b["right"]) - max(a["left"], b["left"])
    down = min(a["bottom"], b["bottom"]) - max(a["top"], b["top"])
    return across > 1 and down > 4


@every_figure
@pytest.mark.parametrize("styled", [True, False], ids=["in-the-page", "on-its-own"])
def test_figure_is_legible(browser, serve, name, styled):
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.goto(serve(BOOK) + "_static/book.css")
    alone = "<style>svg { width: 100%; height: auto }</style>"
    style = '<link rel="stylesheet" href="/_static/book.css">' if styled else alone
    width = WIDTHS.get(name, PHONE)
    page.set_content(f'{style}<figure class="mla-figure" style="width:{width}px; margin: 20px">{read(name)}</figure>')
    page.evaluate("document.fonts.ready")
    found = page.evaluate(MEASURE)
    page.close()
    frame = found["frame"]
    assert frame["right"] - frame["left"] == pytest.approx(width, abs=1)
    assert min(found["sizes"]) >= SMALLEST
    for text in found["texts"]:  # their boxes hold some white above and below the letters
        assert frame["left"] - 1 < text["left"] < text["right"] < frame["right"] + 1, text["words"]
        assert frame["top"] - 5 < text["top"] < text["bottom"] < frame["bottom"] + 5, text["words"]
        assert not any(overlap(text, box) for box in found["solid"]), text["words"]
    pairs = itertools.combinations(found["texts"], 2)
    assert not [(a["words"], b["words"]) for a, b in pairs if overlap(a, b)]


SIZES = """() => [...document.querySelectorAll("section > figure.mla-figure svg")].flatMap((svg) => {
  const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return [...svg.querySelectorAll("text, tspan")].map((t) => parseFloat(getComputedStyle(t).fontSize) * scale);
})"""


def test_drawings_are_large_enough_on_every_page(browser, serve, html):
    page, address = browser.new_page(viewport={"width": 390, "height": 844}), serve(html)
    for path in sorted(html.glob("book/*.html")):
        labels = [re.search(r' aria-label="[^"]*"', read(name))[0] for name in NAMES]
        drawn = any(label in path.read_text(encoding="utf-8") for label in labels)
        if drawn:
            page.goto(f"{address}book/{path.name}")
            assert min(page.evaluate(SIZES)) >= SMALLEST, path.name
        assert drawn or path.name != "index.html"
    page.close()


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted(map(luminance, (a, b)))
    return (high + 0.05) / (low + 0.05)


def channels(colour):
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def page_colours(mode):
    css = (BOOK / "_static" / "book.css").read_text(encoding="utf-8")
    selector = {"light": "html, html[data-theme] {", "dark": 'html[data-theme="dark"] {'}[mode]
    block = css.split(selector)[1].partition("}")[0]
    return {name: channels(value) for name, value in re.findall(r"--([\w-]+): (#\w{6});", block)}


@every_figure
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_and_boxes_stand_out(name, mode):
    svg, colours = ElementTree.fromstring(read(name)), page_colours(mode)
    assert svg.get("fill") == "currentColor"
    assert not [text for text in svg.iter() if text.tag.endswith(("text", "tspan")) and text.get("fill")]
    grounds = [colours["pst-color-background"]]
    for rect in svg.iter(RECT):
        if rect.get("fill-opacity"):
            part = float(rect.get("fill-opacity"))
            mixed = zip(channels(rect.get("fill")), grounds[0], strict=True)
            grounds.append([part * over + (1 - part) * under for over, under in mixed])
    assert all(contrast(colours["pst-color-text-base"], ground) >= 7 for ground in grounds)
    used = set(re.findall(r"var\(--(mla-\w+),#", read(name)))
    assert used
    assert all(contrast(colours[kind], grounds[0]) >= 3 for kind in used)


@every_figure
@pytest.mark.parametrize("ground", ["#ffffff", "#0d1117"], ids=["light", "dark"])
def test_text_stands_out_where_the_figure_stands_alone(name, ground):
    ink = ElementTree.fromstring(read(name)).get("color")
    assert contrast(channels(ink), channels(ground)) >= 4


@every_figure
def test_colours_are_those_of_the_book(name):
    book = {"query": QUERY, "key": KEY, "value": VALUE, "rope": ROPE, "neutral": NEUTRAL}
    assert set(re.findall(r"#\w{6}", read(name))) <= {*book.values(), "#7a7a7a"}
    for kind, colour in re.findall(r"var\(--mla-(\w+),(#\w+)\)", read(name)):
        assert colour == book[kind]


def test_a_linked_figure_becomes_part_of_the_page():
    from docutils import nodes
    from docutils.utils import new_document
    from mla_book import inline_figures

    alone, beside = nodes.paragraph(), nodes.paragraph("", "words ")
    for paragraph in (alone, beside):
        paragraph += nodes.image(uri="figures/four-attentions.svg", alt="other words")
    document = new_document("chapter")
    document += [alone, beside]
    inline_figures(types.SimpleNamespace(srcdir=str(BOOK)), document)
    figure, paragraph = document.children
    assert isinstance(figure, nodes.raw)
    assert figure.astext().startswith('<figure class="mla-figure"><svg')
    assert 'aria-label="Four panels' in figure.astext()
    assert figure.astext().endswith("</svg><figcaption><b>Figure 1.</b> other words.</figcaption></figure>")
    assert "<b>Figure 2.</b>" in paragraph.astext()
    assert isinstance(paragraph, nodes.paragraph)
    assert not list(document.findall(nodes.image))


def test_bottleneck_has_the_widths_of_the_chapter():
    config = GQAConfig(hidden_size=128, num_attention_heads=8, num_key_value_heads=8, head_dim=16)
    shown = [re.sub(r"\D", "", line) for line in words("bottleneck.svg") if re.search(r"\d", line)]
    hidden, cached, latent = config.hidden_size, config.elements_per_token, config.elements_per_token // 4
    assert shown == list(map(str, [hidden, cached, hidden, latent]))
    solid = [r for r in ElementTree.fromstring(read("bottleneck.svg")).iter(RECT) if "fill:" in r.get("style", "")]
    kinds = [re.search(r"--mla-(\w+)|$", r.get("style"))[1] for r in solid]
    assert kinds.count("key") == 1 + 8 + 1 and kinds.count("value") == 1 + 8  # legend, heads, latent
