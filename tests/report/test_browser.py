"""The page in a real Chromium, from a file: it works, it fits, and hostile names are text."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import demo_data
import pytest
from conftest import Promise, lacking
from hostile import ASK, HOSTILE, XSS
from report_evidence import plausible
from selenium import webdriver
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from mlfinetune.data.images.decode import make_thumbnail
from mlfinetune.report import Report, build, place_maps, read_pictures, render
from mlfinetune.report.heat import list_wanted
from mlfinetune.report.words import replace_unprintable
from mlfinetune.runs.heat_maps import HeatMaps, PictureMaps

pytestmark = pytest.mark.browser
WIDTHS, THEMES = (320, 768, 1400), ("light", "dark")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Return one session for the module, with its own profile; nothing is downloaded for it."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        lacking("no chromium and chromedriver on PATH: apt-get install chromium chromium-driver")
    os.environ["SE_OFFLINE"] = "true"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return addresses of a plain page with drawn pictures, and of a hostile one."""
    folder = tmp_path_factory.mktemp("pages")
    demo_data.write(folder, count=60)
    names = tuple(sorted(str(path.relative_to(folder)) for path in folder.glob("images/*")))
    labels = ("dog", "cat", "red panda", *(f"label {n}" for n in range(17)))
    hostile_names = tuple(f"{name} {n}" for n, name in enumerate(HOSTILE * 2))
    reports = {
        "plain": build(plausible(60, labels, names)),
        "hostile": build(plausible(80, HOSTILE, hostile_names, title=HOSTILE[1])),
    }
    for name, report in reports.items():
        report = place_maps(report, build_maps(report))
        shown = read_pictures(report, lambda n, side: make_thumbnail(folder / n, side, 10**6))
        (folder / f"{name}.html").write_text(render(shown), encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in reports}


def build_maps(report: Report) -> HeatMaps:
    """Return a map for each picture and label: strong at the lower right, nothing at the left."""
    square = (0.0, 0.0, 1.0, 1.0)
    return HeatMaps(
        {
            index: PictureMaps(64, 64, square, dict.fromkeys(columns, "AAAAAgAA/"))
            for index, columns in list_wanted(report, 10**6).items()
        }
    )


@pytest.fixture
def plain(chromium: webdriver.Chrome, pages: dict[str, str]) -> webdriver.Chrome:
    """Return the browser, at the plain page, newly loaded."""
    chromium.get("about:blank")
    chromium.get(pages["plain"])
    return chromium


