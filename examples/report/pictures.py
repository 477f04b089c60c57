"""Takes the README's pictures of examples/report/report.html with headless Chromium, through Playwright.

    python examples/report/pictures.py        # writes page.webp and parts.webp beside the report

page.webp: a desktop, light, the front and the table. parts.webp: a phone, dark, with a point opened by keyboard; the
crops at 1:1; the slider between two files.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent
PAGE = (FOLDER / "report.html").as_uri()
DESKTOP, PHONE = (1000, 1250), (390, 844)
CROPS, SLIDER = (640, 420), (640, 408)
OPENED, LEFT, RIGHT = "qisp-s.w8a8", "robustisp.w8a8", "qisp-l.w8a8"
GAP = 16


def main() -> None:
    """Both pictures."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("needs Chromium: on Debian, apt-get install chromium")
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        save(shot(opened(browser, DESKTOP, "light")), "page.webp")

        phone = opened(browser, PHONE, "dark", at="#h-front")
        phone.locator(f'svg .point[aria-label*="{OPENED}"]').first.focus()
        crops = opened(browser, CROPS, "light", at="#h-crops")
        slider = opened(browser, SLIDER, "light", at="#s-crops h3")
        for page in (crops, slider):
            page.select_option("#image", index=1)
        for side, name in (("left", LEFT), ("right", RIGHT)):
            key = slider.locator(f"#{side} option", has_text=name).first.get_attribute("value")
            slider.select_option(f"#{side}", key)
        sheet = Image.new("RGB", (PHONE[0] + GAP + CROPS[0], PHONE[1]), "white")
        sheet.paste(shot(phone), (0, 0))
        sheet.paste(shot(crops), (PHONE[0] + GAP, 0))
        sheet.paste(shot(slider), (PHONE[0] + GAP, PHONE[1] - SLIDER[1]))
        save(sheet, "parts.webp")
        browser.close()


def opened(browser: Any, size: tuple[int, int], scheme: str, *, at: str = "h1") -> Any:
    """The page in a window of `size`, with the element `at` on top."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page.goto(PAGE)
    page.evaluate(f"document.querySelector('{at}').scrollIntoView()")
    page.wait_for_function("[...document.images].every(i => i.complete)")
    return page


def shot(page: Any) -> Image.Image:
    """What the window shows."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def save(picture: Image.Image, name: str) -> None:
    """As lossy WebP, a third of a PNG."""
    picture.save(FOLDER / name, quality=82, method=6)
    print(f"{name}: {(FOLDER / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
