"""The page of pictures to label next: escaped, sealed, self-contained, and small."""

import base64
import hashlib
import re

from hostile import HOSTILE
from test_page import Page

from mlfinetune.data.images.decode import make_placeholder
from mlfinetune.report.picks import MOST_SHOWN, Tile, render_picks


def render(names: tuple[str, ...], budget: int = 10**6) -> str:
    tiles = [Tile(name, n + 1, name, ((name, 0.5), (name, 1.0))) for n, name in enumerate(names)]
    return render_picks(names[0], names, tiles, lambda name, side: make_placeholder(side), budget)


def test_names_are_text() -> None:
    """Hostile names give the elements and attributes of plain ones; only its own style counts."""
    hostile, plain = (render(names) for names in (HOSTILE, ("a",) * len(HOSTILE)))
    tags = [[(tag, sorted(attrs)) for tag, attrs in Page(text).tags] for text in (hostile, plain)]
    assert tags[0] == tags[1]
    hostile.encode()  # half surrogates would not be UTF-8
    page = Page(hostile)
    [policy] = [str(a["content"]) for t, a in page.tags if t == "meta" and "http-equiv" in a]
    style = base64.b64encode(hashlib.sha256("".join(page.inline["style"]).encode()).digest())
    assert f"style-src 'sha256-{style.decode()}'" in policy
    assert "script" not in policy
    assert not page.inline["script"]


def test_a_long_list_stays_small() -> None:
    """Beyond the budget pictures are shown by name, beyond the limit they are counted."""
    page = render(tuple(f"{n}.jpg" for n in range(MOST_SHOWN + 7)), budget=200_000)
    assert len(page) < 200_000 + 500 * MOST_SHOWN
    shown = page.count("data:image/jpeg")
    assert 10 < shown < MOST_SHOWN
    assert sum(map(len, re.findall("base64,([^)]+)", page))) <= 200_000
    assert page.count("picture left out") == MOST_SHOWN - shown
    assert re.search(r"And 7 more, in the table", page)


def test_no_picture_is_left() -> None:
    """The page says so."""
    assert "no picture is left" in render_picks("t", (), [], lambda name, side: b"")
