"""Words for messages: plurals, lists, durations; and text that is safe in a terminal or CSV."""

import math
import re
import reprlib
import shutil
import unicodedata
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import cast

MAX_LISTED = 10
"""Number of faults that a message shows; the others are counted."""
MASK = "***"
"""Text in place of a password."""
_SECRETS = re.compile(
    r"""
    (?P<before> (?<=[a-z0-9+.-]{2}) :/+ )   # of a URL; `pathlib` leaves one slash of two
    (?: [^\s/?\#'"]* | [^\s/?\#@:[]+ : (?!\d+[/?\#]) \S{0,2000} )  # user:password, no :8080/
    (?P<after> @ )
    | (?P<name> [?&;\#] (?= [\w.-]+ = ) (?: [\w.-]* (?: token | secret | passw | signature
        | credential | jwt | api[-_]?key | access[-_]?key ) [\w.-]*
        | auth | key | pass | pwd | sig ) = )
        [^\s&\#'"<>]+? (?= [:;,.)]{0,8} (?: [\s&\#'"<>] | $ ) )
    | (?P<header> authorization ['"]? \s* [:=] \s* ['"]? (?: bearer\s | basic\s )? ) [^\s'",]+
    """,
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)
"""Bounds and look-arounds keep it fast: any text may stand in a table, and in a message."""
_FORMULA_STARTS = tuple("=+-@\t\r\n\0＝＋－＠")


def display_path(path: Path) -> str:
    """Return the path relative to the current folder if it is inside of it, else unchanged."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def format_duration(seconds: float) -> str:
    """Return 75 as `1:15`, and 3675 as `1:01:15`."""
    total_minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(total_minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def format_age(seconds: float) -> str:
    """Return 7200 as `2 hours`: whole days, hours or minutes, rounded down; else `just now`."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            return pluralize(int(seconds // size), unit)
    return "just now"


def format_list(faults: Sequence[str], total: int | None = None) -> str:
    """Return the first ten faults, one a line, and the number of those not shown.

    Args:
        faults: the faults, or the first of them.
        total: number of all faults; None: `faults` is complete.
    """
    lines = [f"  {fault}" for fault in faults[:MAX_LISTED]]
    total = len(faults) if total is None else total
    if total > len(lines):
        lines.append(f"  ... and {total - len(lines)} more")
    return "\n".join(lines)


def quote_yaml(text: str) -> str:
    """Return text as a quoted YAML string; signs that eyes cannot tell apart are escaped."""
    hidden = _list_hidden(text)
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(f"\\U{ord(c):08x}" if c in hidden else c for c in text) + '"'


def quote_exact(text: str) -> str:
    """Return text in quotes, as `repr` does, with accents of two signs escaped: `'cafe\\u0301'`."""
    hidden = {c for c in _list_hidden(text) if c.isprintable()}
    return "".join(f"\\u{ord(c):04x}" if c in hidden else c for c in repr(text))


def _list_hidden(text: str) -> set[str]:
    """Return characters that do not print, and accents that Unicode would join to a letter."""
    hidden = {c for c in text if not c.isprintable()}
    if not unicodedata.is_normalized("NFC", text):
        hidden |= {c for c in text if unicodedata.combining(c)}
    return hidden


def list_labels(names: Sequence[str], after: str = "") -> str:
    """Return `2 labels ('cat', 'dog')`, or with `after` " of both" `2 labels of both ('cat', ...`.

    After ten names the others are counted.
    """
    if not names:
        return f"no label{after}"
    return f"{pluralize(len(names), 'label')}{after} ({list_some(list(map(repr, names)))})"


def list_some(items: Sequence[str]) -> str:
    """Return the items with commas between; after ten the others are counted."""
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(items[:MAX_LISTED]) + more


def pluralize(number: int, noun: str) -> str:
    """Return `1 label` or `2 labels`: the number, and the noun with an s where it needs one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def to_finite(value: object) -> float:
    """Return a number from a file as a float.

    Raises:
        ValueError: it is no number (`true` is none), infinite or NaN.
    """
    if type(value) not in (int, float) or not math.isfinite(number := float(cast(float, value))):
        raise ValueError(f"{reprlib.repr(value)} is no finite number")
    return number


def suggest(name: str, known: Sequence[str]) -> str:
    """Return `; did you mean 'x'?` for the known name most similar to `name`, or an empty text."""
    by_case = {candidate.casefold().strip(): candidate for candidate in known}
    close = get_close_matches(name.casefold().strip(), list(by_case), n=1, cutoff=0.6)
    return f"; did you mean '{by_case[close[0]]}'?" if close else ""


def neutralize(cell: str) -> str:
    """Return the cell of a CSV file with an apostrophe before what a spreadsheet takes for code.

    Example: `=1+1` becomes `'=1+1`.
    """
    return "'" + cell if cell.startswith(_FORMULA_STARTS) else cell


def mask_secrets(text: str) -> str:
    """Return the text with `***` for what gives access in its URLs: passwords, tokens, signatures.

    http://me:secret@host/a.jpg          http://***@host/a.jpg
    https://host/a.jpg?w=9&token=secret  https://host/a.jpg?w=9&token=***
    """

    def mask(match: re.Match[str]) -> str:
        parts = match.groupdict(default="")
        return parts["before"] + parts["name"] + parts["header"] + MASK + parts["after"]

    return _SECRETS.sub(mask, text)


def make_printable(text: str) -> str:
    """Return text for a screen or a log: control characters are replaced, and secrets masked.

    Control characters could move the cursor or color the terminal.
    """
    return mask_secrets("".join(char if char.isprintable() else "\ufffd" for char in text))


def make_lines_printable(text: str) -> str:
    """Return the text as `make_printable`, and keep line breaks."""
    return "\n".join(map(make_printable, text.split("\n")))


def choose_column_width(widest: int, others: int) -> int:
    """Return the width of a table's column of names: `widest`, or less on a narrow terminal.

    Args:
        widest: columns of the terminal that it takes where there is room.
        others: columns that the rest of the row takes.
    """
    return max(8, min(widest, shutil.get_terminal_size().columns - others))


def fit_width(text: str, width: int) -> str:
    """Cut the text, or fill it with spaces, to `width` columns of a terminal."""
    if _count_columns(text) > width:
        while _count_columns(text) > width - 3:
            text = text[:-1]
        text += "..."
    return text + " " * (width - _count_columns(text))


def _count_columns(text: str) -> int:
    """Return the columns that the text takes: 2 for wide East Asian characters, 0 for accents."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )
