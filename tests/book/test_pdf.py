"""The whole book as one PDF: every chapter in its order, each page with its number."""

import io
from pathlib import Path

from pypdf import PdfReader

import make_pdf

BOOK = Path(__file__).resolve().parents[2] / "book"


def test_every_chapter_is_printed_and_the_landing_page_first():
    documents = make_pdf.documents()
    assert documents[0] == "book/index"
    assert {f"book/{path.stem}" for path in BOOK.glob("*.ipynb")} < set(documents)
    assert not [doc for doc in documents if "/api/" in doc]


def test_printed_pages_are_joined_with_an_outline_and_numbers(browser, html):
    file = io.BytesIO()
    make_pdf.join(browser, html, ["book/bibliography", "book/notation"]).write(file)
    pdf = PdfReader(file)
    assert [item.title for item in pdf.outline] == ["Bibliography", "Notation"]
    first, second = (pdf.get_destination_page_number(item) for item in pdf.outline)
    assert first == 0 < second < len(pdf.pages)
    assert "Formulas use the letters" in pdf.pages[second].extract_text()
    for number, page in enumerate(pdf.pages, start=1):
        assert page.extract_text().split()[-1] == str(number)
