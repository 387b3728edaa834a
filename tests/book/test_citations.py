"""No two papers are cited by the same words."""

import re
import sys
from pathlib import Path

from pybtex.database import parse_string

sys.path.append(str(Path(__file__).resolve().parents[2] / "book" / "_ext"))

from citations import Bibliography, register, tell_apart

BOOKS = """
@misc{one, author = {{Some Lab}}, year = {2024}, title = {Words}}
@misc{two, author = {{Some Lab}}, year = {2024}, title = {{A Model}}}
@misc{three, author = {{Some Lab}}, year = {2025}, title = {Others}}
@misc{four, author = {Lee, A. and Ray, B. and Doe, C.}, year = {2024}, title = {First}}
@misc{five, author = {Lee, X. and Doe, C. and Ray, B.}, year = {2024}, title = {Second}}
@misc{six, author = {Lee, A. and Ray, B.}, year = {2024}, title = {Third}}
"""


def test_years_that_would_read_alike_have_letters_by_title():
    entries = parse_string(BOOKS, "bibtex").entries
    for _ in range(2):  # a second build finds the first one's letters
        tell_apart(entries.values())
        assert [entry.fields["year"] for entry in entries.values()] == [
            "2024b", "2024a", "2025", "2024a", "2024b", "2024",
        ]  # fmt: skip


def test_teams_stand_among_the_persons():
    register()
    entries = parse_string(BOOKS + "@misc{seven, author = {Zhou, K.}, year = {2024}, title = {Last}}", "bibtex").entries
    found = [str(entry.persons["author"][0]) for entry in Bibliography().sort(entries.values())]
    assert found == ["Lee, A.", "Lee, A.", "Lee, X.", *["{Some Lab}"] * 3, "Zhou, K."]


def test_words_of_a_citation_lead_to_one_paper(html):
    papers = {}
    for page in html.glob("book/*.html"):
        for target, words in re.findall(
            r'href="bibliography\.html#(id\d+)"[^>]*>([^<]*, \d{4}\w?)<', page.read_text(encoding="utf-8")
        ):
            papers.setdefault(words, set()).add(target)
    assert len(papers) > 30
    assert not {words: found for words, found in papers.items() if len(found) > 1}
