"""A picture file becomes an array of RGB uint8. This module and convert.py alone import Pillow.

    file -> format check -> size cap -> first frame -> 8-bit RGB on white -> EXIF turn
                                     -> a plain JPEG: the fast decoder, where one is given

Formats: JPEG (MPO too), PNG, WebP, AVIF, GIF, BMP, TIFF; HEIC by an extra. Any error of a decoder
becomes an ImageError with the file's name.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, UnidentifiedImageError
from PIL import __version__ as PIL_VERSION

from mlfinetune.data.images.convert import read_orientation, scale_transparency, to_rgb_array
from mlfinetune.data.images.heif import HEAD, find_heif_version, load_heif, read_brand
from mlfinetune.data.images.names import UNDECODED
from mlfinetune.errors import ImageError
from mlfinetune.location import Location
from mlfinetune.runtime.quiet import unwarned
from mlfinetune.storage import files


@dataclass(frozen=True)
class ImageInfo:
    """Facts of a picture file, all of whose pixels were decoded.

    Attributes:
        width, height: in pixels, as stored, before EXIF's turn; of HEIC after its turn.
        format: Pillow's name: JPEG, MPO, PNG, WEBP, AVIF, HEIF, GIF, BMP or TIFF.
        mode: Pillow's name of the samples as stored: RGB, L, CMYK, I;16 ...
        frames_dropped: whether the file holds frames or pages after the first.
        turned: whether EXIF asks for a turn or a mirror image. HEIC is turned by its decoder.
        digest: SHA-256 of the file, in hex: equal for copies of the same bytes.
        dhash: 128-bit difference hash of the visible picture, in hex: similar for copies at
            another size or quality. 64 bits say whether a cell of a grey thumbnail is brighter
            than its left neighbor, 64 bits whether it is brighter than its upper one.
        stamp: number of the file's size and time when it was scanned (`files.number_stamp`).
    """

    width: int
    height: int
    format: str
    mode: str
    frames_dropped: bool
    turned: bool
    digest: str
    dhash: str
    stamp: int = field(default=0, compare=False)


DECODE_VERSION = f"2-pillow-{PIL_VERSION}-heif-{find_heif_version()}"
"""Part of cache keys: another version may accept, decode or hash the same bytes differently."""

TOO_LARGE = "pixels, more than data.max_pixels"
"""Part of the reason of an ImageError for a picture above the cap."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_NO_PICTURE = "not a JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF picture"
_HASH_SIDE = 128  # pixels: for its hash a JPEG is decoded to sides of at least so many
_NOISE = 2  # grey levels by which a recompression may change a cell
_MEBIBYTE = 1 << 20
_QUALITY = 95  # of small copies, with 4:2:0; benchmarks/image_store.py compares qualities
_THUMBNAIL_QUALITY = 70

