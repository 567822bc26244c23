"""A Pillow image of any mode becomes an upright array of RGB uint8, one block at a time.

    Image -> load -> per block: 8 bits, white behind alpha, RGB, EXIF turn -> (H, W, 3) uint8

Beside the decoded picture and the result, a block needs a few megabytes only.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

_EXIF_ORIENTATION = 0x0112
_TIFF_PHOTOMETRIC = 0x0106
_BLOCK = 1 << 20  # pixels

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom lie outside, as in Pillow."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the turn that makes the picture upright; 1, or none: it is upright."""


def to_rgb_array(image: Image.Image) -> NDArray[np.uint8]:
    """Decode the image, and return (H, W, 3) uint8 RGB, turned upright.

    Raises:
        Exception: whatever the decoder raises.
    """
    rawmode = _read_rawmode(image)  # Pillow forgets it as it loads the pixels
    image.load()
    bounds = _find_bounds(image, rawmode) if _is_deep(image) else (0.0, 255.0)
    orientation = read_orientation(image)
    width, height = image.size
    shape = (width, height, 3) if orientation > 4 else (height, width, 3)
    upright = np.empty(shape, np.uint8)
    for box in _split_boxes(width, height):
        block = image if box == (0, 0, width, height) else image.crop(box)
        rgb = _block_to_rgb(block, bounds)
        if orientation != 1:
            rgb = rgb.transpose(_TURNS[orientation])
        left, top, right, bottom = _turn_box(box, width, height, orientation)
        upright[top:bottom, left:right] = np.asarray(rgb)
    return upright


def read_orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8; 1 (upright) where there is none, or it is damaged.

    HEIC and AVIF have a turn of their own, which counts alone. The decoder of HEIC has made it;
    that of AVIF has written it into the EXIF.
    """
    if image.format == "HEIF":
        return 1
    if image.format == "AVIF":
        image.info.pop("xmp", None)  # Pillow would take a turn from there too
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        return int(orientation) if orientation in _TURNS else 1
    except Exception:
        return 1


def scale_transparency(image: Image.Image) -> None:
    """Scale the transparent color of a PNG to 8 bits, in place.

    Pillow scales grey and RGB samples to 8 bits as it loads them, and leaves that color as it is.
    """
    color = image.info.get("transparency")
    rawmode = _read_rawmode(image)
    if image.format != "PNG" or color is None:
        return
    if rawmode in ("L;2", "L;4"):
        image.info["transparency"] = color * {"L;2": 85, "L;4": 17}[rawmode] & 255
    elif rawmode == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in color)


def _split_boxes(width: int, height: int) -> Iterator[Box]:
    """Yield boxes of at most _BLOCK pixels that cover the picture: rows, or parts of a row."""
    columns = min(width, _BLOCK)
    rows = _BLOCK // columns
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)


def _turn_box(box: Box, width: int, height: int, orientation: int) -> Box:
    """Return the place of a box, of a picture of this size, in the upright picture."""
    left, top, right, bottom = box
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation > 4 else (left, top, right, bottom)


def _block_to_rgb(image: Image.Image, bounds: tuple[float, float]) -> Image.Image:
    """Convert a block to mode RGB; transparent pixels become white."""
    transparent = "transparency" in image.info
    if _is_deep(image):
        grey = _to_8_bits(image, bounds)
        if transparent:
            grey[np.asarray(image) == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or transparent:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _read_rawmode(image: Image.Image) -> str:
    """Return Pillow's name of the sample layout in the file, such as `RGB;16B`.

    Pillow knows it only until the pixels are loaded.
    """
    args = image.tile[0].args if isinstance(image, ImageFile.ImageFile) and image.tile else None
    return str(args[0] if isinstance(args, tuple) else args)


def _is_deep(image: Image.Image) -> bool:
    """Return whether the image has grey samples of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def _find_bounds(image: Image.Image, rawmode: str) -> tuple[float, float]:
    """Return the samples that become black and white, for samples of more than 8 bits.

    12 or 16 bits     0 and 4095 or 65535; swapped where the TIFF says that 0 is white
    32 bits           0 and the smallest of 255, 65535 that holds all samples
    float             0 and the smallest of 1, 255, 65535 that holds all samples
    else              the least and the largest sample
    """
    if image.mode not in ("I", "F"):
        top = 4095.0 if rawmode == "I;12" else 65535.0
        inverted = getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0
        return (top, 0.0) if inverted else (0.0, top)
    blocks = (_read_samples(image.crop(box)) for box in _split_boxes(*image.size))
    extremes = [(block.min(), block.max()) for block in blocks]
    least = min(low for low, _ in extremes)
    most = max(high for _, high in extremes)
    tops = [1.0, 255.0, 65535.0] if image.mode == "F" else [255.0, 65535.0]
    return next(((0.0, top) for top in tops if least >= 0 and most <= top), (least, most))


def _read_samples(image: Image.Image) -> NDArray[np.float64]:
    """Return the grey samples, (H, W) float64; NaN and infinity become 0."""
    samples = np.asarray(image, dtype=np.float64)
    return np.nan_to_num(samples, posinf=0.0, neginf=0.0) if image.mode == "F" else samples


def _to_8_bits(image: Image.Image, bounds: tuple[float, float]) -> NDArray[np.uint8]:
    """Scale samples between `bounds` to 0 .. 255, (H, W) uint8."""
    low, high = bounds
    scaled = (_read_samples(image) - low) * (255.0 / ((high - low) or 1e-300))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)