def emulate(browser: webdriver.Chrome, width: int, theme: str) -> None:
    """A window of `width` pixels in a theme."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)


def column(browser: webdriver.Chrome, number: int, shown: bool = False) -> list[str]:
    """Return the texts of one column of the label table; of the rows that are shown, or of all."""
    rows = "[...document.querySelectorAll('#label-table tbody tr')]"
    shown_only = ".filter(row => row.offsetParent)" if shown else ""
    script = f"return {rows}{shown_only}.map(row => row.cells[{number}].textContent.trim())"
    return list(browser.execute_script(script))


def requests(browser: webdriver.Chrome) -> set[str]:
    """Return addresses asked for since the last call, but for data.

    Left out too is what the browser's own first tab still loads: no page can ask for `chrome:`.
    """
    events: list[dict[str, Any]] = [
        json.loads(entry["message"])["message"] for entry in browser.get_log("performance")
    ]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    urls = {params["request"]["url"] for params in sent}
    return {url for url in urls if not url.startswith(("data:", "about:", "chrome:"))}


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_it_opens_from_a_file_and_asks_for_nothing(
    chromium: webdriver.Chrome, pages: dict[str, str], name: str
) -> None:
    """No error, no breach of its policy, no request but for itself, with everything opened."""
    requests(chromium)
    chromium.get_log("browser")
    chromium.get(pages[name])
    chromium.find_element(By.ID, "all").click()
    opened = "return document.querySelectorAll('details.label[open]').length"
    assert chromium.execute_script(opened) == len(column(chromium, 0))
    assert chromium.get_log("browser") == []
    assert requests(chromium) == {pages[name]}


def test_pictures_are_drawn(plain: webdriver.Chrome) -> None:
    """The policy lets the thumbnails through: they decode, at their size."""
    plain.find_element(By.ID, "all").click()
    script = """
        const done = arguments[0], picture = new Image();
        picture.onload = () => done(picture.naturalWidth);
        picture.onerror = () => done(0);
        const tile = document.querySelector(".pic:not(.none)");
        picture.src = getComputedStyle(tile).backgroundImage.slice(5, -2);
    """
    assert plain.execute_async_script(script) == 64


def test_sorting(plain: webdriver.Chrome) -> None:
    """A heading sorts both ways and says so; the weakest label is first to begin with."""
    emulate(plain, 1400, "light")
    assert column(plain, 2) == sorted(column(plain, 2))
    heading = plain.find_element(By.CSS_SELECTOR, "#label-table th:nth-child(5)")
    button = heading.find_element(By.TAG_NAME, "button")
    for direction in ("ascending", "descending"):
        button.send_keys(Keys.ENTER)
        assert heading.get_attribute("aria-sort") == direction
        values = [float(text) for text in column(plain, 4)]
        assert values == sorted(values, reverse=direction == "descending")
    assert len(plain.find_elements(By.CSS_SELECTOR, "#label-table [aria-sort]")) == 1


def test_names_sort_as_people_count(plain: webdriver.Chrome) -> None:
    """`label 2` comes before `label 10`."""
    plain.find_element(By.CSS_SELECTOR, "#label-table th button").click()
    assert column(plain, 0) == ["cat", "dog", *(f"label {n}" for n in range(17)), "red panda"]


def test_searching(plain: webdriver.Chrome) -> None:
    """Typed text filters rows and details, counts them, and leaves no trace when cleared."""
    field = plain.find_element(By.ID, "search")
    field.send_keys("PAN")
    assert column(plain, 0, shown=True) == ["red panda"]
    assert plain.find_element(By.ID, "found").text == "1 of 20 labels"
    details = plain.find_elements(By.CSS_SELECTOR, "details.label")
    assert sum(one.is_displayed() for one in details) == 1
    field.send_keys(Keys.BACKSPACE * 3)
    assert len(column(plain, 0, shown=True)) == 20


def test_a_detail_opens_by_keyboard(plain: webdriver.Chrome) -> None:
    """Tab reaches a label's link, Enter opens its detail and moves the focus there."""
    plain.find_element(By.ID, "search").send_keys(Keys.TAB)
    for _ in range(20):
        focused = plain.switch_to.active_element
        if focused.find_elements(By.XPATH, "ancestor::tbody"):
            break
        focused.send_keys(Keys.TAB)
    name = focused.text
    focused.send_keys(Keys.ENTER)
    (opened,) = plain.find_elements(By.CSS_SELECTOR, "details.label[open]")
    assert opened.find_element(By.TAG_NAME, "h3").text == name
    assert opened.find_element(By.CSS_SELECTOR, ".plot svg").is_displayed()
    assert plain.switch_to.active_element.tag_name == "summary"
    plain.switch_to.active_element.send_keys(Keys.ENTER)
    assert opened.get_attribute("open") is None


def test_the_skip_link_is_first(plain: webdriver.Chrome) -> None:
    """The first stop of Tab leads past the navigation, and can be seen there."""
    plain.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    skip = plain.switch_to.active_element
    assert skip.text == "Skip to the report"
    assert skip.rect["x"] >= 0


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_it_fits(
    chromium: webdriver.Chrome, pages: dict[str, str], name: str, width: int, theme: str
) -> None:
    """With everything open the page is no wider than the window; its ground is the theme's."""
    chromium.get(pages[name])
    emulate(chromium, width, theme)
    chromium.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    overflow = "return document.scrollingElement.scrollWidth - innerWidth"
    assert chromium.execute_script(overflow) <= 0
    ground = chromium.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[theme]


HEAT = """
    const canvas = document.querySelector("details.label[open] .pic canvas");
    if (!canvas || canvas.offsetParent === null) return null;
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return [canvas.width, ...pixels.filter((_, at) => at % 4 === 3)];
"""


@pytest.mark.parametrize("theme", THEMES)
def test_where_it_looked_is_toggled(plain: webdriver.Chrome, theme: str) -> None:
    """By button and by key: maps cover their tiles, clear where nothing speaks; names say where."""
    emulate(plain, 1400, theme)
    plain.find_element(By.CSS_SELECTOR, "details.label summary").click()
    first, second = plain.find_elements(By.CSS_SELECTOR, "button.heat")
    tile = plain.find_element(By.CSS_SELECTOR, "details.label[open] .pic[data-heat]")
    name = tile.get_attribute("aria-label")
    assert plain.execute_script(HEAT) is None
    first.send_keys(Keys.ENTER)
    side, *opacity = plain.execute_script(HEAT)
    assert (side, opacity[:5], opacity[8]) == (3, [0] * 5, max(opacity))
    assert tile.find_element(By.TAG_NAME, "canvas").size == tile.size
    assert [one.get_attribute("aria-pressed") for one in (first, second)] == ["true", "true"]
    assert tile.get_attribute("aria-label") == f"{name}; strongest at the lower right"
    first.send_keys("m")
    assert plain.execute_script(HEAT) is None
    assert second.get_attribute("aria-pressed") == "false"
    assert tile.get_attribute("aria-label") == name
    plain.find_element(By.ID, "search").send_keys("m")  # a letter like any other
    assert first.get_attribute("aria-pressed") == "false"
    plain.find_element(By.ID, "search").send_keys(Keys.BACKSPACE)
    second.click()
    assert plain.execute_script(HEAT)
    assert not [entry for entry in plain.get_log("browser") if entry["level"] == "SEVERE"]


