"""A picture file becomes RGB uint8. The one place that knows Pillow.

    file -> format check -> size cap -> first frame -> EXIF turn -> 8-bit RGB on white

Formats: JPEG (MPO too), PNG, WebP, GIF, BMP, TIFF. Whatever a decoder raises becomes an
ImageError with the file's name.
"""

import stat
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mlfinetune.errors import ImageError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
)
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_EXIF_ORIENTATION = 0x0112

# Pillow's own cap warns at one size and raises at another; ours, below, is checked on the
# header, before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


def is_image_name(path: Path) -> bool:
    """Does the name end as pictures do? Says nothing of the content."""
    return path.suffix.lower() in SUFFIXES


def decode(path: Path, max_pixels: int) -> NDArray[np.uint8]:
    """Read one picture.

    Args:
        path: the file.
        max_pixels: width times height above which the file is refused undecoded.

    Returns:
        (H, W, 3) uint8 RGB: upright by its EXIF orientation, alpha composited on white,
        16-bit, 32-bit and float samples scaled to 8 bits, the first frame of several.

    Raises:
        ImageError: the file cannot be read, for whatever reason.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError(str(path), "not a regular file")
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_FORMATS) as image:
                return _to_array(image, path, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error ...
        raise ImageError(str(path), _reason(error)) from error


def _to_array(image: Image.Image, path: Path, max_pixels: int) -> NDArray[np.uint8]:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            str(path),
            f"{width} x {height} pixels, more than data.max_pixels ({max_pixels:,}) allows",
        )
    image.load()
    upright = ImageOps.exif_transpose(image) if _turned(image) else image
    return np.asarray(_to_rgb(upright))


def _turned(image: Image.Image) -> bool:
    """Does EXIF ask for a turn? Broken EXIF asks for nothing."""
    try:
        return bool(image.getexif().get(_EXIF_ORIENTATION, 1) != 1)
    except Exception:
        return False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _to_8_bits(image).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey samples of more than 8 bits, scaled to 0..255.

    16-bit samples by their full range. 32-bit and float samples by the smallest of the
    ranges 1 (float alone), 255, 65535 that holds them, else from least to most.
    """
    samples = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = 0.0, 65535.0
    if image.mode in ("I", "F"):
        ranges = [1.0, 255.0, 65535.0] if image.mode == "F" else [255.0, 65535.0]
        least, most = samples.min(), samples.max()
        low, high = next(
            ((0.0, top) for top in ranges if least >= 0 and most <= top), (least, most)
        )
    scaled = (samples - low) * (255.0 / max(high - low, 1e-300))
    return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, GIF, BMP or TIFF picture"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"cannot be decoded ({str(error).strip() or type(error).__name__})"
