"""Maps are resampled exactly, drawn where they belong, and clear where nothing speaks."""

import numpy as np
import pytest

from mlfinetune.data.images.overlay import (
    ALPHABET,
    SCALE,
    compute_overlaps,
    draw_overlay,
    encode_levels,
    shrink_map,
    stretch_map,
)

GREY = np.full((60, 90, 3), 128, np.uint8)
WHOLE = (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(("cells", "given"), [(4, 2), (2, 3), (13, 7), (7, 13), (5, 5)])
def test_means_stay(cells: int, given: int) -> None:
    """Each cell is a mean of those that it covers; together they cover each one alike."""
    weights = compute_overlaps(cells, given)
    assert np.allclose(weights.sum(1), 1, atol=1e-6)
    assert np.allclose(weights.sum(0), cells / given, atol=1e-6)
    values = np.random.default_rng(0).normal(size=(given, given)).astype(np.float32)
    assert shrink_map(values, min(cells, given)).mean() == pytest.approx(values.mean(), abs=1e-6)


def test_levels() -> None:
    """The greatest value is the last, what speaks against the first; weak maps are pale."""
    assert encode_levels(np.array([[-3, 0], [5, 10]], np.float32)) == "AAg/"
    assert encode_levels(np.array([[0.5]], np.float32)) == ALPHABET[32]
    assert encode_levels(np.full((2, 2), -1, np.float32)) == "AAAA"


def test_the_scale_is_read_by_color_blind_people() -> None:
    """Its lightness rises at every step, also for eyes without red cones."""
    assert SCALE[0, 3] == 0
    assert (np.diff(SCALE[:, 3].astype(int)) >= 0).all()
    for weights in ([0.2126, 0.7152, 0.0722], [0, 0.9, 0.1]):
        assert (np.diff(SCALE[:, :3] @ np.array(weights)) > 0).all()


def test_nothing_is_drawn_where_nothing_speaks() -> None:
    """The picture itself is there, bit by bit, and colored elsewhere."""
    drawn = draw_overlay(GREY, np.array([[0, 0, 0, 9]], np.float32), WHOLE, 800)
    assert (drawn[:, :20] == 128).all()
    assert (drawn[:, 80:] != 128).any(2).all()
    assert (draw_overlay(GREY, np.full((7, 7), -2, np.float32), WHOLE, 800) == GREY).all()


def test_what_the_model_did_not_see_is_blank() -> None:
    """Of a crop the outside; of a square larger than the picture what is over its edge is cut."""
    ones = np.ones((4, 4), np.float32)
    crop = stretch_map(ones, (0.25, 0.0, 0.75, 1.0), 40, 80)
    assert (crop[:, 20:60] == 1).all()
    assert crop.sum() == 40 * 40
    rows = np.arange(4, dtype=np.float32)[:, None] * ones
    padded = stretch_map(rows, (0.0, -0.5, 1.0, 1.5), 40, 80)
    assert padded[0, 0] < 1.6 < padded[-1, 0]
    assert padded.mean() == pytest.approx(1.5, abs=0.01)
    assert not stretch_map(ones, (0.4, 0.0, 0.400001, 1.0), 4, 3).any()


def test_large_pictures_are_drawn_small() -> None:
    """The longer side has `side` pixels; a strip keeps a row."""
    assert draw_overlay(GREY, np.ones((2, 2), np.float32), WHOLE, 45).shape == (30, 45, 3)
    strip = np.zeros((1, 5000, 3), np.uint8)
    assert draw_overlay(strip, np.ones((2, 2), np.float32), WHOLE, 100).shape == (1, 100, 3)