def test_headings_are_in_order(plain: webdriver.Chrome) -> None:
    """One first heading, and none skips a level."""
    script = "return [...document.querySelectorAll('h1,h2,h3,h4,h5')].map(h => +h.tagName[1])"
    levels = plain.execute_script(script)
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_plots_have_names(plain: webdriver.Chrome) -> None:
    """Chromium's accessibility tree has a name and a description for every plot."""
    plain.find_element(By.CSS_SELECTOR, "details.label summary").click()
    for plot in plain.find_elements(By.CSS_SELECTOR, "details.label[open] .plot > svg"):
        assert plot.aria_role in ("img", "image")
        assert "is" in plot.accessible_name


def test_hostile_names_run_nothing(chromium: webdriver.Chrome, pages: dict[str, str]) -> None:
    """Forty labels and eighty files are shown letter by letter; nothing runs, nothing asks."""
    chromium.get(pages["hostile"])
    chromium.find_element(By.ID, "all").click()
    for element in chromium.find_elements(By.CSS_SELECTOR, "nav a, #label-table th button"):
        element.click()
    assert chromium.execute_script("return window.__pwned") is None
    with pytest.raises(NoAlertPresentException):
        _ = chromium.switch_to.alert
    script = "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)"
    labels = chromium.execute_script(script, "#label-table bdi")
    assert set(labels) == {str(replace_unprintable(name)) for name in HOSTILE}
    files = chromium.execute_script(script, ".file bdi")
    assert set(files) <= {
        str(replace_unprintable(f"{name} {n}")) for n, name in enumerate(HOSTILE * 2)
    }
    assert len(set(files)) > 60


def attempted(browser: webdriver.Chrome) -> str:
    """Return the dialog that is open, or what was asked for beside files since the last call."""
    with contextlib.suppress(NoAlertPresentException):
        alert = browser.switch_to.alert
        text = alert.text
        alert.accept()
        return f"dialog {text}"
    return " ".join(url for url in requests(browser) if not url.startswith("file:"))


@pytest.mark.faults
def test_no_name_runs_or_asks(chromium: webdriver.Chrome, tmp_path: Path, promise: Promise) -> None:
    """P9: each of forty as label, as file and as title of a report, all of it opened."""
    failures = []
    requests(chromium)
    for at, name in enumerate(XSS):
        labels = (name, f"other {name}")
        files = tuple(f"{name} {n}.jpg" for n in range(12))
        report = build(plausible(12, labels, files, title=name))
        path = tmp_path / f"{at}.html"
        path.write_text(render(read_pictures(report, lambda *_: b"")), encoding="utf-8")
        chromium.get(path.as_uri())
        chromium.find_element(By.ID, "all").click()
        assert {str(replace_unprintable(label)) for label in labels} == set(column(chromium, 0))
        if found := attempted(chromium):
            failures.append((name, found))
    promise("P9", len(XSS), failures)


def test_what_asks_is_seen(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    """Taken for markup, those that only load something are noticed."""
    asking = [name for name in XSS if name.startswith(("<img src=http", "<link", "<style>*"))]
    for name in asking:
        path = tmp_path / "x.html"
        path.write_text(f"<!DOCTYPE html>{name}<p>text", encoding="utf-8")
        requests(chromium)
        chromium.get(path.as_uri())
        assert ASK in attempted(chromium), name
    assert len(asking) == 3


def test_without_its_script_everything_can_be_read(
    chromium: webdriver.Chrome, pages: dict[str, str]
) -> None:
    """Scripts off: controls are away, details open by a click, links lead to them."""
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chromium.get(pages["plain"])
        assert not chromium.find_element(By.ID, "search").is_displayed()
        first = chromium.find_element(By.CSS_SELECTOR, "details.label")
        first.find_element(By.TAG_NAME, "summary").click()
        assert first.find_element(By.CSS_SELECTOR, ".plot svg").is_displayed()
        assert len(column(chromium, 0)) == 20
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_printing(plain: webdriver.Chrome) -> None:
    """On paper it is light, without controls, with every detail open."""
    dark = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    plain.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        ground = plain.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(255, 255, 255)"
        assert not plain.find_element(By.TAG_NAME, "nav").is_displayed()
        heights = "[...document.querySelectorAll('.label .plot')].map(one => one.clientHeight)"
        assert min(plain.execute_script(f"return {heights}")) > 100
    finally:
        plain.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
