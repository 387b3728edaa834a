"""The cache explorer on the built pages: it shows what Python computes, from an address, by keyboard, unharmed."""

import itertools
import json
import re
from pathlib import Path

import pytest

from mla_edu.book.widgets import KVCacheExplorer
from mla_edu.book.widgets.kv_cache_explorer import DTYPES, WEIGHTS, own_model, quantities
from mla_edu.registry import get_gpu, get_model, list_gpus, list_models
from mla_edu.words import digits

PAGES = ["book/index.html", "book/what-the-cache-costs.html"]
LOOK = Path(__file__).with_name("look.js").read_text(encoding="utf-8").rstrip(";\n")
ROOT_OF = '[data-widget="kv-cache-explorer"]'
NUMBERS = ("bytes_per_token", "bytes_per_sequence", "bytes_total", "weight_bytes")
EACH = ("weight_bytes", "bytes_per_sequence", "copies", "max_sequences", "max_tokens")
OWN = [
    {"num_layers": 7, "num_attention_heads": 24, "num_key_value_heads": 3, "head_dim": 80},
    {"num_attention_heads": 12, "num_key_value_heads": 12, "num_parameters": 0},
    {"num_key_value_heads": 1, "head_dim": 1024, "num_layers": 1000, "num_parameters": 10**13},
    {"kv_lora_rank": 512, "num_attention_heads": 128, "num_layers": 61},
    {"kv_lora_rank": 100, "qk_rope_head_dim": 0},
]

# Read all numbers shown, of each model and of each other attention.
READ = """
const entries = (elements, pair) => Object.fromEntries([...elements].map(pair));
window.explorer = {
  read: () => [...shown.root().querySelectorAll("[data-model]")].map((model) =>
    entries(model.querySelectorAll("[data-quantity]"), (e) => [e.dataset.quantity, e.dataset.value])),
  what_if: () =>
    entries(shown.root().querySelectorAll('[data-quantity="what_if"]'), (e) => [e.dataset.whatIf, e.dataset.value]),
};
"""


@pytest.fixture(scope="module")
def bare(bare_page):
    """The address of a page that holds the explorer of the chapter alone."""
    return bare_page(KVCacheExplorer(["deepseek-v3", "llama-3.1-405b", "llama-3.1-70b"], gpu="b200"))


@pytest.fixture
def explore(open_page, bare):
    """``explore(query, base)`` opens a page with the explorer."""

    def start(query="", base=bare, **options):
        page = open_page(base + query, **options)
        page.evaluate(READ)
        return page

    return start


def expected(model, gpu, tokens, batch, dtype, gpus=8, weights="published"):
    found = quantities(model, get_gpu(gpu), tokens, batch, dtype, gpus, weights)
    numbers = {name: found[name] for name in NUMBERS}
    for way, each in found["on_each"].items():
        numbers |= {f"{way}.{name}": each and each[name] for name in EACH}
    return {name: "" if number is None else str(number) for name, number in numbers.items()}


def number(page, quantity):
    return int(page.locator(f"{ROOT_OF} [data-quantity={quantity}]").first.get_attribute("data-value"))


def value(page, name):
    return page.locator(f"{ROOT_OF} [name={name}]").input_value()


# The same numbers


def test_every_model_is_offered_by_kind(explore):
    page = explore()
    groups = page.locator(f"{ROOT_OF} select[name=model] optgroup").evaluate_all(
        "groups => groups.map(group => [...group.children].map(option => option.value))"
    )
    assert sorted(itertools.chain(*groups)) == sorted(list_models())
    for names in groups:
        assert len({get_model(name).kind for name in names}) == 1
    gpus = page.locator(f"{ROOT_OF} select[name=gpu] option").evaluate_all("options => options.map(o => o.value)")
    assert gpus == list_gpus()


