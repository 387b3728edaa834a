"""The cache explorer on the built pages: it counts as Python does, at once, by keyboard, from an address, unharmed."""

import itertools
import json
import re
import shutil
import statistics
from pathlib import Path

import nbformat
import pytest

from mla_edu.book.widgets import KVCacheExplorer
from mla_edu.book.widgets.kv_cache_explorer import DTYPES, own_model, quantities
from mla_edu.cost import kv_cache_bytes
from mla_edu.registry import get_gpu, get_model, list_gpus, list_models

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTER = BOOK / "02-what-the-cache-costs.ipynb"
PAGES = ["book/index.html", "book/02-what-the-cache-costs.html"]
ROOT_OF = '[data-widget="kv-cache-explorer"]'
NUMBERS = ("bytes_per_token", "bytes_per_sequence", "bytes_total", "num_gpus", "max_sequences", "max_tokens")
TOKENS, BATCHES = (1, 1000, 131_072, 1_048_576), (1, 33, 65_536)
OWN = [
    {"num_layers": 7, "num_attention_heads": 24, "num_key_value_heads": 3, "head_dim": 80},
    {"num_attention_heads": 12, "num_key_value_heads": 12, "num_parameters": 0},
    {"num_key_value_heads": 1, "head_dim": 1024, "num_layers": 1000, "num_parameters": 10**13},
    {"kv_lora_rank": 512, "num_attention_heads": 128, "num_layers": 61},
    {"kv_lora_rank": 100, "qk_rope_head_dim": 0},
]

# What the page offers to the tests: set a control as a reader would, and read all numbers shown.
HELPERS = """
const entries = (elements, pair) => Object.fromEntries([...elements].map(pair));
window.explorer = {
  root: () => document.querySelector('[data-widget="kv-cache-explorer"]'),
  set(name, value) {
    const control = this.root().querySelector(`[name="${name}"]`);
    if (control.value === String(value)) return;
    control.value = value;
    if (control.tagName === "INPUT") control.dispatchEvent(new Event("input", { bubbles: true }));
    control.dispatchEvent(new Event("change", { bubbles: true }));
  },
  read: () => [...explorer.root().querySelectorAll("[data-model]")].map((model) =>
    entries(model.querySelectorAll("[data-quantity]"), (e) => [e.dataset.quantity, e.dataset.value])),
  what_if: () =>
    entries(explorer.root().querySelectorAll('[data-quantity="what_if"]'), (e) => [e.dataset.whatIf, e.dataset.value]),
};
"""


def escaped(content):
    return json.dumps(content).replace("</", "<\\/")


@pytest.fixture(scope="module")
def bare(serve, tmp_path_factory):
    """The address of a page that holds the chapter's explorer alone, and is sooner loaded than the chapter."""
    notebook = nbformat.read(CHAPTER, as_version=4)
    ((mime, state),) = notebook.metadata.widgets.items()
    (view,) = [id for id, entry in state.state.items() if "_esm" in entry.state]
    scripts = {mime: state, mime.replace("state", "view"): {"model_id": view}}
    body = "".join(f'<script type="{mime}">{escaped(content)}</script>' for mime, content in scripts.items())
    folder = tmp_path_factory.mktemp("bare")
    head = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><script defer src="widget-host.js">'
    (folder / "index.html").write_text(f"{head}</script><body>{body}", encoding="utf-8")
    shutil.copy(BOOK / "_static" / "widget-host.js", folder)
    return serve(folder)


