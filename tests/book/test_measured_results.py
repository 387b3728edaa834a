"""The measured results in a browser: they show what Python computes, fit any width, and have no bar without a time."""

import itertools
import json
import math
from pathlib import Path

import pytest

from mla_edu.bench.grid import Case
from mla_edu.bench.results import (
    Limits,
    Machine,
    Measurement,
    Results,
    kernel_sources,
    layer_steps,
)
from mla_edu.book.widgets import MeasuredResults
from mla_edu.book.widgets.measured_results import quantities, sentence, times

LOOK = Path(__file__).with_name("look.js").read_text(encoding="utf-8").rstrip(";\n")
CONTROLS = ["machine", "dtype", "heads", "s_q", "context", "batch"]
LIMITS = Limits(copy_bytes_per_s=3.9e12, matmul_flop_per_s=7.1e14)
# A kernel takes its share of the limit's time and a few microseconds; these are nobody's measurements.
FACTORS = {"ours": 1.21, "sglang": 2.63, "eager": 11.7, "a <b>kernel</b> with_a_name_that_does_not_end_soon": 1.13}
MISSING = "not installed: No module named 'flashinfer'"


def measure(case, name):
    if name == "ours" and case.context == 4096 and case.batch == 8:
        return Measurement(case=case, kernel=name, why_not="out of memory")
    time = FACTORS[name] * LIMITS.microseconds(case) + 5.3
    return Measurement(case=case, kernel=name, microseconds=time, error=1e-3)


def synthetic():
    """Results that nobody measured, of an earlier kernel."""
    axes = itertools.product((16, 128), (1, 2), (1024, 4096, 131072), (1, 8), ("bf16", "fp8_mla"))
    cases = [Case(heads=h, s_q=q, context=c, batch=b, dtype=d) for h, q, c, b, d in axes if (h, c) != (128, 1024)]
    return Results(
        machine=Machine(name="Test GPU", multiprocessors=7, memory_bytes=10**11, l2_bytes=10**7, driver="1.2"),
        versions={"torch": "9.9"},
        date="2001-02-03",
        sources=kernel_sources()[::-1],
        toy=False,
        limits=LIMITS,
        floor_microseconds=2.5,
        kernels=dict.fromkeys(FACTORS, "1") | {"flashinfer": MISSING},
        measurements=[measure(case, name) for case in cases for name in FACTORS],
    )


@pytest.fixture(scope="module")
def widgets():
    """One with a GPU that was measured, and one with the CPU alone."""
    return {"test": MeasuredResults([synthetic()], layer_steps()), "real": MeasuredResults([], layer_steps())}


@pytest.fixture(scope="module")
def bare(bare_page, widgets):
    """The address of a page for each widget, alone."""
    return {name: bare_page(widget) for name, widget in widgets.items()}


def bars(page, kind):
    return page.locator(f"[data-bar={kind}] .mla-measured-bar")


READ = """(grid) => grid.map((choice) => {
  for (const [name, value] of Object.entries(choice))
    shown.set(name, value);
  const rows = [...shown.root().querySelectorAll("[data-bar]:not([data-bar=limit])")];
  return {
    numbers: shown.read(),
    times: rows.map((row) => [row.querySelector("dt").textContent,
      row.dataset.time ? Number(row.dataset.time) : row.querySelector("dd").textContent]),
    bars: rows.filter((row) => row.querySelector(".mla-measured-bar")).length,
    sentence: shown.root().querySelector(".mla-part-summary").textContent,
    about: shown.root().querySelector(".mla-part-about").textContent,
  };
})"""


@pytest.mark.parametrize("name", ["test", "real"])
def test_page_shows_what_python_computes(open_page, bare, widgets, name):
    """Every choice of what was measured."""
    grid = [
        (machine, dict(zip(machine["axes"], values, strict=True)))
        for machine in json.loads(widgets[name].data)["machines"]
        for values in itertools.product(*machine["axes"].values())
    ]
    shown = open_page(bare[name]).evaluate(READ, [{"machine": machine["name"], **choice} for machine, choice in grid])
    assert len(shown) == len(grid) > 5
    for (machine, choice), found in zip(grid, shown, strict=True):
        where = machine["name"], choice
        taken = times(machine, choice)
        wanted = {name: math.nan if n is None else n for name, n in quantities(machine, choice).items()}
        numbers = {name: float(value or "nan") for name, value in found["numbers"].items()}
        assert numbers == pytest.approx(wanted, rel=1e-12, nan_ok=True), where
        assert found["times"] == [list(each) for each in taken.items()], where
        assert found["bars"] == sum(isinstance(time, float) for time in taken.values()), where
        assert (found["sentence"], found["about"]) == (sentence(machine, choice), machine["about"]), where


