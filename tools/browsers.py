"""The browser that the tests and the tools drive."""

import shutil

from playwright.sync_api import Browser, Playwright

# First the one without windows: a page costs it a third of the processor time.
NAMES = (
    "chromium-headless-shell",
    "chrome-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")


def find_browser() -> str:
    """The path of the first of ``NAMES`` that is on PATH; raises ``FileNotFoundError`` if none is."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise FileNotFoundError(f"no browser: install Chromium or Chrome (looked for {', '.join(NAMES)} on PATH)")
    return found


def launch(playwright: Playwright, *options: str) -> Browser:
    """Start it without a window; it asks no host for anything by itself. Raises what ``find_browser`` raises."""
    return playwright.chromium.launch(
        executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu", *QUIET, *options]
    )
