"""Take the picture of a report that the README shows: the top of the page, and one label opened.

make docs-image  ->  docs/images/report.png, of the run that `make demo` leaves

The script lies beside the picture that it makes. It is no recipe of configs/, and it measures
nothing, as the scripts of benchmarks/ do. It needs Debian's chromium and chromium-driver.
"""

import argparse
import base64
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

WIDTH, MARGIN, MOST_BYTES = 1280, 12, 300_000
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")


def open_browser(profile: str) -> webdriver.Chrome:
    """Start Chromium with a profile of its own; nothing is downloaded for it."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        sys.exit("docs-image: apt-get install chromium chromium-driver")
    os.environ["SE_OFFLINE"] = "true"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=Service(driver))


def take_picture(browser: webdriver.Chrome, page: Path) -> bytes:
    """Return a PNG of the page's top, in the light theme.

    The weakest label is opened, and the picture ends below the first row of its mistakes. It has
    256 colors, which a page of text and plots can spare.
    """
    size = {"width": WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    light = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", light)
    browser.get(page.absolute().as_uri())
    browser.execute_script("document.querySelector('details.label').open = true")
    bottom = "return document.querySelector('details.label .tiles').getBoundingClientRect().bottom"
    height = round(browser.execute_script(bottom)) + MARGIN
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
    wanted = {"format": "png", "clip": clip, "captureBeyondViewport": True}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", wanted)
    colors = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB").quantize(256)
    small = io.BytesIO()
    colors.save(small, "PNG", optimize=True)
    return small.getvalue()


def main() -> None:
    """Write the picture; it must be small enough for a README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="report.html of a run")
    parser.add_argument("picture", type=Path, help="PNG to write")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as profile:
        browser = open_browser(profile)
        try:
            content = take_picture(browser, given.page)
        finally:
            browser.quit()
    if len(content) > MOST_BYTES:
        sys.exit(f"docs-image: {len(content)} bytes, more than {MOST_BYTES}")
    given.picture.write_bytes(content)
    print(f"{given.picture}: {len(content) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
