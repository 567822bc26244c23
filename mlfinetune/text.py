"""Cells and lines that do no harm: to a spreadsheet, to a terminal, to a table's columns."""

import math
import reprlib
import unicodedata
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import cast

MAX_LISTED = 10
_FORMULA_STARTS = tuple("=+-@\t\r\n\0＝＋－＠")


def display_path(path: Path) -> str:
    """The path as the user would type it: from the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def format_duration(seconds: float) -> str:
    """75 -> 1:15."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def format_age(seconds: float) -> str:
    """7200 -> 2 hours."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "just now"


def format_list(faults: Sequence[str], total: int | None = None) -> str:
    """Lines for a message: the first ten faults, the rest (of `total`) counted."""
    lines = [f"  {fault}" for fault in faults[:MAX_LISTED]]
    total = len(faults) if total is None else total
    if total > len(lines):
        lines.append(f"  ... and {total - len(lines)} more")
    return "\n".join(lines)


def pluralize(number: int, noun: str) -> str:
    """`1 label`, `2 labels`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def to_finite(value: object) -> float:
    """The number that a file says; raises ValueError where it is none, or not finite."""
    if type(value) not in (int, float) or not math.isfinite(number := float(cast(float, value))):
        raise ValueError(f"{reprlib.repr(value)} is no finite number")
    return number


def suggest(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the known name most like `name`, or nothing."""
    by_case = {candidate.casefold().strip(): candidate for candidate in known}
    close = get_close_matches(name.casefold().strip(), list(by_case), n=1, cutoff=0.6)
    return f"; did you mean '{by_case[close[0]]}'?" if close else ""


def neutralize(cell: str) -> str:
    """The cell, with an apostrophe before what a spreadsheet would run as a formula."""
    return "'" + cell if cell.startswith(_FORMULA_STARTS) else cell


def make_printable(text: str) -> str:
    """The text without characters that would move the cursor or colour the screen."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def make_lines_printable(text: str) -> str:
    """The same, line by line."""
    return "\n".join(map(make_printable, text.split("\n")))


def fit_width(text: str, width: int) -> str:
    """The text cut or filled to `width` columns of a terminal, where some characters take two."""
    if _count_columns(text) > width:
        while _count_columns(text) > width - 3:
            text = text[:-1]
        text += "..."
    return text + " " * (width - _count_columns(text))


def _count_columns(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
