"""The picture of a report in the README: the first screen of the quickstart's, as a browser shows it.

    hellora run quickstart                                   # 3 minutes on two cores
    python benchmarks/report_picture.py runs/quickstart      # writes docs/figures/report.png

It needs playwright (of the extra `dev`) and the Chromium of this machine.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import hellora

PICTURE = Path(__file__).parents[1] / "docs" / "figures" / "report.png"
WIDTH, HEIGHT = 1100, 760  # of the window
COLOURS = 64  # a page of text and lines needs no more


def main(run: str) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = hellora.report(run, out=Path(folder) / "report.html")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        window.goto(page.as_uri())
        window.wait_for_selector(".main-svg")
        window.screenshot(path=PICTURE)
        browser.close()
    Image.open(PICTURE).convert("RGB").quantize(COLOURS).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