def test_page_shows_what_python_computes(explore):
    """Every model, four at a time, each time at another point."""
    names, gpus = list_models(), itertools.cycle(list_gpus())
    fours = [names[i : i + 4] for i in range(0, len(names), 4)]
    points = itertools.cycle(itertools.product((1, 1000, 131_072, 1_048_576), (33, 65_536, 1), DTYPES))
    others = itertools.cycle(itertools.product((8, 1, 3, 72, 1024), WEIGHTS))
    grid = [(four, *next(points), next(gpus), *next(others)) for four in 2 * (fours + fours[::-1])]
    found = explore().evaluate(
        """(grid) => grid.map(([four, tokens, batch, dtype, gpu, gpus, weights]) => {
          ["model", "model-2", "model-3", "model-4"].forEach((control, i) => shown.set(control, four[i] ?? ""));
          const settings = { tokens, batch, dtype, gpu, gpus, weights };
          for (const [name, value] of Object.entries(settings)) shown.set(name, value);
          return explorer.read();
        })""",
        grid,
    )
    for (four, tokens, batch, dtype, gpu, *others), shown in zip(grid, found, strict=True):
        assert shown == [expected(get_model(name), gpu, tokens, batch, dtype, *others) for name in four]


def test_another_attention_counts_as_in_python(explore):
    names = list_models()
    shown = explore("?tokens=10000").evaluate(
        """([names, dtypes]) => names.map((name) => {
          shown.set("model", name);
          return dtypes.map((dtype) => (shown.set("dtype", dtype), explorer.what_if()));
        })""",
        [names, DTYPES],
    )
    for name, row in zip(names, shown, strict=True):
        for dtype, found in zip(DTYPES, row, strict=True):
            wanted = quantities(get_model(name), get_gpu("h200"), 10_000, 1, dtype)["what_if"]
            assert {kind: int(size) for kind, size in found.items()} == wanted, (name, dtype)


def test_the_pace_of_reading_is_the_bandwidth_over_the_bytes(explore):
    page = explore()
    for name, gpu, tokens in itertools.product(("deepseek-v3", "gemma-3-27b"), ("h100", "l4"), (1, 131_072)):
        settings = {"model": name, "gpu": gpu, "tokens": tokens}
        page.evaluate("(all) => Object.entries(all).forEach(([name, value]) => shown.set(name, value))", settings)
        found = quantities(get_model(name), get_gpu(gpu), tokens, 1, "bf16")
        assert found["tokens_per_s"] == pytest.approx(get_gpu(gpu).bandwidth / found["bytes_per_sequence"], rel=1e-12)
        said = page.locator(f"{ROOT_OF} .mla-part-summary").inner_text()
        assert f"at most {digits(found['tokens_per_s'])} tokens/s from one GPU" in said
        assert ("tokens." if tokens > 1 else "of 1 token.") in said


@pytest.mark.parametrize(
    ("name", "tokens", "batch"), [("chat", 8192, 64), ("agent", 131_072, 8), ("long", 1_048_576, 1)]
)
def test_preset_sets_what_it_says(explore, name, tokens, batch):
    page = explore("?tokens=5&batch=5")
    page.locator(f"{ROOT_OF} [name={name}]").click()
    assert (value(page, "tokens"), value(page, "batch")) == (str(tokens), str(batch))
    assert number(page, "bytes_total") == 70_272 * tokens * batch
    assert f"tokens={tokens}&batch={batch}" in page.url


def test_every_picker_of_a_model_says_what_it_is_for(explore):
    labels = (
        explore().locator(f"{ROOT_OF} select[name^=model]").evaluate_all("all => all.map(e => e.labels[0].textContent)")
    )
    assert labels == ["model", *["compare with"] * 3]


@pytest.mark.parametrize("own", OWN, ids=json.dumps)
def test_own_dimensions_count_as_in_python(explore, own):
    page = explore("?gpu=a100-80gb&batch=7")
    page.evaluate(
        """(own) => {
          shown.set("model", "own");
          for (const [name, value] of Object.entries(own)) shown.set(name, value);
        }""",
        own,
    )
    for dtype in DTYPES:
        page.evaluate("(dtype) => shown.set('dtype', dtype)", dtype)
        assert page.evaluate("explorer.read()")[0] == expected(own_model(own), "a100-80gb", 131_072, 7, dtype)


# Readers


