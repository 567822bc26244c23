"""Pictures to label next, as one self-contained HTML page: thumbnails, reasons, proposed tags."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mlfinetune.report.page import encode_base64, hash_source, make_environment, read_asset
from mlfinetune.report.pictures import BUDGET, choose_side

MOST_SHOWN = 1000
"""Pictures of the page; the table has all."""


@dataclass(frozen=True)
class Tile:
    """A picture of the page.

    Attributes:
        image: its name.
        rank: from 1.
        reason: in words.
        tags: (label, probability) of the proposed labels.
    """

    image: str
    rank: int
    reason: str
    tags: tuple[tuple[str, float], ...]


def render_picks(
    title: str,
    about: Sequence[str],
    tiles: Sequence[Tile],
    thumbnail: Callable[[str, int], bytes],
    budget: int = BUDGET,
) -> str:
    """Return the page: HTML in UTF-8 that loads nothing from outside.

    Args:
        title: of the page.
        about: sentences above the pictures.
        tiles: the pictures; beyond MOST_SHOWN they are counted alone.
        thumbnail: (a picture's name, the longest side in pixels) -> JPEG.
        budget: characters of base64 in all; beyond it a picture is shown by its name.
    """
    shown = tiles[:MOST_SHOWN]
    side, images = choose_side(len(shown), budget), dict[int, str]()
    for tile in shown:
        if budget <= 0:
            break
        image = encode_base64(thumbnail(tile.image, side))
        budget -= len(image)
        if budget >= 0:
            images[tile.rank] = image
    style = read_asset("style.css") + "".join(
        f".p{rank}{{background-image:url(data:image/jpeg;base64,{image})}}\n"
        for rank, image in images.items()
    )
    return (
        make_environment()
        .get_template("picks.html.j2")
        .render(
            title=title,
            about=about,
            tiles=shown,
            hidden=len(tiles) - len(shown),
            images=images,
            style=Markup(style),
            policy=(
                f"default-src 'none'; img-src data:; style-src {hash_source(style)}; "
                f"base-uri 'none'; form-action 'none'"
            ),
        )
    )
