"""The page as text: escaped, sealed by its own policy, self-contained, and small."""

import base64
import hashlib
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import demo_data
import numpy as np
import pytest
from hostile import HOSTILE
from PIL import Image
from report_evidence import evidence, plausible

from mlfinetune.data.images.decode import make_thumbnail
from mlfinetune.data.images.overlay import ALPHABET
from mlfinetune.report import build, place_maps, read_pictures, render
from mlfinetune.report.heat import list_wanted
from mlfinetune.report.words import format_number
from mlfinetune.runs.heat_maps import HeatMaps, PictureMaps


class Page(HTMLParser):
    """Tags with their attributes, and the text of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"style": [], "script": []}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in self.inline and data.strip():
            self.inline[self.tags[-1][0]].append(data)

    def all(self, attribute: str) -> list[str]:
        """Its values, wherever it stands."""
        return [str(attrs[attribute]) for _, attrs in self.tags if attribute in attrs]


@cache
def hostile_page() -> str:
    """Return a page whose title, labels, files and protocol are hostile."""
    given = plausible(200, HOSTILE, tuple(f"{HOSTILE[n % 40]}{n}" for n in range(200)))
    about = tuple((text, text) for text in HOSTILE)
    return render(build(replace(given, title=HOSTILE[1], about=about)))


@cache
def plain_page() -> str:
    """Return a page of equal shape with plain names."""
    labels = tuple(f"label {n}" for n in range(40))
    given = plausible(200, labels, tuple(f"images/{n}.jpg" for n in range(200)))
    return render(build(replace(given, about=tuple(("a", "b") for _ in HOSTILE))))


def test_names_are_text() -> None:
    """Forty hostile names give the very same elements and attributes as plain ones."""
    hostile, plain = (
        [(tag, sorted(attrs)) for tag, attrs in Page(text).tags]
        for text in (hostile_page(), plain_page())
    )
    assert hostile == plain
    assert Page(hostile_page()).all("href") == Page(plain_page()).all("href")
    hostile_page().encode()  # half surrogates would not be UTF-8


def test_the_policy_lets_its_own_style_and_script_alone() -> None:
    """The hashes are those of the one style and the one script; nothing else may run or load."""
    page = Page(hostile_page())
    (policy,) = [str(a["content"]) for t, a in page.tags if t == "meta" and "http-equiv" in a]
    for kind, texts in page.inline.items():
        digest = base64.b64encode(hashlib.sha256("".join(texts).encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
        assert [tag for tag, _ in page.tags].count(kind) == 1
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert policy.endswith("base-uri 'none'; form-action 'none'")
    assert "unsafe" not in policy


def test_nothing_lies_outside() -> None:
    """No style or event attribute, no address but fragments and data; identifiers are single."""
    page = Page(plain_page())
    names = {name for _, attrs in page.tags for name in attrs}
    assert not {name for name in names if name == "style" or name.startswith("on")}
    assert all(href.startswith(("#", "data:")) for href in page.all("href"))
    assert "src" not in names
    assert all(x.startswith("data:") for x in re.findall(r"url\((.*?)\)", page.inline["style"][0]))
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    wanted = [x for name in ("aria-labelledby", "for") for v in page.all(name) for x in v.split()]
    assert {*wanted, *(href[1:] for href in page.all("href") if href[0] == "#")} <= set(ids)


def test_undefined_is_a_dash_with_its_reason() -> None:
    """A label without positives shows no 0 for a number that it has not."""
    page = render(build(evidence([[1, 1], [2, -2]], [[0, 1], [0, 0]])))
    row = page.split('<tr id="r0">')[1].split("</tr>")[0]
    assert row.count("—") == 4
    assert row.count("no known positive") == 4
    assert "0.000" not in row


def test_all_averages_are_there() -> None:
    """Those beside the headline stand in their own block, by name and value."""
    report = build(plausible(40, tuple("abcdef")))
    page = render(report)
    for number in report.averages:
        name, value = number.name.replace("_", " "), format_number(number.value)
        assert f"<div><dt>{name}</dt><dd>{value}</dd></div>" in page


def test_maps_stand_beside_their_pictures() -> None:
    """With their place and their spot; the page says how many there are, or why there are none."""
    report = read_pictures(build(plausible(40, tuple("abcdef"))), lambda *_: b"jpeg")
    assert '<button type="button" class="heat"' not in render(report)
    tiles = {
        next(iter(report.pictures)): PictureMaps(
            30, 20, (0, 0, 1, 1), dict.fromkeys(range(6), "AAA/")
        )
    }
    page = render(place_maps(report, HeatMaps(tiles)))
    assert 'data-heat="AAA/" data-place="0 16.67 100 66.67 0 0" data-spot="lower right"' in page
    assert f"1 of the {len(report.pictures)} pictures have a map" in page
    assert page.count('aria-pressed="false"') == 2
    reason = "a <b>ViT</b> has no heat map"
    page = render(place_maps(report, HeatMaps(reason=reason)))
    assert "is not shown: a &lt;b&gt;ViT&lt;/b&gt; has no heat map." in page
    assert '<button type="button" class="heat"' not in page


def test_the_verdict_in_words() -> None:
    """Counts of labels by verdict, and what the thresholds do."""
    given = evidence(
        [[1, 1, -1], [1, -1, -1]], [[1, 0, 0], [0, 1, 0]], ap_intervals={"a": (0.8, 1), "b": (0, 1)}
    )
    text = render(build(given))
    for words in (
        "Of 3 labels, 1 is good, none is weak, for 1 the pictures are too few to tell, and 1 could",
        "At the chosen thresholds, 33 % of the 3 tags it gives are right, and it finds 50 % of",
    ):
        assert words in text


def test_a_bare_page_renders() -> None:
    """Nothing known, nothing trained, nothing calibrated: the page says so."""
    text = render(build(evidence([[1, 2]], [[-1, -1]])))
    assert "Probabilities: there are no known targets." in text
    assert "How did training go?" not in text
    assert "nothing is known of the thresholds" in text


def test_a_picture_stands_once_however_often_it_is_shown() -> None:
    """Its bytes are in the style alone, and its name is said where it is shown."""
    shown = read_pictures(build(plausible(40, tuple("abcdef"))), lambda name, _: name.encode())
    page = render(shown)
    for index, picture in shown.pictures.items():
        assert page.count(base64.b64encode(picture.name.encode()).decode()) == 1
        assert f'class="pic p{index}" role="img" aria-label="{picture.name}"' in page


def test_a_thousand_pictures_and_eighty_labels_are_under_5_mb(tmp_path: Path) -> None:
    """With JPEGs and maps of noise, which compress badly; no label hidden, most pictures there."""
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels, _ = demo_data.draw(rng, 240)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    files = cache(lambda n, side: make_thumbnail(tmp_path / f"{n}.png", side, 10**6))
    report = build(plausible(1000, tuple(f"label {n}" for n in range(80))))
    levels = "".join(ALPHABET[n] for n in rng.integers(0, 64, 196))
    maps = {
        index: PictureMaps(299, 200, (-0.123, 0, 1.123, 1), dict.fromkeys(columns, levels))
        for index, columns in list_wanted(report, 1000).items()
    }
    report = place_maps(report, HeatMaps(maps))
    shown = read_pictures(report, lambda name, side: files(int(name[7:-4]) % 40, side))
    page = render(shown)
    there = sum(one.jpeg is not None for one in shown.pictures.values())
    assert len(page.encode()) < 5_000_000
    assert page.count('class="label"') == 80
    assert page.count("data-heat=") > 1500
    assert there / len(shown.pictures) > 0.9


def luminance(color: str) -> float:
    """Relative luminance of #rrggbb, WCAG 2."""
    levels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in levels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colors_can_be_read(theme: int) -> None:
    """Text has a contrast of 4.5 on every ground that it stands on, in both themes."""
    style = Page(plain_page()).inline["style"][0]
    colors = dict(re.findall(r"--(\w+): (#\w{6})", style.split(":root {")[1 + theme]))
    grounds = [("ink", f"heat{n}") for n in range(1, 5)]
    grounds += [(text, ground) for text in ("ink", "muted", "accent") for ground in ("bg", "panel")]
    for text, ground in grounds:
        light, dark = sorted((luminance(colors[text]), luminance(colors[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
