"""Tags in a small text file, for the readers of sidecar files and of tar shards."""

import re

from mlfinetune.errors import DataError

MAX_BYTES = 1_000_000
"""Largest text file, in bytes, that is taken for a list of tags."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_BOX = re.compile(rf"\d+(?:\s+{_NUMBER}){{4,}}")
"""A class and at least four numbers: a box or an outline as YOLO writes it."""


def parse_tags(content: bytes, origin: object, delimiter: str | None) -> list[str] | str:
    """Return the tags of a text file, or the text of an error.

    Args:
        content: `cat, hot dog`, or one tag per line, or both.
        origin: name of the file, for the message.
        delimiter: separates tags in a line; None: a comma.

    Raises:
        DataError: the file holds boxes.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (byte {error.object[error.start]:#04x}); save it as UTF-8"
    if "\0" in text:
        return "not UTF-8 text (it holds NUL characters); save it as UTF-8"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and all(map(_BOX.fullmatch, lines)):
        raise DataError(
            f"{origin} holds boxes as YOLO writes them ('{lines[0][:60]}'), not tags; convert them "
            f"to COCO JSON, or set data.format where the .txt files are not to be read"
        )
    parts = (part.strip() for line in lines for part in line.split(delimiter or ","))
    return list(dict.fromkeys(part for part in parts if part))
