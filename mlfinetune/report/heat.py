"""Heat maps of the page: their choice, and their place on a tile.

Report -> list_wanted -> compute_maps, with the model -> heat_maps.json
Report, heat_maps.json -> place_maps -> Report
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import isqrt

from mlfinetune.data.images.overlay import ALPHABET, Explain, encode_levels, shrink_map
from mlfinetune.errors import ImageError
from mlfinetune.report.pictures import select_suspects
from mlfinetune.report.view import Heat, Report, Shown
from mlfinetune.runs.heat_maps import HeatMaps, PictureMaps

SIDE = 14
"""Greatest number of cells of a map in a row: the last two stages of a ResNet at 224 pixels."""


LEAST, MOST = 24, 96
"""Numbers of pictures that maps are computed of, at least and at most, at 224 pixels a side."""
FEWEST = 8
"""Least number of them, however large the pictures are."""


@dataclass(frozen=True)
class MapSource:
    """Source of new heat maps.

    Attributes:
        explain: computes the maps of one picture; None: the model has none.
        reason: why it has none.
        most: number of pictures to compute maps of.
        threads: number of threads that may call `explain` at once.
    """

    explain: Explain | None
    reason: str
    most: int
    threads: int = 1


def choose_most(images: int, are_features_kept: bool, side: int = 224, views: int = 1) -> int:
    """Return the number of pictures to compute maps of, so that they cost a few seconds.

    It is an eighth of those that were scored, from 24 to 96. Where kept features were scored, the
    backbone has not run at all: then it is 24. With more pixels or views it is fewer, down to 8.

    Args:
        images: number of pictures that were scored.
        are_features_kept: their features were not computed, but kept from before.
        side: of the square that the network sees, in pixels.
        views: versions of a picture that are scored.
    """
    most = LEAST if are_features_kept else min(max(LEAST, images // 8), MOST)
    work = max(1.0, (side / 224) ** 2) * views
    return max(FEWEST, round(most / work))


def list_wanted(report: Report, most: int) -> dict[int, list[int]]:
    """Return which maps the page needs most: index of a picture -> columns of labels.

    The first picture of each list comes first, the weakest label's lists before the others; then
    the suspects; then the second pictures, and so on. A picture has all maps that it is shown with.
    """
    wanted: dict[int, list[int]] = {}
    for index, column in _list_tiles(report):
        if index in wanted or len(wanted) < most:
            columns = wanted.setdefault(index, [])
            if column not in columns:
                columns.append(column)
    return wanted


def _list_tiles(report: Report) -> Iterator[tuple[int, int]]:
    """Yield (index of the picture, column of the label) of all tiles, the most useful first."""
    lists: list[tuple[int, tuple[Shown, ...]]] = []
    for row in report.labels:
        if row.detail:
            kinds = (row.detail.false_positives, row.detail.false_negatives, row.detail.hits)
            lists += [(row.column, gallery.shown) for gallery in kinds]
    columns = {row.label: row.column for row in report.labels}
    pairs = [[(shown.index, column) for shown in tiles] for column, tiles in lists]
    for rank, tiles in enumerate(zip_longest(*pairs)):
        yield from (tile for tile in tiles if tile is not None)
        if rank == 0:
            for number in select_suspects(report):
                suspect = report.suspects[number]
                yield suspect.index, columns[suspect.label]


def compute_maps(
    wanted: dict[int, list[int]],
    explain: Explain,
    path_of: Callable[[int], str],
    threads: int = 1,
) -> HeatMaps:
    """Compute the wanted maps; a picture that cannot be read has none.

    Args:
        wanted: index of a picture -> columns of labels.
        explain: computes the maps of one picture.
        path_of: index -> path of the picture.
        threads: number of threads that call both at once; 1: this one alone.
    """

    def compute(index: int) -> PictureMaps | None:
        try:
            return _compute_picture(wanted[index], explain, path_of(index))
        except ImageError:
            return None

    if threads == 1:
        found = list(map(compute, wanted))
    else:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(compute, wanted))
    pictures = zip(wanted, found, strict=True)
    return HeatMaps({index: maps for index, maps in pictures if maps is not None})


def _compute_picture(columns: list[int], explain: Explain, path: str) -> PictureMaps:
    explanation = explain(path, columns)
    height, width = explanation.pixels.shape[:2]
    levels = {
        column: encode_levels(shrink_map(values, SIDE))
        for column, values in zip(columns, explanation.values, strict=True)
    }
    return PictureMaps(width, height, explanation.box, levels)


def place_maps(report: Report, maps: HeatMaps) -> Report:
    """Return the report with its heat maps."""
    heat = {
        (index, column): _place_map(picture, levels)
        for index, picture in maps.pictures.items()
        for column, levels in picture.levels.items()
    }
    return replace(report, heat=heat, no_heat=maps.reason)


def _place_map(picture: PictureMaps, levels: str) -> Heat:
    """Place a map on a square tile, in whose middle the whole picture stands."""
    longer = max(picture.width, picture.height)
    across, down = picture.width / longer, picture.height / longer
    left, top, right, bottom = picture.box
    ends = (
        *(0.5 + (edge - 0.5) * across for edge in (left, right)),
        *(0.5 + (edge - 0.5) * down for edge in (top, bottom)),
    )
    cut = (max(0.0, -left) / (right - left), max(0.0, -top) / (bottom - top))
    place = (ends[0], ends[2], ends[1] - ends[0], ends[3] - ends[2], *cut)
    text = " ".join(f"{100 * share:.4g}" for share in place)
    return Heat(levels, text, _describe_spot(picture, levels))


def _describe_spot(picture: PictureMaps, levels: str) -> str:
    """Say in which ninth of the picture the map is strongest, as `upper left`; empty: nowhere.

    Cells outside of the picture do not count.
    """
    side = isqrt(len(levels))
    left, top, right, bottom = picture.box
    best, spot = 0, ""
    for number, character in enumerate(levels):
        row, column = divmod(number, side)
        x = left + (right - left) * (column + 0.5) / side
        y = top + (bottom - top) * (row + 0.5) / side
        level = ALPHABET.index(character)
        if level > best and 0 <= x <= 1 and 0 <= y <= 1:
            words = (_name_third(y, "upper", "lower"), _name_third(x, "left", "right"))
            best, spot = level, " ".join(filter(None, words)) or "middle"
    return spot


def _name_third(share: float, first: str, last: str) -> str:
    return first if share < 1 / 3 else last if share > 2 / 3 else ""