@pytest.mark.parametrize("name", PAGES)
def test_page_shows_the_explorer_without_a_network(explore, serve, html, name):
    page = explore(base=serve(html) + name)
    page.wait_for_load_state("networkidle")
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.locator(f"{ROOT_OF} select[name=model]").select_option("llama-2-7b")
    page.locator(f"{ROOT_OF} [name=tokens]").fill("4096")
    assert number(page, "bytes_per_token") == 524_288
    assert number(page, "bytes_per_sequence") == 524_288 * 4096
    assert "Llama-2-7B keeps 524 kB for a token" in page.locator(f"{ROOT_OF} .mla-part-summary").inner_text()
    assert not [url for url in requests if not url.endswith("favicon.svg")]  # Chromium asks again at a new address


def test_what_cannot_be_known_is_said(explore):
    page = explore("?models=deepseek-67b,gemma-3-1b")
    rows = [
        page.locator(f"{ROOT_OF} [data-model={name}] tbody tr").all_inner_texts()
        for name in ("deepseek-67b", "gemma-3-1b")
    ]
    assert [row.split("\t")[1] for row in rows[0]] == ["not known"] * 3
    assert [row.split("\t")[2] for row in rows[1]] == ["–", "548 MB", "–"]  # four heads on eight GPUs
    about = page.locator(f"{ROOT_OF} .mla-part-about").inner_text()
    assert "In which format they are published is not known: DeepSeek-67B." in about
    assert "8 GPUs are more than the heads: Gemma-3-1b." in about and "Weights: Gemma-3-1b bf16." in about
    assert (
        "What fits on 8 × NVIDIA B200 180GB (HGX, DGX) is not known." in page.locator(".mla-part-summary").inner_text()
    )
    page.locator(f"{ROOT_OF} [name=weights]").select_option("bf16")
    assert number(page, "weight_bytes") == 134 * 10**9


def test_page_opened_from_disk_shows_the_explorer(explore, html):
    page = explore("?models=llama-2-7b", base=f"{html.as_uri()}/{PAGES[0]}")
    assert number(page, "bytes_per_token") == 524_288
    page.locator(f"{ROOT_OF} [name=batch]").fill("2")
    assert "batch=2" in page.evaluate("location.search")


def test_keyboard_alone_is_enough(explore):
    page = explore("?models=deepseek-v3&tokens=1024")
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
        if reached[-1] == "tokens-slider":
            for _ in range(8):
                page.keyboard.press("ArrowRight")
            assert value(page, "tokens") == "4096"
            assert page.evaluate("document.activeElement.ariaValueText") == "4,096"
        if reached[-1] == "batch":
            page.keyboard.press("ArrowUp")
            assert number(page, "bytes_total") == 2 * 4096 * 327_680
    assert reached == [
        *("model", "model-2", "model-3", "model-4", "tokens", "tokens-slider", "batch", "dtype", "gpu"),
    ]
    page.keyboard.type("NVIDIA H100")
    assert value(page, "gpu") == "h100"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowUp")
    assert value(page, "gpus") == "9"
    page.keyboard.press("Tab")
    page.keyboard.type("fp8")
    assert value(page, "weights") == "fp8"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_explorer_with_all_that_it_can_show_is_legible_and_fits(explore, serve, html, theme, width):
    query = "?models=own,deepseek-v3,gemma-3-27b,no-such-model&dtype=fp8_mla&tokens=1048576&batch=65536&gpus=1024"
    look = {"viewport": {"width": width, "height": 900}, "color_scheme": theme}
    page = explore(query, base=serve(html) + PAGES[1], **look)
    page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
    fine = {"faint": [], "small": 0, "moved": 0, "outside": [], "sideways": 0}
    assert page.locator(ROOT_OF).evaluate(LOOK) == fine


