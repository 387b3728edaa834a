"""The chapter that puts claims on trial: its table agrees with its cells, links to them, and can be filtered."""

import pytest

ROWS = """() => [...document.querySelectorAll(".mla-docket tbody tr")].map((row) => ({
  shown: getComputedStyle(row).display !== "none",
  verdict: row.dataset.verdict,
  topic: row.dataset.topic,
  finding: row.querySelector(".mla-finding").textContent,
  cases: row.querySelector(".mla-cases")?.textContent ?? "",
  target: row.querySelector("a").hash.slice(1),
}))"""
RULING = """(target) => {
  const anchor = document.getElementById(target);
  const section = anchor?.closest("section");
  if (!section || !/^H3$/.test(section.querySelector("h1, h2, h3, h4")?.tagName)) return null;
  const rulings = [...section.querySelectorAll(".mla-ruling")];
  return rulings.map((ruling) => ({ verdict: ruling.dataset.verdict, text: ruling.textContent }));
}"""


@pytest.fixture
def page(browser, serve, html):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, java_script_enabled=False)
    page = context.new_page()
    page.goto(serve(html) + "book/claims-on-trial.html")
    yield page
    context.close()


def shown(page):
    return [row for row in page.evaluate(ROWS) if row["shown"]]


def test_every_row_links_to_the_section_whose_ruling_it_repeats(page):
    rows = page.evaluate(ROWS)
    assert len(rows) >= 30 and all(row["cases"] for row in rows if row["verdict"] == "true under a condition")
    assert len({row["target"] for row in rows}) == len(rows)
    for row in rows:
        (ruling,) = page.evaluate(RULING, row["target"])
        assert ruling["verdict"] == row["verdict"], row["target"]
        assert row["finding"] in ruling["text"], row["target"]
        assert row["cases"].split(";")[0].split(". Fails")[0].rstrip(".") in ruling["text"], row["target"]


def test_every_ruling_in_a_section_of_its_own_is_in_the_table(page):
    anchors = page.locator("[id^=claim-]").evaluate_all("anchors => anchors.map((anchor) => anchor.id)")
    assert sorted(anchors) == sorted(row["target"] for row in page.evaluate(ROWS))


def test_the_whole_table_shows_without_a_script(page):
    assert shown(page) == page.evaluate(ROWS)


def test_the_table_can_be_filtered_by_verdict_and_topic(page):
    rows = page.evaluate(ROWS)
    for key in ("verdict", "topic"):
        choices = {row[key] for row in rows}
        assert len(choices) > 3
        for choice in choices:
            page.select_option(f"[data-filter={key}]", choice)
            assert shown(page) == [row for row in rows if row[key] == choice]
        page.select_option(f"[data-filter={key}]", index=0)
    page.select_option("[data-filter=verdict]", "wrong")
    page.select_option("[data-filter=topic]", "cache size")
    both = [row for row in rows if (row["verdict"], row["topic"]) == ("wrong", "cache size")]
    assert shown(page) == [{**row, "shown": True} for row in both]
    assert 0 < len(both) < len(rows)


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_lists_stay_in_sight_above_the_rows(browser, serve, html, width, height):
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(serve(html) + "book/claims-on-trial.html")
    page.evaluate("""() => {
      const row = document.querySelector(".mla-docket tbody tr:nth-child(40)").getBoundingClientRect();
      scrollTo({ top: scrollY + row.top - innerHeight / 2, behavior: "instant" });
    }""")
    page.wait_for_timeout(100)
    seen = page.locator("[data-filter]").evaluate_all("""lists => lists.map((list) => {
      const { left, top, width, height } = list.getBoundingClientRect();
      const [x, inside] = [left + width / 2, [2, height / 2, height - 2]];
      return top < innerHeight / 4 && inside.every((y) => document.elementFromPoint(x, top + y) === list);
    })""")
    assert seen == [True, True]
    page.close()


def test_the_choice_stands_in_the_address(browser, serve, html):
    page = browser.new_page()
    page.goto(serve(html) + "book/claims-on-trial.html?verdict=wrong&topic=no-such-topic&other=x#claims")
    assert page.locator("[data-filter=verdict]").input_value() == "wrong"
    assert {row["verdict"] for row in shown(page)} == {"wrong"} and len(shown(page)) > 5
    page.select_option("[data-filter=topic]", "cache size")
    page.select_option("[data-filter=verdict]", index=0)
    assert page.evaluate("location.search + location.hash") == "?topic=cache+size&other=x#claims"
    assert {row["topic"] for row in shown(page)} == {"cache size"}
    page.close()