@pytest.fixture
def open_page(browser, bare):
    """``open_page(query, base)`` opens a page with the explorer; fails if it asked another host or complained."""
    pages, faults = [], []

    def gate(route):
        if route.request.url.startswith("http://127.0.0.1:"):
            route.continue_()
        else:
            faults.append(route.request.url)
            route.abort()

    def start(query="", base=bare, **options):
        page = browser.new_page(**options)
        pages.append(page)
        page.route(lambda url: url.startswith("http"), gate)
        page.on("console", lambda m: faults.append(m.text) if m.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.goto(base + query)
        page.wait_for_selector(ROOT_OF, timeout=5000)
        page.evaluate(HELPERS)
        return page

    yield start
    for page in pages:
        page.close()
    assert not faults


def expected(model, gpu, tokens, batch, dtype):
    found = quantities(model, get_gpu(gpu), tokens, batch, dtype)
    return {name: "" if found[name] is None else str(found[name]) for name in NUMBERS}


def number(page, quantity):
    return int(page.locator(f"{ROOT_OF} [data-quantity={quantity}]").first.get_attribute("data-value"))


def value(page, name):
    return page.locator(f"{ROOT_OF} [name={name}]").input_value()


# The same numbers


def test_every_model_is_offered_by_kind(open_page):
    page = open_page()
    groups = page.locator(f"{ROOT_OF} select[name=model] optgroup").evaluate_all(
        "groups => groups.map(group => [...group.children].map(option => option.value))"
    )
    assert sorted(itertools.chain(*groups)) == sorted(list_models())
    for names in groups:
        assert len({get_model(name).kind for name in names}) == 1
    gpus = page.locator(f"{ROOT_OF} select[name=gpu] option").evaluate_all("options => options.map(o => o.value)")
    assert gpus == list_gpus()


def test_browser_counts_what_python_counts(open_page):
    names, gpus = list_models(), itertools.cycle(list_gpus())
    grid = [(*point, next(gpus)) for point in itertools.product(TOKENS, BATCHES, DTYPES)]
    fours = [names[i : i + 4] for i in range(0, len(names), 4)]
    shown = open_page().evaluate(
        """([fours, grid]) => fours.flatMap((four) => {
          ["model", "model-2", "model-3", "model-4"].forEach((control, i) => explorer.set(control, four[i] ?? ""));
          return grid.map(([tokens, batch, dtype, gpu]) => {
            for (const [name, value] of Object.entries({ tokens, batch, dtype, gpu })) explorer.set(name, value);
            return explorer.read();
          });
        })""",
        [fours, grid],
    )
    computed = [
        [expected(get_model(name), gpu, tokens, batch, dtype) for name in four]
        for four in fours
        for tokens, batch, dtype, gpu in grid
    ]
    assert len(shown) == len(fours) * len(TOKENS) * len(BATCHES) * len(DTYPES)
    for case, found, wanted in zip(itertools.product(fours, grid), shown, computed, strict=True):
        assert found == wanted, case


def test_another_attention_counts_as_in_python(open_page):
    names = list_models()
    shown = open_page("?tokens=10000").evaluate(
        """([names, dtypes]) => names.map((name) => {
          explorer.set("model", name);
          return dtypes.map((dtype) => (explorer.set("dtype", dtype), explorer.what_if()));
        })""",
        [names, DTYPES],
    )
    for name, row in zip(names, shown, strict=True):
        for dtype, found in zip(DTYPES, row, strict=True):
            wanted = quantities(get_model(name), get_gpu("h200"), 10_000, 1, dtype)["what_if"]
            assert {kind: int(size) for kind, size in found.items()} == wanted, (name, dtype)


@pytest.mark.parametrize("own", OWN, ids=json.dumps)
def test_own_dimensions_count_as_in_python(open_page, own):
    page = open_page("?gpu=a100-80gb&batch=7")
    page.evaluate(
        """(own) => {
          explorer.set("model", "own");
          for (const [name, value] of Object.entries(own)) explorer.set(name, value);
        }""",
        own,
    )
    for dtype in DTYPES:
        page.evaluate("(dtype) => explorer.set('dtype', dtype)", dtype)
        assert page.evaluate("explorer.read()")[0] == expected(own_model(own), "a100-80gb", 131_072, 7, dtype)


def test_numbers_of_a_page_come_from_the_committed_notebook():
    (saved,) = nbformat.read(CHAPTER, as_version=4).metadata.widgets.values()
    (state,) = [entry.state for entry in saved.state.values() if "_esm" in entry.state]
    explorer = KVCacheExplorer()
    for name in ("_esm", "_css", "registry"):
        assert state[name] == str(getattr(explorer, name)), f"{name} is stale: run `make notebooks`"


# Readers


@pytest.mark.parametrize("name", PAGES)
def test_page_shows_the_explorer_without_a_network(open_page, serve, html, name):
    page = open_page(base=serve(html) + name)
    page.wait_for_load_state("networkidle")
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.locator(f"{ROOT_OF} select[name=model]").select_option("llama-2-7b")
    page.locator(f"{ROOT_OF} [name=tokens]").fill("4096")
    assert number(page, "bytes_per_token") == 524_288
    assert number(page, "bytes_per_sequence") == 524_288 * 4096
    assert "Llama-2-7B keeps 524 kB for a token" in page.locator(f"{ROOT_OF} [aria-live=polite]").inner_text()
    assert not [url for url in requests if not url.endswith("favicon.svg")]  # Chromium asks again at a new address


def test_page_opened_from_disk_shows_the_explorer(open_page, html):
    page = open_page("?models=llama-2-7b", base=f"{html.as_uri()}/{PAGES[0]}")
    assert number(page, "bytes_per_token") == 524_288
    page.locator(f"{ROOT_OF} [name=batch]").fill("2")
    assert "batch=2" in page.evaluate("location.search")


def test_keyboard_alone_is_enough(open_page):
    page = open_page("?models=deepseek-v3&tokens=1024")
    page.locator(f"{ROOT_OF} select[name=model]").focus()
    before = value(page, "model")
    page.keyboard.press("ArrowUp")
    assert value(page, "model") != before
    page.keyboard.type("Llama-3.1-70B")
    assert value(page, "model") == "llama-3.1-70b"
    reached = ["model"]
    while reached[-1] != "gpu" and len(reached) < 20:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached[-1]
        if reached[-1] == "tokens":
            page.keyboard.press("Control+a")
            page.keyboard.type("2048")
            assert number(page, "bytes_per_sequence") == 2048 * 327_680
        if reached[-1] == "tokens-log2":
            for _ in range(8):
                page.keyboard.press("ArrowRight")
            assert value(page, "tokens") == "4096"
            assert page.evaluate("document.activeElement.ariaValueText") == "4,096 tokens"
        if reached[-1] == "batch":
            page.keyboard.press("ArrowUp")
            assert number(page, "bytes_total") == 2 * 4096 * 327_680
    assert reached == [
        *("model", "model-2", "model-3", "model-4", "tokens", "tokens-log2", "batch", "dtype", "gpu"),
    ]
    page.keyboard.type("NVIDIA H100")
    assert value(page, "gpu") == "h100"


def test_every_control_has_a_name_and_every_number_its_label(open_page):
    page = open_page("?models=own,deepseek-v3")
    unnamed = page.locator(f"{ROOT_OF} :is(select, input)").evaluate_all(
        "all => all.filter(e => !e.ariaLabel && ![...e.labels].some(l => l.textContent.trim())).map(e => e.name)"
    )
    assert not unnamed
    ids = page.locator(f"{ROOT_OF} [id]").evaluate_all(
        "all => all.map(e => document.querySelectorAll('#' + e.id).length)"
    )
    assert set(ids) == {1}
    assert page.locator(f"{ROOT_OF} dl div").evaluate_all("all => all.every(d => d.querySelector('dt + dd'))")


LOOK = """(root) => {
  const channels = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    for (let node = element; node; node = node.parentElement) {
      const colour = channels(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const right = (element) => element.getBoundingClientRect().right;
  const has_text = (e) => e.matches("select, input[type=number]") || [...e.childNodes].some((n) => n.nodeType === 3);
  const seen = [...root.querySelectorAll("*")].filter((e) => e.getClientRects().length && !e.closest(".mla-kvx-bar"));
  const contrast = (e) => {
    const both = [channels(getComputedStyle(e).color), background(e)].map((c) => luminance(c.slice(0, 3)) + 0.05);
    return Math.max(...both) / Math.min(...both);
  };
  return {
    faint: seen.filter((e) => has_text(e) && contrast(e) < 4.5).map((e) => `${contrast(e)} ${e.outerHTML}`),
    outside: seen.filter((e) => right(e) > right(root) + 1).map((e) => e.outerHTML),
    sideways: document.documentElement.scrollWidth - innerWidth,
  };
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_explorer_is_legible_and_fits(open_page, serve, html, theme, width):
    query = "?models=own,deepseek-v3,gemma-3-27b,no-such-model&dtype=fp8_mla&tokens=1048576&batch=65536"
    look = {"viewport": {"width": width, "height": 900}, "color_scheme": theme}
    page = open_page(query, base=serve(html) + PAGES[1], **look)
    page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
    assert page.locator(ROOT_OF).evaluate(LOOK) == {"faint": [], "outside": [], "sideways": 0}


def test_an_answer_is_painted_within_one_frame(open_page, serve, html, capsys):
    query = "?models=deepseek-v3,llama-3.1-405b,gemma-3-27b,gpt-oss-120b"
    page = open_page(query, base=serve(html) + PAGES[1])
    page.wait_for_load_state("networkidle")
    times = page.evaluate(
        """async () => {
          const slider = explorer.root().querySelector("input[type=range]");
          const times = [];
          for (let i = 0; i < 50; i++) {
            times.push(await new Promise((done) => requestAnimationFrame(() => {
              const start = performance.now(); // as a frame begins, browsers hand out the input
              slider.value = 10 + ((i * 7) % 80) / 8;
              slider.dispatchEvent(new Event("input", { bubbles: true }));
              const { port1, port2 } = new MessageChannel();
              port1.onmessage = () => done(performance.now() - start);
              port2.postMessage(null); // delivered once this frame is painted
            })));
          }
          return times;
        }"""
    )
    median = statistics.median(times)
    with capsys.disabled():
        print(f"\ncache explorer, four models: {median:.1f} ms from input to painted answer (median of {len(times)})")
    assert median < 16
    tokens = int(value(page, "tokens"))
    assert tokens != 131_072
    assert number(page, "bytes_per_sequence") == kv_cache_bytes("deepseek-v3", tokens)


# The address


def test_address_restores_the_view(open_page):
    page = open_page()
    for name, choice in {"model": "own", "model-2": "gemma-3-27b", "dtype": "fp8", "gpu": "mi300x"}.items():
        page.locator(f"{ROOT_OF} [name={name}]").select_option(choice)
    for name, text in {"tokens": "5000", "batch": "12", "num_layers": "9", "kv_lora_rank": "256"}.items():
        page.locator(f"{ROOT_OF} [name={name}]").fill(text)
    page.wait_for_url(re.compile("kv_lora_rank=256"))
    again = open_page("?" + page.url.partition("?")[2])
    assert again.evaluate("explorer.read()") == page.evaluate("explorer.read()")
    assert value(again, "num_layers") == "9"
    assert not again.locator(f"{ROOT_OF} .mla-kvx-note").inner_text()
    again.locator(f"{ROOT_OF} [name=model]").select_option("llama-2-7b")
    again.wait_for_url(re.compile(r"models=llama-2-7b,gemma-3-27b,llama-3.1-70b&"))
    assert "kv_lora_rank" not in again.url


def test_untouched_explorer_leaves_the_address_alone(open_page, bare):
    assert open_page("#try-it").url == f"{bare}#try-it"


@pytest.mark.parametrize(
    ("query", "note", "shown"),
    [
        ("tokens=99999999999999999999999", "became 1,048,576", {"tokens": "1048576"}),
        ("tokens=-5", "tokens: -5 became 1.", {"tokens": "1"}),
        ("tokens=1e5", "ignored “1e5”", {"tokens": "131072"}),
        ("batch=0", "batch: 0 became 1.", {"batch": "1"}),
        ("batch=", "batch: ignored “”", {"batch": "1"}),
        ("dtype=constructor", "dtype: ignored “constructor”", {"dtype": "bf16"}),
        ("gpu=__proto__", "gpu: ignored “__proto__”", {"gpu": "b200"}),
        ("models=no-such-model", "model: ignored “no-such-model”", {"model": "deepseek-v3"}),
        ("models=llama-2-7b,<img src=x onerror=alert(1)>", "ignored “<img src=x", {"model": "llama-2-7b"}),
        ("models=<script>alert(1)</script>", "ignored “<script>alert(1)", {"model": "deepseek-v3"}),
        (f"models={','.join(['llama-2-7b'] * 9)}", "Only the first 4", {"model-4": "llama-2-7b"}),
        ("models=own&num_layers=5000", "layers: 5000 became 1,000", {"num_layers": "1000"}),
        ("models=own&head_dim=33", "width of a head: 33 became 32", {"head_dim": "32"}),
        (
            "models=own&num_attention_heads=30&num_key_value_heads=8",
            "key/value heads: 8 became 6",
            {"num_key_value_heads": "6"},
        ),
    ],
)
def test_tampered_address_is_put_right_and_said(open_page, query, note, shown):
    page = open_page("?" + query)
    assert note in page.locator(f"{ROOT_OF} [role=status]").inner_text()
    for name, text in shown.items():
        assert value(page, name) == text
    assert page.locator(f"{ROOT_OF} :is(script, img)").count() == 0
    assert number(page, "bytes_per_token") > 0


def test_number_out_of_range_is_put_right_and_said(open_page):
    page = open_page()
    tokens, note = page.locator(f"{ROOT_OF} [name=tokens]"), page.locator(f"{ROOT_OF} [role=status]")
    tokens.fill("5000000")
    assert "tokens: 5000000 became 1,048,576" in note.inner_text()
    assert number(page, "bytes_per_sequence") == 70_272 * 1_048_576
    tokens.fill("")
    assert "expected a whole number from 1 to 1,048,576" in note.inner_text()
    tokens.blur()
    assert tokens.input_value() == "1048576"
    tokens.fill("7")
    assert not note.inner_text()


def test_text_enters_the_page_as_text_alone():
    source = KVCacheExplorer()._esm
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|import\(|fetch", source
    )
