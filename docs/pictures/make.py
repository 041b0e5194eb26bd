"""Take the README's pictures of the report: its verdict, in Persian and in English.

    make pictures                               # of the newest demo in runs/
    python docs/pictures/make.py STUDY_FOLDER   # of another study
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1100, "height": 760}
SETTLE_MS = 500


def newest_demo() -> Path:
    """The newest finished study in runs/."""
    reports = sorted(Path("runs").glob("*/report.html"), key=lambda path: path.stat().st_mtime)
    if not reports:
        sys.exit("no study in runs/: run `make demo` first, or name a study folder")
    return reports[-1].parent


def take(study: Path) -> list[Path]:
    """Screenshots of the report of a study, one in each language."""
    browser_path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser_path is None:
        sys.exit("no Chromium on this machine: install one (Debian: apt-get install chromium)")
    pictures = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto((study / "report.html").absolute().as_uri())
        for language in ("fa", "en"):
            page.evaluate(f"document.getElementById('show-{language}').click()")
            page.wait_for_timeout(SETTLE_MS)  # the layout changes direction
            page.evaluate("document.getElementById('main').scrollIntoView()")
            page.wait_for_timeout(SETTLE_MS)
            picture = HERE / f"report.{language}.png"
            page.screenshot(path=picture)
            pictures.append(picture)
        browser.close()
    return pictures


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else newest_demo()
    for path in take(folder):
        print(path)
