"""HEIC and HEIF, the pictures of phones: an extra. This module alone imports pillow_heif.

first bytes of a file -> read_brand -> AVIF or HEIF, which share one container
HEIF -> load_heif -> Pillow has a decoder, or the reason why not
"""

from functools import cache
from importlib.metadata import PackageNotFoundError, version

HEAD = 256
"""Bytes from the start of a file that `read_brand` looks at."""

_AVIF = (b"avif", b"avis")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_ANY = (b"mif1", b"msf1")
"""Brands of the container, whatever it holds: the brands after it say what that is."""


def read_brand(head: bytes) -> str | None:
    """Return AVIF or HEIF, Pillow's names, by the brands at the start of a file; else None.

    first bytes                        result
    ....ftypavif....                   AVIF
    ....ftypheic....                   HEIF
    ....ftypmif1....mif1avif           AVIF
    ....ftypmif1....mif1heic           HEIF
    ....ftypmp42....                   None: a film
    """
    if head[4:8] != b"ftyp":
        return None
    brand, size = head[8:12], int.from_bytes(head[:4], "big")
    others = {head[start : start + 4] for start in range(16, min(size, len(head)), 4)}
    if brand in _AVIF or (brand in _ANY and others & {*_AVIF}):
        return "AVIF"
    return "HEIF" if brand in _HEIC or brand in _ANY else None


@cache
def load_heif() -> str | None:
    """Give Pillow its decoder of HEIF; return None, or the reason why it has none."""
    try:
        import pillow_heif

        # Without thumbnails: a draft would decode one of them in place of the picture. One thread:
        # pictures are decoded beside each other already.
        pillow_heif.register_heif_opener(
            thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
        )
    except ModuleNotFoundError:
        return "HEIC needs pillow-heif: pip install 'mlfinetune[heif]'"
    except Exception as error:  # built for another system, or another Pillow
        return f"HEIC cannot be read: {' '.join(str(error).split())}"
    return None


def find_heif_version() -> str:
    """Return the version of pillow-heif, or `none`; it is not imported."""
    try:
        return version("pillow-heif")
    except PackageNotFoundError:
        return "none"