def test_a_layer_is_drawn_so_that_its_own_bar_can_be_seen(open_page, bare):
    page = open_page(bare["real"])
    page.evaluate("shown.set('context', 16384)")
    assert page.locator("[name=machine] option").all_inner_texts() == ["CPU, a whole layer"]
    ours, limit = (bars(page, kind).bounding_box()["width"] for kind in ("ours", "limit"))
    assert ours > limit > 15
    assert page.locator("[data-bar=limit] dt").inner_text().startswith("limit, measured")


def test_kernels_without_a_time_say_why(open_page, bare):
    page = open_page(bare["test"])
    said = page.locator("[data-bar=peer]", has_text="flashinfer").locator("dd")
    assert said.inner_text() == MISSING
    assert page.locator(".mla-part-about").inner_text().startswith("Measured with an earlier kernel.")
    page.evaluate("shown.set('context', 4096)")
    assert page.locator("[data-bar=ours] dd").inner_text() == "out of memory"
    assert page.locator(".mla-part-summary").inner_text().startswith("ours: out of memory. What this machine’s")
    page.evaluate("shown.set('heads', 128)")
    page.evaluate("shown.set('context', 1024)")
    assert page.locator("[data-bar=ours] dd").inner_text() == "not measured for this choice"
    assert bars(page, "peer").count() == 0


def test_bars_are_as_long_as_the_times_and_cut_far_beyond_ours(open_page, bare):
    page = open_page(bare["test"])

    def look(row):
        return row.evaluate(
            "e => [Number(e.dataset.time), e.querySelector('.mla-measured-bar').getBoundingClientRect().width]"
        )

    time, width = look(page.locator("[data-bar=ours]"))
    for row in (page.locator("[data-bar=peer]", has_text="sglang"), page.locator("[data-bar=limit]")):
        other, its_width = look(row)
        assert its_width / width == pytest.approx(other / time, rel=0.01)
    eager = page.locator("[data-bar=peer]", has_text="eager")
    other, its_width = look(eager)
    assert other > 6 * time
    assert its_width / width == pytest.approx(6, rel=0.01)
    assert "ms" in eager.inner_text()
    assert "A bar that fades goes on beyond the scale." in page.locator("[data-widget]").inner_text()


def test_names_from_files_are_text(open_page, bare, widgets):
    page = open_page(bare["test"])
    assert page.locator("[data-widget] b").count() == 0
    assert page.locator("[data-bar=peer] dt", has_text="a <b>kernel</b>").count() == 1


def test_another_machine_keeps_what_it_has_and_says_what_moved(open_page, bare):
    page = open_page(bare["test"])
    machine, note = page.locator("[name=machine]"), page.locator("[role=status]")
    page.locator("[name=batch]").select_option("8")
    machine.select_option("cpu")
    assert note.inner_text() == "cached tokens: 131,072 became 16,384; batch: 8 became 1, the nearest here."
    assert page.locator("[name=batch] option").all_inner_texts() == ["1"]
    page.locator("[name=dtype]").select_option("fp32")
    assert not note.inner_text()
    machine.select_option("test-gpu")
    assert note.inner_text() == "cache: fp32 became bf16; cached tokens: 16,384 became 4,096, the nearest here."
    assert [page.locator(f"[name={name}]").input_value() for name in CONTROLS] == [
        "test-gpu",
        "bf16",
        "16",
        "1",
        "4096",
        "1",
    ]


def test_keyboard_changes_a_choice_and_stays_in_place(open_page, bare):
    page = open_page(bare["test"])
    before = page.evaluate("shown.read()")
    page.locator("[name=context]").focus()
    page.keyboard.press("Home")
    assert float(page.evaluate("shown.read()")["cache_bytes"]) < float(before["cache_bytes"])
    assert page.evaluate("document.activeElement.name") == "context"


def test_long_names_and_reasons_fit_any_width(open_page, bare):
    page = open_page(bare["test"])
    machines = page.locator("[name=machine] option").evaluate_all("all => all.map(e => e.value)")
    for machine, width in itertools.product(machines, (1280, 390)):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(f"shown.set('machine', '{machine}')")
        look = page.locator("[data-widget=measured-results]").evaluate(LOOK)
        assert look == {"faint": [], "small": 0, "moved": 0, "outside": [], "sideways": 0}, (machine, width)
