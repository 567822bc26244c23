"""Heat maps of the page: the most useful first, each where its picture stands on the tile."""

from collections.abc import Sequence

import numpy as np
import pytest
from report_evidence import evidence, plausible

from mlfinetune.data.images.overlay import Explanation
from mlfinetune.errors import ImageError
from mlfinetune.report import build, choose_most, place_maps
from mlfinetune.report.heat import compute_maps, list_wanted
from mlfinetune.report.view import Heat
from mlfinetune.runs.heat_maps import HeatMaps, PictureMaps


def test_worst_errors_and_best_hits_come_first() -> None:
    """The first of each list of the weakest label; a chosen picture has all its labels."""
    report = build(plausible(200, tuple("abcdef")))
    weakest = report.labels[0].detail
    assert weakest is not None
    kinds = (weakest.false_positives, weakest.false_negatives, weakest.hits)
    first = [gallery.shown[0].index for gallery in kinds]
    wanted = list_wanted(report, 3)
    assert list(wanted) == first
    for row in report.labels:
        assert row.detail is not None
        for shown in row.detail.hits.shown:
            assert shown.index not in wanted or row.column in wanted[shown.index]
    assert set(list_wanted(report, 10**6)) == set(report.pictures)


def test_number_of_pictures() -> None:
    """An eighth of a scoring that the backbone took part in, within bounds; else two dozen."""
    assert [choose_most(images, False) for images in (80, 400, 8000)] == [24, 50, 96]
    assert choose_most(8000, True) == 24


@pytest.mark.parametrize("threads", [1, 3])
def test_maps_of_a_larger_grid_are_shrunk(threads: int) -> None:
    """56 x 56 cells become 14 x 14; a picture that is unreadable has no map."""

    def explain(path: str, columns: Sequence[int]) -> Explanation:
        if path == "1":
            raise ImageError(path, "gone")
        values = np.ones((len(columns), 56, 56), np.float32)
        return Explanation(np.zeros((20, 30, 3), np.uint8), values, (0, 0, 1, 1))

    maps = compute_maps({0: [2, 3], 1: [0]}, explain, str, threads)
    assert maps == HeatMaps(
        {0: PictureMaps(30, 20, (0, 0, 1, 1), dict.fromkeys((2, 3), "/" * 196))}
    )


@pytest.mark.parametrize(
    ("size", "box", "place", "spot"),
    [
        ((200, 100), (0, 0, 1, 1), "0 25 100 50 0 0", "lower right"),  # squash
        ((200, 100), (0.25, 0, 0.75, 1), "25 25 50 50 0 0", "lower"),  # crop
        ((200, 100), (0, -0.5, 1, 1.5), "0 0 100 100 0 25", "lower right"),  # pad
        ((100, 200), (-0.5, 0, 1.5, 1), "0 0 100 100 25 0", "lower right"),
    ],
)
def test_places_on_a_square_tile(
    size: tuple[int, int], box: tuple[float, float, float, float], place: str, spot: str
) -> None:
    """In percent: where the map lies, and what of it is over the picture's edge."""
    report = build(evidence([[2.0], [-2.0]], [[1], [0]]))
    placed = place_maps(report, HeatMaps({0: PictureMaps(*size, box, {0: "AAA/"})}))
    assert placed.heat[0, 0] == Heat("AAA/", place, spot)


def test_spots_outside_of_the_picture_do_not_count() -> None:
    """Where a square is larger than the picture, its strongest cell may lie beside it."""
    report = build(evidence([[2.0], [-2.0]], [[1], [0]]))
    maps = {0: "/" + "A" * 8, 1: "AAAAAAAAA"}
    box = (0.0, -1.0, 1.0, 2.0)
    placed = place_maps(report, HeatMaps({0: PictureMaps(300, 100, box, maps)}))
    assert placed.heat[0, 0].spot == placed.heat[0, 1].spot == ""
    placed = place_maps(report, HeatMaps({0: PictureMaps(300, 100, box, {0: "/AAAB" + "AAAA"})}))
    assert placed.heat[0, 0].spot == "middle"
