"""A reviewed list of suspects: suspects.csv with a column `decision`, however it was saved.

image,label,given,...,decision          -> Decision(image, label, given, accepted, line)
a.jpg,cat,0,...,accept                     accept and words alike, reject and words alike
b.jpg,dog,1,...,                           blank: undecided
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlfinetune.data.readers.separator import detect_separator, find_excel_line
from mlfinetune.data.readers.state_words import read_state
from mlfinetune.data.readers.text_file import detect_encoding, opening_text
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN
from mlfinetune.errors import DataError
from mlfinetune.location import find_ending
from mlfinetune.text import format_list, pluralize

COLUMNS = ("image", "label", "given", "decision")
_ACCEPT = ("accept", "accepted", "ok", "okay", "agree", "agreed", "apply", "applied", "fix")
_REJECT = ("reject", "rejected", "refuse", "refused", "decline", "declined", "disagree", "keep")
_WANTED = "accept (or yes, 1, x), reject (or no, 0), or blank for undecided"


@dataclass(frozen=True)
class Decision:
    """One row of the list.

    Attributes:
        line: its line number in the list.
        image, label: as the list has them; a cell that a spreadsheet would run has an apostrophe
            before it.
        given: 1: the tag was given and may be wrong; 0: it may be missing.
        accepted: None: undecided.
    """

    line: int
    image: str
    label: str
    given: int
    accepted: bool | None


def read_decisions(path: Path) -> list[Decision]:
    """Read a list of decisions: CSV with commas, semicolons or tabs, in UTF-8, UTF-16 or cp1252.

    Raises:
        DataError: it cannot be read, lacks a column, or some of its rows cannot be understood.
    """
    rows = list(_read_rows(path))
    if not rows:
        raise DataError(f"{path} is empty; wanted suspects.csv with a column decision")
    _, header = rows[0]
    names = [name.strip().casefold() for name in header]
    missing = [name for name in COLUMNS if names.count(name) != 1]
    if missing:
        what = f"has no column {missing[0]}" if missing[0] not in names else "has it twice"
        raise DataError(
            f"{path}: the list {what} ({missing[0]}); wanted suspects.csv with one more column "
            f"decision: {_WANTED}"
        )
    places = [names.index(name) for name in COLUMNS]
    decisions, faults = [], []
    for line, cells in rows[1:]:
        try:
            decisions.append(_parse_row(line, cells, places))
        except ValueError as error:
            faults.append(f"line {line}: {error}")
    if faults:
        raise DataError(
            f"{path}: {pluralize(len(faults), 'row')} that cannot be understood\n"
            f"{format_list(faults)}"
        )
    return decisions


def _read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of the rows that are not blank; the first is the header.

    Raises:
        DataError: the file cannot be read.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    encoding, _ = detect_encoding(path, guess=True)
    with opening_text(path, encoding) as file:
        text = file.read(2**16)
        file.seek(0)
        excel = find_excel_line(text)
        skipped = 1 if excel and file.readline() else 0
        separator = excel or detect_separator(text.split("\n", 1)[0], find_ending(path))
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            for cells in reader:
                if any(map(str.strip, cells)):
                    yield reader.line_num + skipped, cells
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num + skipped}: {error}") from error


def _parse_row(line: int, cells: Sequence[str], places: Sequence[int]) -> Decision:
    """Return the decision of a row; raises ValueError where it cannot be understood."""
    if len(cells) <= max(places):
        raise ValueError(f"{len(cells)} cells; its decision, or what it is on, is missing")
    image, label, given, decision = (cells[place].strip() for place in places)
    if not image or not label:
        raise ValueError(f"no {'label' if image else 'image'}")
    state = read_state(given)
    if state is None or state.state == UNKNOWN or state.kind == "fraction":
        raise ValueError(f"given is {given!r}; wanted 0 (a missing tag) or 1 (a wrong one)")
    return Decision(line, image, label, state.state, _parse_decision(decision))


def _parse_decision(text: str) -> bool | None:
    """Return whether a row is accepted; None: undecided; raises ValueError for other words."""
    word = text.casefold().rstrip("!.").strip()
    if word in _ACCEPT or word in _REJECT:
        return word in _ACCEPT
    state = read_state(word)
    if state is None or state.kind == "fraction" or word in ("-", "–", "—", "-1"):
        raise ValueError(f"decision is {text!r}; wanted {_WANTED}")
    return {POSITIVE: True, NEGATIVE: False, UNKNOWN: None}[state.state]