JpegDecoder = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""The bytes of an upright JPEG, (n,) -> (H, W, 3) RGB; it may raise any exception."""

# Pillow's own cap warns at one size and raises at another. `_open_image` checks `max_pixels` on the
# header instead, before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
# Pictures are decoded beside each other already; threads on all cores would take memory only.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def decode_image(
    path: Location,
    max_pixels: int,
    min_side: int | None = None,
    jpeg: JpegDecoder | None = None,
    content: bytes | None = None,
) -> NDArray[np.uint8]:
    """Decode a picture file, tar member or URL to RGB.

        picture                          result
        EXIF orientation 6               turned clockwise: height and width change places
        RGBA, half transparent           composited on white
        16-bit grey                      65535 becomes 255; 32 bits, floats: see convert.py
        animated GIF, TIFF of pages      the first frame or page
        4000 x 3000 JPEG, min_side 448   500 x 375 is too small: decoded at 1/4, 1000 x 750
        above max_pixels, damaged, text  ImageError

    Args:
        path: the file.
        max_pixels: largest width times height; above it nothing is decoded.
        min_side: a JPEG may be decoded at 1/8, 1/4 or 1/2 of its size, which is faster, as long as
            both sides divide evenly and keep this length; None: always at full size.
        jpeg: a faster decoder for plain JPEGs at full size. Where it fails, Pillow decodes.
        content: of the file, where it is in memory; `path` is then its name. None: it is read.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: the file cannot be read or decoded, for any reason.
    """
    with _reading_image(path, content) as file, _open_image(file, path, max_pixels) as image:
        scale = _choose_draft_scale(image.size, min_side)
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))  # JPEG only
        pixels = _decode_fast(image, file, jpeg) if jpeg and scale == 1 else None
        return to_rgb_array(image) if pixels is None else pixels


def read_image_size(
    path: Location, max_pixels: int, content: bytes | None = None
) -> tuple[int, int]:
    """Read width and height from the header, as stored, before EXIF's turn.

    `content` is as in `decode_image`.

    Raises:
        ImageError: the file cannot be read, or has more pixels than `max_pixels`.
    """
    with _reading_image(path, content) as file, _open_image(file, path, max_pixels) as image:
        return image.size


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) RGB as a JPEG of quality 95; no side may exceed 65,500 pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling="4:2:0")
    return file.getvalue()


def make_thumbnail(path: Location, side: int, max_pixels: int) -> bytes:
    """Return a small JPEG of a picture, for a page: the longer side has at most `side` pixels.

    A picture that cannot be read gives a placeholder.
    """
    try:
        small = Image.fromarray(decode_image(path, max_pixels, min_side=side))
    except ImageError:
        return make_placeholder(side)
    small.thumbnail((side, side))
    return _encode_thumbnail(small)


@cache
def make_placeholder(side: int) -> bytes:
    """Return the JPEG of a grey square with a cross."""
    diagonal = np.eye(side, dtype=np.bool_)
    cross = np.where(diagonal | diagonal[::-1], 110, 190).astype(np.uint8)
    return _encode_thumbnail(Image.fromarray(cross).convert("RGB"))


def _encode_thumbnail(small: Image.Image) -> bytes:
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_THUMBNAIL_QUALITY, optimize=True)
    return file.getvalue()


def decode_jpeg(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode a JPEG of `encode_jpeg` with Pillow: the JpegDecoder where there is no faster one."""
    with Image.open(io.BytesIO(content.data), formats=("JPEG",)) as image:
        return np.array(image)


def inspect_image(path: Location, max_pixels: int) -> ImageInfo:
    """Decode a picture, and return its facts and hashes.

    Args:
        path: the file.
        max_pixels: largest width times height; above it nothing is decoded.

    Raises:
        ImageError: as `decode_image`, with the same reason.
    """
    with _reading_image(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        info, pixels = _inspect_pixels(file, path, max_pixels)
        return replace(info, digest=digest, dhash=_hash_difference(pixels))


@contextmanager
def _reading_image(path: Location, content: bytes | None = None) -> Iterator[files.File]:
    """Open the file; any exception inside the block becomes an ImageError with its name."""
    with naming_errors(path):
        if content is not None:
            yield io.BytesIO(content)
            return
        with files.open_binary(str(path)) as file:
            yield file


@contextmanager
def naming_errors(path: Location) -> Iterator[None]:
    """Context in which any exception becomes an ImageError with the name; no warning is shown."""
    try:
        with unwarned:
            yield
    except ImageError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error ...
        raise ImageError(str(path), _describe_error(error)) from error


def _open_image(file: files.File, path: Location, max_pixels: int) -> Image.Image:
    """Read the header, and check the format and the number of pixels.

    Raises:
        ImageError: it has more than `max_pixels`, is empty, or has no decoder.
        Exception: any error of Pillow.
    """
    brand = read_brand(file.read(HEAD))
    file.seek(0)
    formats = _choose_formats(path, brand)
    try:
        image = Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        empty = file.seek(0, os.SEEK_END) == 0
        reason = "an empty file" if empty else _explain_unidentified(path, brand)
        raise ImageError(str(path), reason) from error
    require_pixels(image.size, path, max_pixels)
    scale_transparency(image)
    return image


def require_pixels(size: tuple[int, int], path: Location, max_pixels: int) -> None:
    """Raise an ImageError for a picture of this width and height that is above the cap."""
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            str(path),
            f"{width} x {height} {TOO_LARGE} ({max_pixels:,}) allows",
        )