def test_one_input_is_answered_once_and_touches_no_control(explore):
    """A frame's work: results are put in place once, always as many elements, and no control is made anew."""
    page = explore("?models=deepseek-v3,llama-3.1-405b,gemma-3-27b,gpt-oss-120b")
    work = page.evaluate(
        """() => {
          const slider = shown.root().querySelector("input[type=range]");
          const observer = new MutationObserver(() => {});
          observer.observe(shown.root(), { childList: true, subtree: true });
          return Array.from({ length: 20 }, (_, i) => {
            slider.value = 10 + ((i * 7) % 80) / 8;
            slider.dispatchEvent(new Event("input", { bubbles: true }));
            const records = observer.takeRecords();
            const added = records.flatMap((record) => [...record.addedNodes].filter((node) => node.nodeType === 1));
            return {
              places: records.map((record) => record.target.className),
              elements: added.reduce((sum, element) => sum + 1 + element.querySelectorAll("*").length, 0),
            };
          });
        }"""
    )
    text = ["mla-part-summary", "mla-part-quiet mla-part-about"]
    for each in work:
        assert sorted(place for place in each["places"] if place not in text) == ["mla-kvx-results", "mla-kvx-what-if"]
    assert len({each["elements"] for each in work}) == 1
    assert work[0]["elements"] < 270
    assert number(page, "bytes_per_sequence") == 70_272 * int(value(page, "tokens"))


# The address


def test_address_restores_the_view(explore):
    page = explore()
    for name, choice in {
        "model": "own",
        "model-2": "gemma-3-27b",
        "dtype": "fp8",
        "gpu": "mi300x",
        "weights": "fp4",
    }.items():
        page.locator(f"{ROOT_OF} [name={name}]").select_option(choice)
    for name, text in {"tokens": "5000", "batch": "12", "gpus": "16", "num_layers": "9", "kv_lora_rank": "256"}.items():
        page.locator(f"{ROOT_OF} [name={name}]").fill(text)
    page.wait_for_url(re.compile("kv_lora_rank=256"))
    again = explore("?" + page.url.partition("?")[2])
    assert again.evaluate("explorer.read()") == page.evaluate("explorer.read()")
    assert value(again, "num_layers") == "9"
    assert not again.locator(f"{ROOT_OF} .mla-part-note").inner_text()
    again.locator(f"{ROOT_OF} [name=model]").select_option("llama-2-7b")
    again.wait_for_url(re.compile(r"models=llama-2-7b,gemma-3-27b,llama-3.1-70b&"))
    assert "kv_lora_rank" not in again.url


def test_untouched_explorer_leaves_the_address_alone(explore, bare):
    assert explore("#try-it").url == f"{bare}#try-it"


@pytest.mark.parametrize(
    ("query", "note", "shown"),
    [
        ("tokens=99999999999999999999999", "became 1,048,576", {"tokens": "1048576"}),
        ("tokens=-5", "tokens in a sequence: -5 became 1.", {"tokens": "1"}),
        ("tokens=1e5", "ignored “1e5”", {"tokens": "131072"}),
        ("batch=0", "sequences at once: 0 became 1.", {"batch": "1"}),
        ("batch=", "sequences at once: ignored “”", {"batch": "1"}),
        ("dtype=constructor", "dtype: ignored “constructor”", {"dtype": "bf16"}),
        ("gpus=0", "GPUs of that kind: 0 became 1.", {"gpus": "1"}),
        ("gpus=4096", "GPUs of that kind: 4096 became 1,024.", {"gpus": "1024"}),
        ("weights=toString", "weights: ignored “toString”", {"weights": "published"}),
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
def test_tampered_address_is_put_right_and_said(explore, query, note, shown):
    page = explore("?" + query)
    assert note in page.locator(f"{ROOT_OF} [role=status]").inner_text()
    for name, text in shown.items():
        assert value(page, name) == text
    assert page.locator(f"{ROOT_OF} :is(script, img)").count() == 0
    assert number(page, "bytes_per_token") > 0


def test_a_field_is_left_alone_while_the_reader_writes_in_it(explore):
    """Of 32 heads 3 is no divisor, but 32 begins with it."""
    page = explore("?models=own")
    heads = page.locator(f"{ROOT_OF} [name=num_key_value_heads]")
    heads.fill("3")
    assert "key/value heads: 3 became 2, which divides the query heads." in page.locator("[role=status]").inner_text()
    assert (heads.input_value(), number(page, "bytes_per_token")) == ("3", 32 * 2 * 2 * 2 * 128)
    heads.press_sequentially("2")
    assert (heads.input_value(), number(page, "bytes_per_token")) == ("32", 32 * 2 * 2 * 32 * 128)
    heads.fill("5")
    heads.blur()
    assert heads.input_value() == "4"
