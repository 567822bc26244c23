"""A picture file becomes RGB uint8. The one place that knows Pillow.

    file -> format check -> size cap -> first frame -> 8-bit RGB on white -> EXIF turn
                                     -> a plain JPEG: the fast decoder, where one is given

Formats: JPEG (MPO too), PNG, WebP, GIF, BMP, TIFF. Whatever a decoder raises becomes an
ImageError with the file's name. Pixels are converted a block at a time: beside the decoded
picture and the result there are only a few megabytes.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL import __version__ as PIL_VERSION

from mlfinetune.errors import ImageError
from mlfinetune.location import Location
from mlfinetune.storage import files


@dataclass(frozen=True)
class ImageInfo:
    """What one look at a picture file found, every pixel of it decoded.

    Attributes:
        width, height: in pixels, as stored, before any turn.
        format: Pillow's name: JPEG, MPO, PNG, WEBP, GIF, BMP or TIFF.
        mode: Pillow's name of the samples as stored: RGB, L, CMYK, I;16 ...
        frames_dropped: the file holds more frames or pages than the first.
        turned: EXIF asks for a turn or a mirror image.
        digest: SHA-256 of the file, in hex.
        dhash: 128-bit difference hash of what is seen, in hex: signs of the horizontal, then of
            the vertical steps between the cells of a grey thumbnail.
    """

    width: int
    height: int
    format: str
    mode: str
    frames_dropped: bool
    turned: bool
    digest: str
    dhash: str


SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
)
DECODE_VERSION = f"1-pillow-{PIL_VERSION}"
"""Changes where the same bytes may be judged or hashed otherwise."""

TOO_LARGE = "pixels, more than data.max_pixels"
"""Stands in the reason of a picture over the cap."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_EXIF_ORIENTATION = 0x0112
_TIFF_PHOTOMETRIC = 0x0106
_BLOCK = 1 << 20  # pixels
_THUMBNAIL = 128  # pixels a side, the least that a JPEG is decoded to for its hash
_NOISE = 2  # grey levels
_MEBIBYTE = 1 << 20
_QUALITY = 95  # of JPEGs that are written, 4:2:0; benchmarks/image_store.py weighs it
_THUMBNAIL_QUALITY = 70

JpegDecoder = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""The bytes of an upright JPEG (n,) -> (H, W, 3) RGB; raises where it cannot."""

_Box = tuple[int, int, int, int]  # left, top, right, bottom

# EXIF orientation -> the turn that makes the picture upright; 1, or none, is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's own cap warns at one size and raises at another; ours, below, is checked on the
# header, before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


def is_image_name(path: Path) -> bool:
    """Does the name end as pictures do? Says nothing of the content."""
    return path.suffix.lower() in SUFFIXES


def walk_files(root: Path) -> Iterator[Path]:
    """Every file below `root`, in sorted order, hidden ones left out; one folder in memory.

    Links to folders are not followed: a loop of them would never end.
    """
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from walk_files(entry)
        elif not entry.is_dir():
            yield entry


def decode_image(
    path: Location, max_pixels: int, least: int | None = None, jpeg: JpegDecoder | None = None
) -> NDArray[np.uint8]:
    """Read one picture.

    Args:
        path: the file.
        max_pixels: width times height above which the file is refused undecoded.
        least: where both sides of a JPEG stay at least this long, and whole, it comes at 1/8,
            1/4 or 1/2 of its size, scaled as it is decoded; None: always at full size.
        jpeg: decodes plain JPEGs faster than Pillow. What it refuses, Pillow judges.

    Returns:
        (H, W, 3) uint8 RGB: upright by its EXIF orientation, alpha composited on white,
        16-bit, 32-bit and float samples scaled to 8 bits, the first frame of several.

    Raises:
        ImageError: the file cannot be read, for whatever reason.
    """
    with _reading(path) as file, _header(file, path, max_pixels) as image:
        scale = _scale(image.size, least)
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))  # JPEG alone heeds it
        pixels = _fast(image, file, jpeg) if jpeg and scale == 1 else None
        return _pixels(image) if pixels is None else pixels


def read_image_size(path: Location, max_pixels: int) -> tuple[int, int]:
    """Width and height by the header, EXIF's turn not heeded.

    Raises:
        ImageError: the file cannot be read, or has more pixels than `max_pixels`.
    """
    with _reading(path) as file, _header(file, path, max_pixels) as image:
        return image.size


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) RGB -> a JPEG of high quality; no side may be longer than 65,500 pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling="4:2:0")
    return file.getvalue()


def make_thumbnail(path: Location, side: int, max_pixels: int) -> bytes:
    """A small JPEG of a picture, whole, upright, its longer side `side` pixels or its own.

    A picture that cannot be read gives a grey square with a cross.
    """
    try:
        small = Image.fromarray(decode_image(path, max_pixels, least=side))
    except ImageError:
        across = np.eye(side, dtype=np.bool_)
        cross = np.where(across | across[::-1], 110, 190).astype(np.uint8)
        small = Image.fromarray(cross).convert("RGB")
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_THUMBNAIL_QUALITY, optimize=True)
    return file.getvalue()


def decode_jpeg(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A JpegDecoder for what `encode` wrote, where there is no faster one."""
    with Image.open(io.BytesIO(content.data), formats=("JPEG",)) as image:
        return np.array(image)


