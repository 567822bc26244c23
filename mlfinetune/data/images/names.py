"""Names of picture files, and the files below a folder.

.jpg .png .heic ...   decoded                          photo.HEIC is a picture
.cr2 .jxl .psd ...    pictures that are not decoded    each has its reason, and none is lost
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

DECODED = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif"),
        *(".tiff", ".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"),
    }
)
"""Endings of the formats that are decoded; HEIC only with the extra `heif`."""

_RAW = "raw file of a camera; convert it to JPEG"
_OTHER = "{} is not read; convert it to JPEG or PNG"
UNDECODED = {
    **dict.fromkeys((".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf"), _RAW),
    **dict.fromkeys((".fff", ".gpr", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef"), _RAW),
    **dict.fromkeys((".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf"), _RAW),
    **dict.fromkeys((".srw", ".x3f"), _RAW),
    **dict.fromkeys((".j2c", ".j2k", ".jp2", ".jpf", ".jpx"), _OTHER.format("JPEG 2000")),
    **dict.fromkeys((".pbm", ".pgm", ".pnm", ".ppm"), _OTHER.format("Netpbm")),
    ".dcm": _OTHER.format("DICOM"),
    ".eps": _OTHER.format("EPS"),
    ".exr": _OTHER.format("OpenEXR"),
    ".jxl": _OTHER.format("JPEG XL"),
    ".psb": _OTHER.format("Photoshop"),
    ".psd": _OTHER.format("Photoshop"),
    ".svg": _OTHER.format("SVG"),
    ".tga": _OTHER.format("Targa"),
}
"""Ending of a picture that is not decoded -> the reason, and what to do."""

_MAGIC = re.compile(
    rb"(\xff\xd8\xff)|(\x89PNG)|(RIFF....WEBP)|(GIF8)|(BM)|(II\*\0|MM\0\*)"
    rb"|(....ftypavi[fs])|(....ftyp(?:he[iv].|mif1|msf1))",
    re.S,
)
_ENDING_OF = ("jpg", "png", "webp", "gif", "bmp", "tif", "avif", "heic")
"""File ending for each group of `_MAGIC`, the first bytes of a picture."""

_SYSTEM = frozenset(
    {"__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "lost+found"}
    | {"system volume information"}
)
"""Folders that macOS, network disks and Windows keep: copies, thumbnails, what was deleted."""

ENDINGS = ".jpg, .png, .webp, .avif, .heic, .gif, .bmp or .tiff"
"""The usual endings, for messages."""


def is_image_name(path: Path) -> bool:
    """Return whether the name has the ending of a picture; the content may be different."""
    suffix = path.suffix.lower()
    return suffix in DECODED or suffix in UNDECODED


def is_decoded_name(path: Path) -> bool:
    """Return whether the name has the ending of a format that is decoded."""
    return path.suffix.lower() in DECODED


def is_hidden_name(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that a system keeps for itself."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def is_lost_folder(path: Path) -> bool:
    """Return whether the path is a link that leads nowhere, with a name as folders have."""
    return path.is_symlink() and not path.suffix and not path.exists()


def walk_files(root: Path) -> Iterator[Path]:
    """Yield every file below `root`, sorted; hidden files and folders are left out.

    Links to folders are followed, unless they lead back to a folder above: a loop. A link that
    lies behind another link is followed once for it, else paths would double with each level of
    links. A link that leads nowhere is yielded as a file. Memory holds one folder's names.
    """
    yield from _walk_folder(root, (), None)


def _walk_folder(folder: Path, above: tuple[str, ...], followed: set[str] | None) -> Iterator[Path]:
    """Yield the files below a folder.

    Args:
        folder: the folder.
        above: the real paths of the folders that hold it.
        followed: the links that were followed behind the same first link; None: there is none.
    """
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        visible = sorted((e.name, e) for e in entries if not is_hidden_name(e.name))
    for name, entry in visible:
        if not _is_folder(entry):
            yield folder / name
        elif os.path.realpath(entry.path) in above:
            continue
        elif not entry.is_symlink():
            yield from _walk_folder(folder / name, above, followed)
        elif followed is None:
            yield from _walk_folder(folder / name, above, set())
        elif (link := os.path.join(above[-1], name)) not in followed:
            followed.add(link)
            yield from _walk_folder(folder / name, above, followed)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def guess_ending(data: bytes) -> str:
    """Return the file ending of a picture by its first bytes; `bin` for an unknown format."""
    match = _MAGIC.match(data)
    return _ENDING_OF[match.lastindex - 1] if match and match.lastindex else "bin"
