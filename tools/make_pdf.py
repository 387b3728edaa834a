"""Print the built book: _build/mla-book.pdf, all chapters in reading order with an outline and page numbers.

`python tools/make_pdf.py` takes the pages from _build/html, prints each with Chromium and joins them.
"""

import io
from pathlib import Path

import yaml
from playwright.sync_api import Browser, sync_playwright
from pypdf import PdfReader, PdfWriter

from browsers import launch

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "_build" / "html"
PDF = ROOT / "_build" / "mla-book.pdf"
LEFT_OUT = ("book/api/", "book/status")  # what changes with the code, and is searched rather than read
PAPER = {"format": "A4", "scale": 0.8, "margin": {"top": "18mm", "bottom": "20mm", "left": "16mm", "right": "16mm"}}
NUMBERS = """<style>
@page {{ size: A4; margin: 0; }}
body {{ margin: 0; font: 9pt system-ui, sans-serif; color: #635e55; }}
p {{ height: 297mm; margin: 0; padding: 284mm 16mm 0; box-sizing: border-box; text-align: center; break-after: page; }}
p:last-child {{ break-after: auto; }}</style>{pages}"""


def documents() -> list[str]:
    """What is printed, in reading order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [doc for doc in [toc["root"], *files] if not doc.startswith(LEFT_OUT)]


def printed(browser: Browser, address: str) -> tuple[str, bytes]:
    """The title of a page, and the page as a PDF."""
    page = browser.new_page(color_scheme="light", reduced_motion="reduce")
    page.goto(address, wait_until="load")
    page.evaluate("document.fonts.ready")
    title = page.evaluate("document.querySelector('h1').innerText.replace(/#$/, '').trim()")
    pdf = page.pdf(**PAPER)
    page.close()
    return title, pdf


def numbers(browser: Browser, count: int) -> PdfReader:
    """Pages that hold nothing but their number."""
    page = browser.new_page()
    page.set_content(NUMBERS.format(pages="".join(f"<p>{i}</p>" for i in range(1, count + 1))))
    pdf = page.pdf(format="A4", prefer_css_page_size=True)
    page.close()
    return PdfReader(io.BytesIO(pdf))


def join(browser: Browser, html: Path, docs: list[str]) -> PdfWriter:
    """Documents as one PDF, with an outline and numbers."""
    writer = PdfWriter()
    for doc in docs:
        title, pdf = printed(browser, (html / f"{doc}.html").as_uri())
        start = len(writer.pages)
        for page in PdfReader(io.BytesIO(pdf)).pages:
            writer.add_page(page)
        writer.add_outline_item(title=title, page_number=start)
    for page, number in zip(writer.pages, numbers(browser, len(writer.pages)).pages, strict=True):
        page.merge_page(number)
    writer.compress_identical_objects()
    return writer


def main() -> None:
    print("Printing the book ...", flush=True)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        writer = join(browser, HTML, documents())
        browser.close()
    writer.add_metadata({"/Title": "Multi-head latent attention"})
    writer.write(PDF)
    print(f"The book is at {PDF}: {len(writer.pages)} pages")


if __name__ == "__main__":
    main()
