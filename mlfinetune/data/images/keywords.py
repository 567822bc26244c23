"""Keywords of one picture: those in a sidecar, and those inside the picture, as XMP or IPTC.

photo.jpg.xmp -> read_sidecar -> Keywords
photo.jpg     -> read_inside  -> Keywords: its XMP packet (JPEG, PNG, WebP, TIFF, AVIF, HEIC), and
                                           IPTC's keywords (JPEG, TIFF)
Keywords of people -> list_labels -> the labels of the picture

A photo program that keeps a sidecar leaves the picture alone. So where people have keywords in a
sidecar, those inside the picture are older, and are not read.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageFile, IptcImagePlugin

from mlfinetune.data.images.decode import opening_image
from mlfinetune.data.images.xmp_packet import (
    MAX_BYTES,
    RECORDS,
    SEPARATORS,
    SUBJECT,
    Keywords,
    XmpError,
    decode_packet,
    parse_packet,
    read_keywords,
)
from mlfinetune.errors import ImageError

ENDING = ".xmp"
"""Ending of a sidecar."""

_IPTC_KEYWORDS, _IPTC_CHARSET = (2, 25), (1, 90)
_IPTC_UTF8 = b"\x1b%G"
_IPTC_BYTES = 64  # of a keyword; programs cut longer ones
_PROGRAM = "darktable"
"""First level of the tags by which darktable notes what it did with a picture."""


def find_keywords(picture: Path, inside: bool = True) -> dict[str, list[str]]:
    """Return the keywords of people for a picture, list by list, as far as they can be read.

    Args:
        picture: its sidecars are looked for beside it.
        inside: whether to look inside the picture where its sidecars have none.
    """
    with suppress(XmpError):
        beside = join_keywords([read_sidecar(path) for path in find_sidecars(picture)]).by_people
        if any(beside.values()) or not inside:
            return {name: words for name, words in beside.items() if words}
    with suppress(XmpError):
        return {name: words for name, words in read_inside(picture).by_people.items() if words}
    return {}


def find_sidecars(picture: Path) -> list[Path]:
    """Return the sidecars of a picture that are there: photo.jpg.xmp, photo.xmp, or with .XMP."""
    stems = (picture.name, picture.stem)
    paths = (picture.with_name(stem + ending) for stem in stems for ending in (ENDING, ".XMP"))
    unique = {os.path.realpath(path): path for path in paths if path.is_file()}
    return list(unique.values())


def read_sidecar(path: Path) -> Keywords:
    """Return the keywords in a sidecar.

    Raises:
        XmpError: it cannot be read.
    """
    return read_keywords(parse_packet(decode_packet(read_bounded(path))[0]))


def read_bounded(path: Path) -> bytes:
    """Return the bytes of a sidecar; of one that is too large one more than `decode_packet` takes.

    Raises:
        XmpError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise XmpError(error.strerror or str(error)) from error
    return content


def read_inside(path: Path) -> Keywords:
    """Return the keywords inside a picture; none for one that cannot be opened.

    IPTC's are joined with XMP's, but for those that IPTC has cut.

    Raises:
        XmpError: its XMP cannot be read.
    """
    try:
        with opening_image(path, sys.maxsize) as image:
            packet = image.info.get("xmp")
            try:
                iptc = _read_iptc(image)
            except Exception:  # Pillow's parser raises whatever; XMP stays good where IPTC is not
                iptc = []
    except ImageError:
        return Keywords({}, {})
    keywords = Keywords({}, {})
    if isinstance(packet, bytes) and (packet := packet.strip(b"\0 \r\n\t")):
        keywords = read_keywords(parse_packet(decode_packet(packet)[0]))
    flat = [*keywords.by_people.get(SUBJECT, ())]
    ours = keywords.ours.get(SUBJECT, ())
    flat += [word for word in iptc if not any(_is_cut(word, whole) for whole in (*flat, *ours))]
    return Keywords({**keywords.by_people, SUBJECT: list(dict.fromkeys(flat))}, keywords.ours)


def _read_iptc(image: Image.Image) -> list[str]:
    """Return IPTC's keywords: UTF-8 where it says so or where they are, else Latin-1."""
    found = IptcImagePlugin.getiptcinfo(image) if isinstance(image, ImageFile.ImageFile) else None
    found = found or {}
    cells, charset = found.get(_IPTC_KEYWORDS, []), found.get(_IPTC_CHARSET)
    words = []
    for cell in cells if isinstance(cells, list) else [cells]:
        try:
            words.append(cell.decode())
        except UnicodeDecodeError:  # in UTF-8 the last character may be cut
            is_cut = charset == _IPTC_UTF8
            words.append(cell.decode(errors="ignore") if is_cut else cell.decode("latin-1"))
    return [word for text in words if (word := text.strip(" \0"))]


def _is_cut(word: str, whole: str) -> bool:
    """Return whether a word is another one, whole or as IPTC cuts it."""
    return word == whole or (len(word.encode()) > _IPTC_BYTES - 4 and whole.startswith(word))


def join_keywords(several: Sequence[Keywords]) -> Keywords:
    """Return the keywords of several sidecars, each once."""
    by_people, ours = dict[str, list[str]](), dict[str, list[str]]()
    for name in RECORDS:
        people = dict.fromkeys(word for each in several for word in each.by_people.get(name, ()))
        written = dict.fromkeys(word for each in several for word in each.ours.get(name, ()))
        by_people[name], ours[name] = list(people), list(written)
    return Keywords(by_people, ours)


def list_labels(keywords: Mapping[str, Sequence[str]], levels: str) -> list[str]:
    """Return the labels that lists of keywords give.

        dc:subject           hierarchy                  leaf          path
        birds                animals|birds              birds         animals, birds
        birds, animals       animals|birds              birds         animals, birds
        birds, sea           animals|birds              birds, sea    animals, birds, sea
        sea, darktable       sea, darktable|changed     sea           sea

    Args:
        keywords: list -> its keywords.
        levels: `leaf` or `path`, as `data.folder_labels`.
    """
    paths = [
        [level.strip() for level in keyword.split(sign) if level.strip()]
        for name, sign in SEPARATORS.items()
        for keyword in keywords.get(name, ())
    ]
    in_paths = {level for path in paths for level in path}
    kept = [path for path in paths if path and not (path[0] == _PROGRAM and len(path) > 1)]
    labels = [level for path in kept for level in (path if levels == "path" else path[-1:])]
    labels += [keyword for keyword in keywords.get(SUBJECT, ()) if keyword not in in_paths]
    return list(dict.fromkeys(labels))
