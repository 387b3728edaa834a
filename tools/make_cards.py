"""Draw what a link to a page shows, book/_static/cards/SLUG.png, and the book's icon for a phone.

`python tools/make_cards.py [SLUG ...]` draws the cards of the chapters named, or of all and of the landing page. A card
holds the chapter's title, its question and its first figure; the first two are written into the file too, so that a
test sees an old card.
"""

import io
import json
import re
import sys
from html import escape
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import sync_playwright

from browsers import launch

BOOK = Path(__file__).resolve().parents[1] / "book"
NAME = "Multi-head latent attention"
LANDING = {  # the landing page has its own words
    "title": NAME,
    "question": "A free book that runs: from equations to a decode kernel.",
    "figure": (BOOK / "figures" / "data-flow.svg").read_text(encoding="utf-8"),
}
CARDS = BOOK / "_static" / "cards"
SIZE = 1200, 630
COLOURS = 128
PAGE = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="../book.css"><style>
@font-face {{ font-family: Book; src: url("{fonts}/source-serif-4-latin-wght-normal.woff2"); font-weight: 200 900; }}
* {{ box-sizing: border-box; margin: 0; }}
body {{ width: 1200px; height: 630px; padding: 44px 52px; display: grid; gap: 0 44px;
  grid: auto auto 1fr auto / minmax(0, 1fr) minmax(0, 1fr);
  background: var(--pst-color-background); color: var(--pst-color-text-base);
  font: 34px/1.3 Book, serif;  border-top: 14px solid var(--mla-query); }}
h1 {{ font-size: 70px; font-weight: 600; line-height: 1.08; letter-spacing: -0.01em; margin: 8px 0 28px; }}
main {{ grid-area: 1 / 2 / 5 / 3; min-height: 0; display: flex; justify-content: center; align-items: center; }}
main svg {{ width: 100%; height: 100%; color: inherit; font-family: Book, serif; }}
footer {{ grid-area: 4 / 1; font-size: 26px; color: var(--pst-color-text-muted);
  display: flex; gap: 16px; align-items: center; }}
footer svg {{ width: 40px; height: 40px; }}
</style><h1>{title}</h1><p>{question}</p><main>{figure}</main><footer>{logo} {name}</footer>"""

ICON = """<!doctype html><style>
body {{ margin: 0; padding: 26px; background: #fffefb; }} svg {{ width: 128px; height: 128px; }}
</style>{logo}"""


def words(slug: str) -> tuple[str, str]:
    """The title of a chapter and the question with which it opens."""
    notebook = json.loads((BOOK / f"{slug}.ipynb").read_text(encoding="utf-8"))
    text = "".join(notebook["cells"][0]["source"])
    title = re.search(r"^# (.+)$", text, re.MULTILINE)[1]
    return title, " ".join(re.search(r"\*\*(.+?)\*\*", text, re.DOTALL)[1].split())


def figure(slug: str) -> str:
    """The first figure of a chapter that does not move, as SVG, or nothing."""
    for cell in json.loads((BOOK / f"{slug}.ipynb").read_text(encoding="utf-8"))["cells"]:
        linked = re.search(r"figures/[\w-]+\.svg", "".join(cell["source"]))
        if cell["cell_type"] == "markdown" and linked:
            svg = (BOOK / linked[0]).read_text(encoding="utf-8")
            if "<script" not in svg:
                return svg
        for output in cell.get("outputs", ()):
            if "image/svg+xml" in output.get("data", {}):
                svg = "".join(output["data"]["image/svg+xml"])
                return svg[svg.index("<svg") :]
    return ""


def save(png: bytes, path: Path, **said: str) -> None:
    """Write a picture in few colours, with what it says."""
    info = PngInfo()
    for key, text in said.items():
        info.add_itxt(key, text)
    picture = (
        Image.open(io.BytesIO(png))
        .convert("RGB")
        .quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    picture.save(path, optimize=True, pnginfo=info)


def card(slug: str) -> dict[str, str]:
    """What a card shows."""
    if slug == "index":
        return LANDING
    title, question = words(slug)
    return {"title": title, "question": question, "figure": figure(slug)}


def main(slugs: list[str]) -> None:
    CARDS.mkdir(exist_ok=True)
    logo = (BOOK / "_static" / "logo-light.svg").read_text(encoding="utf-8")
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        shell = CARDS / "card.html"  # a file, so that it may read the fonts
        for slug in slugs:
            shown = card(slug)
            fields = {"title": escape(shown["title"]), "question": escape(shown["question"]), "figure": shown["figure"]}
            shell.write_text(PAGE.format(fonts="../fonts", name=NAME, logo=logo, **fields), encoding="utf-8")
            page.goto(shell.as_uri())
            page.evaluate("document.fonts.ready")
            path = CARDS / f"{slug}.png"
            save(page.screenshot(), path, Title=shown["title"], Question=shown["question"])
        shell.write_text(ICON.format(logo=logo), encoding="utf-8")
        page.goto(shell.as_uri())
        page.set_viewport_size({"width": 180, "height": 180})
        save(page.screenshot(), BOOK / "_static" / "icon-180.png")
        shell.unlink()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:] or ["index", *sorted(path.stem for path in BOOK.glob("*.ipynb"))])
