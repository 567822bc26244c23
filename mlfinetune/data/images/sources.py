"""A picture of any kind becomes an array of RGB uint8: a file, bytes, a Pillow image, an array.

a path or URL, bytes, an open file -> decode.py, as predict's own
a Pillow image                     -> convert.py: upright, 8 bits, white behind alpha
an array of samples                -> RGB
"""

import os
from threading import Lock
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlfinetune.data.images.convert import scale_transparency, to_rgb_array
from mlfinetune.data.images.decode import (
    JpegDecoder,
    decode_image,
    naming_errors,
    read_image_size,
    require_pixels,
)
from mlfinetune.errors import ImageError

Picture = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | Image.Image
    | NDArray[np.uint8]
)
"""A path or URL, the content of a file, an open file, a Pillow image; or samples: (H, W) grey,
(H, W, 3) RGB, (H, W, 4) RGBA."""

PillowImage = Image.Image

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_LOCKS = tuple(Lock() for _ in range(64))
"""One of them for each Pillow image: it reads its file as it is first asked for pixels, and two
threads may hold one image."""


def is_picture(value: object) -> bool:
    """Return whether a value is one picture, and not several; an array of at most three axes is."""
    if isinstance(value, np.ndarray):
        return value.ndim <= 3
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    return isinstance(value, kinds) or hasattr(value, "read")


def name_picture(picture: object, index: int) -> str:
    """Return the path of a picture; of one in memory, its place: `images[2]`."""
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture)
    name = getattr(picture, "name", None) if hasattr(picture, "read") else None
    return name if isinstance(name, str) else f"images[{index}]"


def read_picture(
    picture: object, name: str, max_pixels: int, min_side: int | None, jpeg: JpegDecoder | None
) -> NDArray[np.uint8]:
    """Read a picture of any kind.

    Args:
        picture: a `Picture`.
        name: of the picture, for messages.
        max_pixels, min_side, jpeg: as `decode_image` takes them, for what has to be decoded.

    Returns:
        (H, W, 3) uint8 RGB, upright.

    Raises:
        ImageError: it cannot be read or decoded, or is no picture.
    """
    if isinstance(picture, str | os.PathLike):
        return decode_image(os.fspath(picture), max_pixels, min_side, jpeg)
    if isinstance(picture, Image.Image):
        return _read_image(picture, name, max_pixels)
    if isinstance(picture, np.ndarray):
        return _read_samples(picture, name, max_pixels)
    return decode_image(name, max_pixels, min_side, jpeg, read_content(picture, name))


def read_content(picture: object, name: str) -> bytes:
    """Return the bytes of a file that is open, or in memory.

    Raises:
        ImageError: it cannot be read, or is neither.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if not hasattr(picture, "read"):
        raise ImageError(
            name,
            f"{type(picture).__name__} is no picture; wanted a path, bytes, a Pillow image or a "
            f"uint8 array",
        )
    with naming_errors(name):
        content = picture.read()
    if not isinstance(content, bytes):
        raise ImageError(name, "a file that was opened as text; open it with 'rb'")
    return content


def find_scale(picture: object, name: str, pixels: NDArray[np.uint8], max_pixels: int) -> int:
    """Return how many times as long as the sides of its `pixels` those of a picture are.

    Args:
        picture, name, max_pixels: as `read_picture` took them; no open file.
        pixels: as it returned them: a JPEG may be decoded at a smaller size.
    """
    if isinstance(picture, str | os.PathLike):
        size = read_image_size(os.fspath(picture), max_pixels)
    elif isinstance(picture, bytes | bytearray | memoryview):
        size = read_image_size(name, max_pixels, bytes(picture))
    else:
        return 1
    return max(1, max(size) // int(max(pixels.shape[:2])))


def to_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return the Pillow image of (H, W, 3) RGB."""
    return Image.fromarray(pixels)


def _read_image(image: Image.Image, name: str, max_pixels: int) -> NDArray[np.uint8]:
    """Return the pixels of a Pillow image, upright; the image stays as large as it is."""
    require_pixels(image.size, name, max_pixels)
    with _LOCKS[id(image) // 64 % len(_LOCKS)], naming_errors(name):
        scale_transparency(image)
        return to_rgb_array(image)


def _read_samples(samples: NDArray[np.uint8], name: str, max_pixels: int) -> NDArray[np.uint8]:
    """Return (H, W, 3) RGB of grey, RGB or RGBA samples: a writable array, as torch wants it."""
    if samples.dtype != np.uint8:
        raise ImageError(name, f"an array of {samples.dtype}; wanted uint8, from 0 to 255")
    channels = {2: 1, 3: samples.shape[-1]}.get(samples.ndim, 0) if samples.size else 0
    if channels not in _MODES:
        hint = ""
        if samples.ndim == 3 and samples.shape[0] in _MODES:
            hint = "; transpose(1, 2, 0) puts the channels last"
        raise ImageError(
            name, f"an array of shape {samples.shape}; wanted (height, width, 3){hint}"
        )
    height, width = samples.shape[:2]
    require_pixels((width, height), name, max_pixels)
    if channels == 3:
        return np.require(samples, requirements=["C", "W"])
    flat = samples.reshape(height, width) if channels == 1 else samples
    return to_rgb_array(Image.fromarray(np.ascontiguousarray(flat), _MODES[channels]))
