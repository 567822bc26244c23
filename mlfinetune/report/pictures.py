"""Which thumbnails the page holds, how large, and how many fit.

Each picture is read and embedded once, however many lists show it. Those that would say most
come first: the heads of all lists, then the seconds; where the budget ends, names stand alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import zip_longest

from mlfinetune.report.view import Picture, Report

BUDGET = 3_500_000
"""Characters of base64; with 80 labels' curves and lists the page stays under 5 MB."""

MISSING_SHOWN, WRONG_SHOWN = 40, 20
"""Suspected missing and wrong tags that the page shows; suspects.csv has all."""

_SIDES = (192, 160, 128, 112, 96)
_BYTES_A_PIXEL = 0.2  # of a small photograph as JPEG, quality 70

Thumbnail = Callable[[str, int], bytes]
"""(a picture's name, the longest side in pixels) -> JPEG; unreadable ones give a placeholder."""


def with_pictures(report: Report, thumbnail: Thumbnail, budget: int = BUDGET) -> Report:
    """The report with its pictures read.

    Args:
        report: as `build` made it.
        thumbnail: reads one.
        budget: characters of base64 in all; pictures beyond it stay names.
    """
    side = _side(len(report.pictures), budget)
    pictures: dict[int, Picture] = {}
    for index, picture in report.pictures.items():
        if budget > 0:
            jpeg = thumbnail(picture.name, side)
            budget -= -(-len(jpeg) // 3) * 4
            picture = replace(picture, jpeg=jpeg if budget >= 0 else None)
        pictures[index] = picture
    return replace(report, pictures=pictures, side=side)


def suspects_shown(report: Report) -> tuple[int, ...]:
    """Places in `report.suspects` of those that the page shows."""
    wrong = [at for at, one in enumerate(report.suspects) if one.given]
    missing = [at for at, one in enumerate(report.suspects) if not one.given]
    return (*missing[:MISSING_SHOWN], *wrong[:WRONG_SHOWN])


def wanted(report: Report) -> list[int]:
    """Indices of all pictures that the page shows, by falling need."""
    return list(dict.fromkeys(_in_turn(report)))


def _in_turn(report: Report) -> Iterator[int]:
    """The same with repeats."""
    for at in suspects_shown(report):
        yield report.suspects[at].index
    details = [row.detail for row in report.labels if row.detail]
    lists = [
        [one.index for one in gallery.shown]
        for kind in ("false_positives", "false_negatives", "hits")
        for gallery in (getattr(detail, kind) for detail in details)
    ]
    for rank in zip_longest(*lists):
        yield from (index for index in rank if index is not None)


def _side(count: int, budget: int) -> int:
    """The largest side at which `count` photographs should fit the budget."""
    fits = (s for s in _SIDES if count * s * s * _BYTES_A_PIXEL * 4 / 3 <= budget)
    return next(fits, _SIDES[-1])
