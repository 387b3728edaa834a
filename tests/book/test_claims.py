import re

import pytest

from mla_edu.book.claims import VERDICTS, Docket


@pytest.fixture
def docket():
    return Docket()


@pytest.mark.parametrize(
    ("holds", "verdict"),
    [
        (True, "right"),
        (False, "wrong"),
        ({"a": True, "b": True}, "right"),
        ({"a": False, "b": False}, "wrong"),
        ({"a": True, "b": False}, "true under a condition"),
    ],
)
def test_the_verdict_follows_from_the_cases(docket, holds, verdict):
    ruling = docket.rule("some-claim", "size", "a statement", holds, "a finding")
    assert ruling.verdict == verdict
    assert f"{verdict}: a finding" in repr(ruling)
    assert f'data-verdict="{verdict}"' in ruling._repr_html_()


def test_a_ruling_names_the_cases_in_which_the_statement_holds_and_fails(docket):
    text = repr(docket.rule("c", "size", "s", {"one layer": True, "all layers": False, "two": False}, "f"))
    assert text.splitlines()[1:] == ["Holds: one layer.", "Fails: all layers; two."]


@pytest.mark.parametrize(
    ("holds", "verdict"),
    [
        (True, "right"),
        ({"a": True, "b": True}, "right"),
        ({"a": True, "b": False}, "wrong"),
        ({"a": False, "b": False}, "wrong"),
    ],
)
def test_a_statement_about_all_cases_is_wrong_where_one_fails(docket, holds, verdict):
    ruling = docket.rule("c", "size", "all are", holds, "f", universal=True)
    assert ruling.verdict == verdict
    some = holds is not True and set(holds.values()) == {True, False}
    assert ("Said of all cases" in repr(ruling)) == some
    assert "Said of all cases" not in repr(docket.rule("c", "size", "some are", holds, "f"))


def test_what_was_only_read_says_so_and_names_its_source(docket):
    ruling = docket.read("c", "quality", "s", source="Table 9", finding="f")
    assert ruling.verdict == "read, not computed"
    assert "Source: Table 9." in ruling._repr_html_()


def test_the_table_is_made_from_the_rulings(docket):
    docket.rule("first", "size", "1 < 2", True, "so it is")
    docket.rule("second", "speed", "2 < 1", False, "it is not")
    page = docket._repr_html_()
    rows = re.findall(r'<tr data-verdict="(.+?)" data-topic="(.+?)"><td><a href="#claim-(.+?)">(.+?)</a>', page)
    assert rows == [("right", "size", "first", "1 &lt; 2"), ("wrong", "speed", "second", "2 &lt; 1")]
    assert docket.count() == {"right": 1, "wrong": 1, "true under a condition": 0, "read, not computed": 0}
    docket.rule("first", "size", "1 < 2", False, "changed")
    assert docket.count()["wrong"] == 2
    assert len(re.findall("<tr data-verdict", docket._repr_html_())) == 2


def test_a_row_names_the_cases_and_counts_the_rest_of_a_long_list(docket):
    docket.rule("short", "size", "s", {"V3": True, "V2, 60 layers": False}, "f")
    docket.rule("four", "size", "s", dict.fromkeys("abcd", True), "f")
    docket.rule("long", "size", "s", dict.fromkeys("abcde", False) | {"x": True}, "f")
    docket.rule("plain", "size", "s", True, "f")
    rows = re.findall(r"<td>(<span class=.mla-finding.>.*?)</td>", docket._repr_html_())
    cases = [re.sub("<.*?>", "", row.partition("<p")[2].partition(">")[2]) for row in rows]
    assert cases == ["Holds: V3. Fails: V2, 60 layers.", "Holds: a; b; c; d.", "Holds: x. Fails: a; b; c; 2 more.", ""]


def test_code_and_formulas_are_set_as_such_and_plain_where_there_is_no_page(docket):
    ruling = docket.rule("c", "size", "`num_layers` × $d_c' < n_h$", True, "through $W_UK^T$, error 1e-12, 5 kB < a_b")
    whole = '<span style="white-space: nowrap">'
    row = re.search(r"<tbody>\n(.*)\n</tbody>", docket._repr_html_())[1]
    assert f"<code>num_layers</code> × {whole}<i>d</i><sub>c</sub>′ &lt; <i>n</i><sub>h</sub></span>" in row
    finding = f"{whole}<i>W</i><sub>UK</sub><sup>T</sup></span>, error {whole}1e-12</span>, {whole}5 kB</span> &lt; a_b"
    assert finding in row and finding in ruling._repr_html_()
    assert repr(docket) == "✓ num_layers × d_c' < n_h | through W_UK^T, error 1e-12, 5 kB < a_b"
    assert "$" not in repr(ruling)


def test_the_table_offers_each_verdict_and_topic_with_its_count(docket):
    docket.rule("first", "size", "s", True, "f")
    docket.rule("second", "size", "s", False, "f")
    page = docket._repr_html_()
    assert '<option value="wrong">wrong (1)</option>' in page
    assert '<option value="size">size (2)</option>' in page
    assert '<option value="right">right (1)</option>' in page


def test_the_table_opens_with_a_bar_of_its_verdicts(docket):
    for k, holds in enumerate([True, True, True, False, {"a": True, "b": False}]):
        docket.rule(f"claim-{k}", "size", "s", holds, "f")
    page = docket._repr_html_()
    assert re.findall(r'<span data-verdict="(.+?)" style="flex: (\d+)">', page) == [
        ("right", "3"), ("wrong", "1"), ("true under a condition", "1"), ("read, not computed", "0"),
    ]  # fmt: skip
    assert page.index("mla-tally") < page.index("<select") < page.index("<table")


def test_a_verdict_is_a_sign_and_a_word_in_a_colour_of_its_own(docket):
    docket.rule("first", "size", "s", False, "f")
    page = docket._repr_html_()
    colours = dict(re.findall(r'\[data-verdict="(.+?)"\] { --verdict: var\((--mla-\w+), #\w{6}\); }', page))
    assert list(colours) == list(VERDICTS) and len(set(colours.values())) == len(VERDICTS)
    assert '<tr data-verdict="wrong"' in page and "<td><b>✗</b> wrong</td>" in page
    for verdict, sign in VERDICTS.items():
        assert f'<li data-verdict="{verdict}"><b>{sign}</b> {docket.count()[verdict]} {verdict}</li>' in page


@pytest.mark.parametrize("anchor", ["", "Upper", "two words", "-x", "a_b", 'a"b'])
def test_an_anchor_that_cannot_be_linked_to_is_refused(docket, anchor):
    with pytest.raises(ValueError, match="expected lower-case words joined by hyphens"):
        docket.rule(anchor, "size", "s", True, "f")
    assert not docket.rulings


def test_a_case_must_be_true_or_false(docket):
    with pytest.raises(TypeError, match="holds is 576 for 'V3'; expected True or False"):
        docket.rule("c", "size", "s", {"V3": 576}, "f")
    with pytest.raises(TypeError, match="holds is None; expected True or False"):
        docket.rule("c", "size", "s", None, "f")


def test_a_statement_without_a_case_or_a_source_is_refused(docket):
    with pytest.raises(ValueError, match="holds is empty"):
        docket.rule("c", "size", "s", {}, "f")
    with pytest.raises(ValueError, match="source is empty"):
        docket.read("c", "size", "s", source="", finding="f")
