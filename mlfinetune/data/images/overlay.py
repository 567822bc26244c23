"""Heat maps: where a picture speaks for a label, drawn over the picture.

    values (h, w) of the model's square, and the square's box in the picture
        -> encode_levels: one character a cell, for the page
        -> draw_overlay:  the picture with the map over it

A map's values are parts of a logit. What speaks against a label (below 0) is not drawn.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of the model's square, in shares of the picture's width and height.

(0, 0, 1, 1) is the whole picture. A square that is larger than the picture begins below 0.
"""


@dataclass(frozen=True)
class Explanation:
    """Maps of one picture.

    Attributes:
        pixels: (H, W, 3) uint8, the picture, upright.
        values: (k, h, w) float32, a map a label; the mean of a map and the label's bias add up to
            its logit.
        box: place of the maps in the picture.
    """

    pixels: NDArray[np.uint8]
    values: NDArray[np.float32]
    box: Box


Explain = Callable[[str, Sequence[int]], Explanation]
"""(path of a picture, columns of k labels) -> their maps; an ImageError if it is unreadable."""

LEVELS = 64
ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
"""Characters of the levels 0 to 63."""

_ANCHORS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Colors of viridis, whose lightness rises evenly: color-blind people read it, and grey prints."""
_OPACITY = 0.7
_FULL_FROM = 0.5  # share of the greatest value from which the map is as opaque as it gets
_LEAST_PEAK = 1.0  # a map whose values are all below one logit stays pale


def _build_scale() -> NDArray[np.uint8]:
    shares = np.linspace(0, 1, LEVELS)
    anchors = np.linspace(0, 1, len(_ANCHORS))
    colors = [np.interp(shares, anchors, channel) for channel in zip(*_ANCHORS, strict=True)]
    alpha = 255 * _OPACITY * np.minimum(1, shares / _FULL_FROM)
    return np.stack([*colors, alpha], 1).round().astype(np.uint8)


SCALE: NDArray[np.uint8] = _build_scale()
"""(64, 4) RGBA of each level; level 0 is transparent."""


def compute_overlaps(cells: int, given: int) -> NDArray[np.float32]:
    """Return (cells, given) weights that resample `given` equal cells to `cells` by their areas.

    The mean stays what it was, whether or not the numbers divide.

        compute_overlaps(4, 2) = [[1, 0], [1, 0], [0, 1], [0, 1]]
        compute_overlaps(2, 3) = [[2/3, 1/3, 0], [0, 1/3, 2/3]]
    """
    edges = np.arange(cells + 1)[:, None] * (given / cells)
    reached = np.clip(edges - np.arange(given), 0, 1)  # share of each given cell before each edge
    return np.asarray(np.diff(reached, axis=0) * (cells / given), np.float32)


def shrink_map(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return a (h, w) map of at most `side` by `side` cells, with the same mean."""
    rows, columns = (compute_overlaps(min(side, length), length) for length in values.shape)
    return np.asarray(rows @ values @ columns.T, np.float32)


def scale_map(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return values in [0, 1]: 0 where nothing speaks for the label, 1 at the greatest value.

    If the greatest value is below one logit, that logit is 1.
    """
    greatest = np.float32(max(float(values.max()), _LEAST_PEAK))
    return np.asarray(np.maximum(values, 0) / greatest, np.float32)


def encode_levels(values: NDArray[np.float32]) -> str:
    """Return the cells of a map, row by row, as characters of ALPHABET: 64 levels."""
    levels = np.rint(scale_map(values) * (LEVELS - 1)).astype(int)
    return "".join(ALPHABET[level] for level in levels.flat)


def draw_overlay(
    pixels: NDArray[np.uint8], values: NDArray[np.float32], box: Box, side: int
) -> NDArray[np.uint8]:
    """Draw a map over its picture.

    Args:
        pixels: (H, W, 3) RGB.
        values: (h, w), the map.
        box: place of the map in the picture.
        side: longest side of the result in pixels; a smaller picture keeps its size.

    Returns:
        (H', W', 3) RGB: the picture, colored by SCALE where it speaks for the label.
    """
    height, width = pixels.shape[:2]
    shrink = min(1.0, side / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    small = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX), np.float32)
    strength = stretch_map(scale_map(values), box, size[1], size[0])
    levels = np.rint(strength * (LEVELS - 1)).astype(np.uint8)
    scale = SCALE.astype(np.float32)
    alpha = scale[:, 3] / 255
    small *= (1 - alpha)[levels][..., None]
    small += (scale[:, :3] * alpha[:, None])[levels]
    return np.rint(small).astype(np.uint8)


def stretch_map(
    values: NDArray[np.float32], box: Box, height: int, width: int
) -> NDArray[np.float32]:
    """Stretch a (h, w) map over a picture of (height, width) pixels; it is 0 outside of its box."""
    whole = np.zeros((height, width), np.float32)
    across = _match_spans(box[0], box[2], width, values.shape[1])
    down = _match_spans(box[1], box[3], height, values.shape[0])
    if across is None or down is None:
        return whole
    (left, right), (map_left, map_right) = across
    (top, bottom), (map_top, map_bottom) = down
    stretched = Image.fromarray(values).resize(
        (right - left, bottom - top),
        Image.Resampling.BILINEAR,
        box=(map_left, map_top, map_right, map_bottom),
    )
    whole[top:bottom, left:right] = np.asarray(stretched)
    return whole


def _match_spans(
    start: float, end: float, pixels: int, cells: int
) -> tuple[tuple[int, int], tuple[float, float]] | None:
    """Match the pixels of one axis that lie in the box with the part of the map over them.

        start -0.5, end 1.5, pixels 100, cells 8  ->  (0, 100), (2, 6)
        start 0.25, end 0.75, pixels 100, cells 8 ->  (25, 75), (0, 8)

    Returns:
        First and last edge in pixels, and in cells; None: no pixel lies in the box.
    """
    first, last = round(max(0, start) * pixels), round(min(1, end) * pixels)
    if first >= last:
        return None
    edges = ((edge / pixels - start) / (end - start) * cells for edge in (first, last))
    low, high = (min(max(edge, 0.0), float(cells)) for edge in edges)
    return (first, last), (low, high)
