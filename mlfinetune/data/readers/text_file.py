"""The text of a table: its bytes tell the encoding, and gzip is unpacked on the way.

    first bytes, or all bytes                     read as
    EF BB BF, or valid UTF-8                      UTF-8
    FF FE, or FE FF                               UTF-16: Excel's "Unicode text"
    not UTF-8, plausible as Windows-1252          Windows-1252: Excel's CSV; a note shows its words
    anything else                                 refused

A file is read in blocks, once for the encoding and once for the rows: memory holds no whole file.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from mlfinetune.data.readers.foreign import describe_bytes
from mlfinetune.errors import DataError

MAX_ROW = 2**24
"""Longest row in characters: enough for a million columns, and it fits into memory."""

_BLOCK = 2**20
_GZIP = b"\x1f\x8b"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FIX = "save it as UTF-8 (in Excel: CSV UTF-8)"
_SHOWN_WORDS = 3

_ODD_LETTER = re.compile(r"[^\W\x00-\x7f]")
_ODD_SIGN = re.compile(r"(?<=[A-Za-z0-9])[’…€£°–—®™©½]|(?<=[A-Za-z0-9] )[€£°–—…]")
_CAPITALS = "À-ÖØ-ÞŠŒŽŸ"
_IMPLAUSIBLE = re.compile(
    r"[^\x00-\x7f]{3}"  # other alphabets, where every letter is beyond ASCII
    r"|[ƒˆ˜†‡¤¬¦¨¯¸¶\x80-\x9f]"  # in no label; DOS and Japanese encodings give them
    rf"|[a-zß-öø-ÿšœž][{_CAPITALS}]"  # a capital in a word: Mac OS, or UTF-8 with a broken byte
    rf"|[^\W\d_][{_CAPITALS}][a-z]"
    r"|[^\W\d_][^\w\x00-\x7f‘’–—·°](?=[^\W\d_])"  # a sign in a word
    r"|\w[‚„¿¡]|”\w"
)
"""Signs that text read as Windows-1252 was written in another encoding."""


def detect_encoding(path: Path, guess: bool = False) -> tuple[str, list[str]]:
    """Return the encoding of a text file, and a note where it was guessed.

    Args:
        path: the file, which may be packed with gzip.
        guess: try Windows-1252 where the file is not UTF-8.

    Raises:
        DataError: it cannot be read, or its encoding is not known.
    """
    with opening_bytes(path) as file:
        start = file.read(_BLOCK)
        for mark, encoding in _MARKS:
            if start.startswith(mark):
                return encoding, []
        if foreign := describe_bytes(start):
            raise DataError(f"{path}: {foreign}")
        head = start[:4096]
        if head.count(0) * 3 >= len(head) > 0:
            raise DataError(f"{path}: this looks like UTF-16 without its byte order mark; {_FIX}")
        odd = _find_odd_byte(start, file)
    if odd is None:
        return "utf-8", []
    words = _find_cp1252_words(path) if guess else []
    if not words:
        raise DataError(f"{path}: not UTF-8 text (byte {odd:#04x}); {_FIX}")
    shown = ", ".join(f"'{word}'" for word in words)
    return "cp1252", [f"not UTF-8: read as Windows-1252 (cp1252), e.g. {shown}"]


@contextmanager
def opening_text(path: Path, encoding: str) -> Iterator[TextIO]:
    """Open a file as text with its own line ends; errors in the block become a DataError."""
    name = encoding.removesuffix("-sig").upper()
    try:
        with (
            opening_bytes(path) as file,
            io.TextIOWrapper(file, encoding=encoding, newline="") as text,
        ):
            yield text
    except UnicodeDecodeError as error:
        byte = error.object[error.start] if error.object else 0
        raise DataError(f"{path}: not {name} text (byte {byte:#04x}); {_FIX}") from error


def read_lines(file: TextIO) -> Iterator[str | None]:
    """Yield the lines of a file; the last is None where one has more than `MAX_ROW` characters."""
    while line := file.readline(MAX_ROW + 1):
        yield None if len(line) > MAX_ROW else line
        if len(line) > MAX_ROW:
            return


@contextmanager
def opening_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file, unpacked where it is gzip; errors of reading become a DataError."""
    try:
        with path.open("rb") as file:
            packed = file.read(len(_GZIP)) == _GZIP
            file.seek(0)
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip ({error}); unpack or download it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _find_odd_byte(block: bytes, file: BinaryIO) -> int | None:
    """Return the first byte that is not UTF-8 in `block` and the rest of the file, or None."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while block:
            decoder.decode(block)
            block = file.read(_BLOCK)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return error.object[error.start]
    return None


def _find_cp1252_words(path: Path) -> list[str]:
    """Return words beyond ASCII that a file has as Windows-1252; none if that is implausible.

    bytes                              as Windows-1252    result
    Käfer in Windows-1252              Käfer              [Käfer]
    Käfer, Straße of an old Mac        KŠfer, Stra§e      []
    кот in Windows-1251                êîò                []
    Käfer in UTF-8, a broken byte      KÃ¤fer             []
    """
    words: dict[str, None] = {}
    try:
        with opening_text(path, "cp1252") as file:
            while block := file.read(_BLOCK):
                block += file.readline(MAX_ROW)  # words end where lines end
                if _IMPLAUSIBLE.search(block):
                    return []
                if len(words) < _SHOWN_WORDS:
                    words |= dict.fromkeys(islice(_find_words(block), _SHOWN_WORDS))
    except DataError:  # a byte that Windows-1252 does not have
        return []
    return list(words)[:_SHOWN_WORDS]


def _find_words(text: str) -> Iterator[str]:
    """Yield the words that have letters of ASCII and others, and common signs beyond ASCII."""
    for match in _ODD_LETTER.finditer(text):
        start, end = match.start(), match.end()
        before = re.split(r"\W", text[max(0, start - 20) : start])[-1]
        after = re.split(r"\W", text[end : end + 20])[0]
        if re.search("[A-Za-z]", before + after):
            yield before + match[0] + after
    yield from _ODD_SIGN.findall(text)