def _choose_formats(path: Location, brand: str | None) -> tuple[str, ...]:
    """Return the decoders that may open a file, by its first bytes and by its name.

    Most raw files are TIFFs, whose first picture is a stamp of 160 pixels: it must not be taken
    for the photo.

    Raises:
        ImageError: this Python has no decoder for it. The reason has no cause, so that it is not
            cached: a decoder may be installed.
    """
    if brand == "HEIF" and (reason := load_heif()):
        raise ImageError(str(path), reason)
    if brand == "AVIF" and not AvifImagePlugin.SUPPORTED:
        raise ImageError(str(path), f"this Pillow ({PIL_VERSION}) was built without AVIF")
    if brand:
        return (brand,)
    return tuple(name for name in _FORMATS if name != "TIFF" or _find_undecoded(path) is None)


def _explain_unidentified(path: Location, brand: str | None) -> str:
    """Return why no decoder takes a file that is not empty."""
    if brand:
        return f"cannot be decoded (a damaged {'HEIC' if brand == 'HEIF' else brand} file)"
    return _find_undecoded(path) or _NO_PICTURE


def _find_undecoded(path: Location) -> str | None:
    """Return the reason why pictures of this ending are not decoded, if they are not."""
    return UNDECODED.get(os.path.splitext(str(path))[1].lower())


def _inspect_pixels(
    file: files.File, path: Location, max_pixels: int
) -> tuple[ImageInfo, NDArray[np.uint8]]:
    """Decode the picture; return its facts, without the hashes, and its pixels.

    A JPEG is decoded at a smaller size, which reads all of the file too. The decoder's memory is
    free again on return, before the hashes need theirs.
    """
    with _open_image(file, path, max_pixels) as image:
        # Pillow turns a TIFF as it loads it, and gives the turned size before that.
        before = read_orientation(image) if image.format == "TIFF" else 1
        width, height = image.size[::-1] if before > 4 else image.size
        mode = image.mode  # loading may change it
        image.draft(None, (_HASH_SIDE, _HASH_SIDE))
        pixels = to_rgb_array(image)
        info = ImageInfo(
            width,
            height,
            str(image.format),
            mode,
            frames_dropped=_has_more_frames(image),
            turned=before != 1 or read_orientation(image) != 1,
            digest="",
            dhash="",
        )
        return info, pixels


def _choose_draft_scale(size: tuple[int, int], min_side: int | None) -> int:
    """Return 8, 4, 2 or 1: the divisor of both sides at which a JPEG can be decoded.

    Both sides must divide evenly: a remainder would stretch the picture.
    """
    if min_side is None:
        return 1
    for scale in (8, 4, 2):
        if all(side % scale == 0 and side >= scale * min_side for side in size):
            return scale
    return 1


def _decode_fast(
    image: Image.Image, file: files.File, jpeg: JpegDecoder
) -> NDArray[np.uint8] | None:
    """Decode a plain, upright JPEG with `jpeg`; None: Pillow has to decode it, or to refuse it."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or read_orientation(image) != 1:
        return None
    width, height = image.size
    # No picture needs more bytes; a file may have gigabytes of other data after its picture.
    size = min(file.seek(0, os.SEEK_END), 3 * width * height + _MEBIBYTE)
    content = np.empty(size, np.uint8)
    file.seek(0)
    with suppress(Exception):  # Pillow will give the reason to show
        pixels = jpeg(content[: file.readinto(content.data)])
        return pixels if pixels.shape == (height, width, 3) else None
    return None


def _has_more_frames(image: Image.Image) -> bool:
    """Return whether frames follow the first."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # damaged data after the first frame counts as a frame
        return True


def _hash_difference(pixels: NDArray[np.uint8]) -> str:
    """Return 128 bits in hex: whether each cell is brighter than its left and its upper neighbor.

    There are 8 x 8 cells for each of both. Brighter means by more than 2 grey levels, the noise of
    a recompression: in a flat area each bit is 0.
    """
    grey = Image.fromarray(pixels).convert("L")
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16)
    steps = np.concatenate([np.diff(across, axis=1).ravel(), np.diff(down, axis=0).ravel()])
    return np.packbits(steps > _NOISE).tobytes().hex()


def _describe_error(error: Exception) -> str:
    """Return the reason of an ImageError in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, files.UnreadableError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = " ".join(str(error).split())  # one line
    return f"cannot be decoded ({words or type(error).__name__})"
