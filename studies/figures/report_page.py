"""Draw docs/images/report.png: the first screens of a grid's report page, in headless Chromium.

    rankwise compare --tasks movies mrpc rte --methods full lora adaptive head --seeds 3 --epochs 1 --batch-size 8 \\
        --limit-train 640 --limit-eval 200 --max-length 64 --data glue --out runs/page
    python studies/figures/report_page.py runs/page
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from stored import IMAGES

HEIGHT = 1230


def main() -> None:
    page = Path(sys.argv[1]).resolve() / "report.html"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": 1240, "height": HEIGHT})
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-drawn=all]")
        tab.screenshot(path=IMAGES / "report.png")
        browser.close()


if __name__ == "__main__":
    main()
