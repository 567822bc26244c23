"""Cells and lines that do no harm: to a spreadsheet, to a terminal, to a table's columns."""

import unicodedata

_FORMULA_STARTS = tuple("=+-@\t\r\n\0＝＋－＠")


def inert(cell: str) -> str:
    """The cell, with an apostrophe before what a spreadsheet would run as a formula."""
    return "'" + cell if cell.startswith(_FORMULA_STARTS) else cell


def printable(text: str) -> str:
    """The text without characters that would move the cursor or colour the screen."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def printable_lines(text: str) -> str:
    """The same, line by line."""
    return "\n".join(map(printable, text.split("\n")))


def fitted(text: str, width: int) -> str:
    """The text cut or filled to `width` columns of a terminal, where some characters take two."""
    if _columns(text) > width:
        while _columns(text) > width - 3:
            text = text[:-1]
        text += "..."
    return text + " " * (width - _columns(text))


def _columns(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
