"""Take the README's picture of the cache explorer from the built landing page: `python tools/picture_explorer.py`.

Writes book/figures/explorer-light.png and explorer-dark.png; run `make book` first. Needs Chromium or Chrome.
"""

import functools
import http.server
import io
import sys
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from browsers import launch

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "_build" / "html"
FIGURES = ROOT / "book" / "figures"
WIDTH, HEIGHT, SCALE, COLOURS = 1200, 3000, 2, 64  # so high that nothing scrolls under the page's header
MARGIN, MODELS = 16, 2  # pixels around it; the models that are compared


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing of each file."""


def picture(page: Page) -> bytes:
    """The explorer as the page shows it, with its first models alone, in few colours."""
    explorer = page.locator("[data-widget]").first
    explorer.wait_for()
    for select in explorer.get_by_label("compare with").all()[MODELS - 1 :]:
        select.select_option("")
    page.add_style_tag(content='[href="#main-content"] { display: none !important; }')
    page.wait_for_timeout(1000)  # what moves has come to rest
    box, last = explorer.bounding_box(), explorer.locator(".mla-kvx-model").nth(MODELS - 1).bounding_box()
    assert box is not None and last is not None
    clip = {
        "x": box["x"] - MARGIN,
        "y": box["y"] - MARGIN,
        "width": box["width"] + 2 * MARGIN,
        "height": last["y"] + last["height"] - box["y"] + 2 * MARGIN,
    }
    found = Image.open(io.BytesIO(page.screenshot(clip=clip, animations="disabled")))
    small = found.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    file = io.BytesIO()
    small.save(file, "png", optimize=True)
    return file.getvalue()


def main() -> None:
    page = BUILT / "book" / "index.html"
    if not page.is_file():
        sys.exit(f"expected {page}, which `make book` builds")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(BUILT)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        chromium = launch(playwright)
        for scheme in ("light", "dark"):
            context = chromium.new_context(
                viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE, color_scheme=scheme
            )
            opened = context.new_page()
            opened.goto(f"http://127.0.0.1:{server.server_port}/book/index.html")
            target = FIGURES / f"explorer-{scheme}.png"
            target.write_bytes(picture(opened))
            print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} kB")
            context.close()
        chromium.close()
    server.shutdown()


if __name__ == "__main__":
    main()
