"""Thumbnails of the page: their choice, their size, and the budget of bytes.

Each picture is read and embedded once, even if several lists show it. The most useful ones come
first: suspects, then the first pictures of all lists, then the second ones, and so on. Beyond the
budget only names are shown.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest

from mlfinetune.report.view import Picture, Report

BUDGET = 3_500_000
"""Characters of base64 and of heat maps in all: with curves and lists of 80 labels the page stays
under 5 MB."""

MISSING_SHOWN, WRONG_SHOWN = 40, 20
"""Suspected missing and wrong tags that the page shows; suspects.csv has all."""

TORN_SHOWN, TORN_PICTURES = 20, 8
"""Groups of near duplicates with different tags that the page shows; pictures of each."""

_HEAT_MARKUP = 90  # characters of a heat map's attributes
_SIDES = (192, 160, 128, 112, 96)
_BYTES_A_PIXEL = 0.2  # of a small photograph as JPEG, quality 70

Thumbnail = Callable[[str, int], bytes]
"""(a picture's name, the longest side in pixels) -> JPEG; a placeholder if it is unreadable."""


def read_pictures(
    report: Report, thumbnail: Thumbnail, budget: int = BUDGET, threads: int = 1
) -> Report:
    """Return the report with its pictures read.

    Args:
        report: from `build`.
        thumbnail: makes the thumbnail of one picture.
        budget: characters of base64 and of heat maps in all; beyond it a picture is shown by its
            name.
        threads: number of threads that call `thumbnail` at once; each may hold a large picture. 1:
            this one alone, which Ctrl-C interrupts; others end their pictures first.
    """
    budget -= sum(len(heat.levels) + _HEAT_MARKUP for heat in report.heat.values())
    side = choose_side(len(report.pictures), budget)
    pictures, wanted = dict(report.pictures), list(report.pictures.items())

    def make(entry: tuple[int, Picture]) -> bytes:
        return thumbnail(entry[1].name, side)

    with ThreadPoolExecutor(threads) as pool:
        while wanted and budget > 0:
            some, wanted = wanted[:threads], wanted[threads:]
            made = pool.map(make, some) if threads > 1 else map(make, some)
            for (index, picture), jpeg in zip(some, made, strict=True):
                budget -= -(-len(jpeg) // 3) * 4
                pictures[index] = replace(picture, jpeg=jpeg if budget >= 0 else None)
    return replace(report, pictures=pictures, side=side)


def select_suspects(report: Report) -> tuple[int, ...]:
    """Return the indices, in `report.suspects`, of the suspects that the page shows."""
    wrong = [index for index, suspect in enumerate(report.suspects) if suspect.given]
    missing = [index for index, suspect in enumerate(report.suspects) if not suspect.given]
    return (*missing[:MISSING_SHOWN], *wrong[:WRONG_SHOWN])


def list_pictures(report: Report) -> list[int]:
    """Return the indices of all pictures that the page shows, the most useful first."""
    return list(dict.fromkeys(_list_by_need(report)))


def _list_by_need(report: Report) -> Iterator[int]:
    """Yield the indices of pictures, the most useful first; one in two lists comes twice."""
    for suspect in select_suspects(report):
        yield report.suspects[suspect].index
    for group in report.torn[:TORN_SHOWN]:
        yield from group.pictures[:TORN_PICTURES]
    details = [row.detail for row in report.labels if row.detail]
    lists = [
        [picture.index for picture in gallery.shown]
        for kind in ("false_positives", "false_negatives", "hits")
        for gallery in (getattr(detail, kind) for detail in details)
    ]
    for rank in zip_longest(*lists):
        yield from (index for index in rank if index is not None)


def choose_side(count: int, budget: int) -> int:
    """Return the largest side in pixels at which `count` photographs should fit the budget."""
    fits = (side for side in _SIDES if count * side * side * _BYTES_A_PIXEL * 4 / 3 <= budget)
    return next(fits, _SIDES[-1])