def inspect_image(path: Location, max_pixels: int) -> ImageInfo:
    """Look a picture over: what it is, what it hides, and two keys to find it again.

    Args:
        path: the file.
        max_pixels: width times height above which the file is refused undecoded.

    Raises:
        ImageError: where `decode` raises it, with the same reason.
    """
    with _reading(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        facts, pixels = _survey(file, path, max_pixels)
        return ImageInfo(**facts, digest=digest, dhash=_dhash(pixels))


@contextmanager
def _reading(path: Location) -> Iterator[files.File]:
    """The file, open; whatever goes wrong with it becomes an ImageError."""
    try:
        with files.open_binary(str(path)) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield file
    except ImageError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error ...
        raise ImageError(str(path), _reason(error)) from error


def _header(file: files.File, path: Location, max_pixels: int) -> Image.Image:
    """The picture, not yet decoded."""
    image = Image.open(file, formats=_FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            str(path),
            f"{width} x {height} {TOO_LARGE} ({max_pixels:,}) allows",
        )
    _scale_transparency(image)
    return image


def _survey(
    file: files.File, path: Location, max_pixels: int
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """What Picture says but for the two keys, and the pixels, of a JPEG perhaps at less size.

    A JPEG is read whole at any scale. The decoder's memory is free again on return.
    """
    with _header(file, path, max_pixels) as image:
        # Pillow turns a TIFF as it loads it: its size at once, its pixels later.
        before = _orientation(image) if image.format == "TIFF" else 1
        width, height = image.size[::-1] if before > 4 else image.size
        facts = {"width": width, "height": height, "format": image.format, "mode": image.mode}
        image.draft(None, (_THUMBNAIL, _THUMBNAIL))
        pixels = _pixels(image)
        facts["turned"] = before != 1 or _orientation(image) != 1
        facts["frames_dropped"] = _more_frames(image)
        return facts, pixels


def _scale(size: tuple[int, int], least: int | None) -> int:
    """By how much both sides can be divided; a remainder would stretch the picture."""
    if least is None:
        return 1
    scales = (8, 4, 2)
    fit = (s for s in scales if all(side % s == 0 and side >= s * least for side in size))
    return next(fit, 1)


def _fast(image: Image.Image, file: files.File, jpeg: JpegDecoder) -> NDArray[np.uint8] | None:
    """What `jpeg` makes of a plain JPEG; None: Pillow has to decode or refuse it."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or _orientation(image) != 1:
        return None
    width, height = image.size
    # No picture needs more bytes: a file with gigabytes behind its picture stays on disk.
    size = min(file.seek(0, os.SEEK_END), 3 * width * height + _MEBIBYTE)
    content = np.empty(size, np.uint8)
    file.seek(0)
    with suppress(Exception):  # whatever a decoder raises; Pillow's reason is the one to show
        pixels = jpeg(content[: file.readinto(content.data)])
        return pixels if pixels.shape == (height, width, 3) else None
    return None


def _more_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # damage behind the first frame: there was more
        return True


def _orientation(image: Image.Image) -> int:
    """The turn that EXIF asks for; broken EXIF asks for nothing."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        return int(orientation) if orientation in _TURNS else 1
    except Exception:
        return 1


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Decode; a block at a time, convert, turn and put it where it belongs."""
    rawmode = _rawmode(image)
    image.load()
    bounds = _range(image, rawmode) if _deep(image) else (0.0, 255.0)
    orientation = _orientation(image)
    width, height = image.size
    upright = np.empty((*((width, height) if orientation > 4 else (height, width)), 3), np.uint8)
    for box in _boxes(width, height):
        block = image if box == (0, 0, width, height) else image.crop(box)
        rgb = _to_rgb(block, bounds)
        if orientation != 1:
            rgb = rgb.transpose(_TURNS[orientation])
        left, top, right, bottom = _turned(box, width, height, orientation)
        upright[top:bottom, left:right] = np.asarray(rgb)
    return upright


def _boxes(width: int, height: int) -> Iterator[_Box]:
    """Blocks of rows, or of parts of a row, that cover a picture."""
    across = min(width, _BLOCK)
    down = _BLOCK // across
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield left, top, min(left + across, width), min(top + down, height)


def _turned(box: _Box, width: int, height: int, orientation: int) -> _Box:
    """Where a box of a picture of this size lies once the picture is upright."""
    left, top, right, bottom = box
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation > 4 else (left, top, right, bottom)


def _to_rgb(image: Image.Image, bounds: tuple[float, float]) -> Image.Image:
    transparent = "transparency" in image.info
    if _deep(image):
        grey = _to_8_bits(image, bounds)
        if transparent:
            grey[np.asarray(image) == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or transparent:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _rawmode(image: Image.Image) -> str:
    """How the samples lie in the file, in Pillow's words; known until they are loaded."""
    args = image.tile[0].args if isinstance(image, ImageFile.ImageFile) and image.tile else None
    return str(args[0] if isinstance(args, tuple) else args)


def _scale_transparency(image: Image.Image) -> None:
    """Pillow brings grey and RGB samples to 8 bits, and forgets to scale the transparent one."""
    colour, rawmode = image.info.get("transparency"), _rawmode(image)
    if image.format != "PNG" or colour is None:
        return
    if rawmode in ("L;2", "L;4"):
        image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[rawmode] & 255
    elif rawmode == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in colour)


def _deep(image: Image.Image) -> bool:
    """Grey samples of more than 8 bits?"""
    return image.mode == "F" or image.mode.startswith("I")


def _range(image: Image.Image, rawmode: str) -> tuple[float, float]:
    """Which samples are black and white.

    12-bit and 16-bit samples: their full range, turned about where the TIFF says that zero is
    white. 32-bit and float samples: the smallest of the ranges 1 (float alone), 255, 65535
    that holds them, else from least to most.
    """
    if image.mode not in ("I", "F"):
        top = 4095.0 if rawmode == "I;12" else 65535.0
        inverted = getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0
        return (top, 0.0) if inverted else (0.0, top)
    blocks = (_samples(image.crop(box)) for box in _boxes(*image.size))
    extremes = [(block.min(), block.max()) for block in blocks]
    least, most = min(low for low, _ in extremes), max(high for _, high in extremes)
    tops = [1.0, 255.0, 65535.0] if image.mode == "F" else [255.0, 65535.0]
    return next(((0.0, top) for top in tops if least >= 0 and most <= top), (least, most))


def _samples(image: Image.Image) -> NDArray[np.float64]:
    samples = np.asarray(image, dtype=np.float64)
    return np.nan_to_num(samples, posinf=0.0, neginf=0.0) if image.mode == "F" else samples


def _to_8_bits(image: Image.Image, bounds: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = bounds
    scaled = (_samples(image) - low) * (255.0 / ((high - low) or 1e-300))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def _dhash(pixels: NDArray[np.uint8]) -> str:
    """Is each cell of an 8 x 8 grid brighter than its left neighbour; than its upper one?

    By more than the noise of a recompression: on a flat ground the answer is always no.
    """
    grey = Image.fromarray(pixels).convert("L")
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16)
    steps = np.concatenate([np.diff(across, axis=1).ravel(), np.diff(down, axis=0).ravel()])
    return np.packbits(steps > _NOISE).tobytes().hex()


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, files.UnreadableError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, GIF, BMP or TIFF picture"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = " ".join(str(error).split())  # one line
    return f"cannot be decoded ({words or type(error).__name__})"
