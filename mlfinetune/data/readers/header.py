"""The names of a text table's columns: its first line, or made up where that is a row already.

image,labels           a.jpg,cat,dog
a.jpg,cat              b.jpg,fox,sun
-> image, labels       -> image, label1, label2; a note says that there is no header
"""

from collections.abc import Sequence
from pathlib import Path

from mlfinetune.data.readers.cells import quote_names
from mlfinetune.data.readers.column_names import (
    IMAGE_COLUMNS,
    OTHER_IMAGE_NAMES,
    find_split,
    simplify_name,
)
from mlfinetune.data.readers.column_sample import is_picture_name
from mlfinetune.data.table import SourceOptions
from mlfinetune.errors import DataError

_IMAGE_NAMES = {*map(simplify_name, IMAGE_COLUMNS), *OTHER_IMAGE_NAMES}
_MANY_ROWS = 20
"""Rows from which on a column of text without a repeat is taken for names, and not for labels."""


def lacks_header(rows: Sequence[list[str]], options: SourceOptions) -> bool:
    """Return whether the first row names a picture where the rows below name pictures too.

    A header may look like that: `image,a.jpg` above columns of 0 and 1. Then no picture is below.
    """
    first = [cell.strip() for cell in rows[0]]
    named = {options.image_column, *options.label_column, *(options.label_columns or ())}
    if named & {*first} or {*IMAGE_COLUMNS} & {cell.casefold() for cell in first}:
        return False
    return _find_pictures(rows) is not None or _are_spaced(rows)


def make_header(path: Path, rows: Sequence[list[str]]) -> list[str]:
    """Return names for the columns of a table that has no header.

    Args:
        path: the table, for messages.
        rows: its first rows.

    Raises:
        DataError: the cells do not say for sure what the columns hold.
    """
    picture = _find_pictures(rows)
    if picture is None:
        raise _refuse(path, rows, "spaces separate its cells: write commas or tabs")
    width = len(rows[0])
    if any(len(row) != width for row in rows):
        raise _refuse(path, rows, "rows differ in their number of cells")
    columns = [[row[index].strip() for row in rows] for index in range(width)]
    names = ["image" if index == picture else "" for index in range(width)]
    for index, cells in enumerate(columns):
        if width > 2 and index != picture and all(map(find_split, cells)):
            names[index] = "split"
    unnamed = [index for index in range(width) if not names[index]]
    if not unnamed or names.count("split") > 1:
        raise _refuse(path, rows, "no column is for labels")
    for index in unnamed:
        if doubt := _find_doubt(columns[index], alone=len(unnamed) == 1):
            raise _refuse(path, rows, f"column {index + 1} {doubt}")
    for number, index in enumerate(unnamed, 1):
        names[index] = "labels" if len(unnamed) == 1 else f"label{number}"
    return names


def note_header(names: Sequence[str]) -> str:
    """Return the note that the columns got these names."""
    return f"no header: the first line already names a picture; read as {', '.join(names)}"


def _find_pictures(rows: Sequence[list[str]]) -> int | None:
    """Return the first column that names a picture in the first row and in half of the others."""
    for index, cell in enumerate(rows[0]):
        if is_picture_name(cell):
            below = [row[index] for row in rows[1:] if len(row) > index]
            if 2 * sum(map(is_picture_name, below)) >= len(rows) - 1:
                return index
    return None


def _are_spaced(rows: Sequence[list[str]]) -> bool:
    """Return whether most rows are one cell, in which the name of a picture and a space come first.

    `a.jpg cat`, `a.jpg 0 1 0`
    """
    starts = [row[0].split(None, 1)[:1] if " " in row[0].strip() else [] for row in rows]
    named = [bool(start) and is_picture_name(start[0]) for start in starts]
    return len(rows[0]) == 1 and named[0] and 2 * sum(named) >= len(rows)


def _find_doubt(cells: list[str], alone: bool) -> str:
    """Return why a column may hold no labels, or an empty text.

    Args:
        cells: the cells of the column.
        alone: no other column may hold labels.
    """
    filled = [cell for cell in cells if cell]
    if not filled:
        return "is blank"
    if any(map(is_picture_name, filled)):
        return f"names pictures too ('{next(filter(is_picture_name, filled))}')"
    if all(map(_is_number, filled)) and not (alone and _are_numbered_labels(filled)):
        return f"holds numbers ('{filled[0]}')"
    if all(map(find_split, filled)):
        return f"holds names of splits ('{filled[0]}')"
    if not alone and any("|" in cell or ";" in cell for cell in filled):
        return "holds lists"
    if not alone and len(filled) >= _MANY_ROWS and len(set(filled)) == len(filled):
        return f"holds a different text in every row ('{filled[0]}')"
    return ""


def _are_numbered_labels(cells: list[str]) -> bool:
    """Return whether whole numbers are the names of labels: with 0 and 1 alone they are states."""
    return all(cell.isdecimal() for cell in cells) and not {*cells} <= {"0", "1"}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell.casefold() not in ("nan", "inf", "infinity")


def _refuse(path: Path, rows: Sequence[list[str]], why: str) -> DataError:
    """Return the error that the table needs a header."""
    return DataError(
        f"{path}: no header: the first line is already a row ('{','.join(rows[0][:4])[:60]}'), and "
        f"{why}. Write a line above it with a name for each column: image for the pictures, "
        f"labels for a column of labels, and above a column of 0 and 1 the name of its label"
    )


def complete_header(
    path: Path, header: list[str], rows: Sequence[list[str]], notes: list[str]
) -> list[str]:
    """Return the header, with a column without a name where each row has one cell more.

        image,labels    "1","a.jpg","cat"     R writes the names of the rows, and no name for them
        image,labels    a.jpg,cat,            each line ends in a separator

    Args:
        path: the file, for messages.
        header: the first line.
        rows: the first rows below it.
        notes: gets a note where the header is completed.

    Raises:
        DataError: each line is one cell that holds separators, or the names of the columns stand
            below a title or a comment.
    """
    if below := _find_header_below(header, rows):
        raise DataError(
            f"{path}: the names of the columns ({quote_names(below)}) stand below the first line, "
            f"'{header[0].strip()[:60]}'; remove the lines above them"
        )
    if len(header) == 1 and len(rows) > 0:
        if header[0].startswith("#"):
            raise DataError(
                f"{path}: the first line is a comment; remove the lines above the names of the "
                f"columns, as image,labels"
            )
        if any(sign in header[0] for sign in ";,\t"):
            raise DataError(
                f"{path}: each line stands in quotes as a whole; remove the outer quotes, or save "
                f"the table again"
            )
    if {len(row) for row in rows} != {len(header) + 1}:
        return header
    if not any(row[-1].strip() for row in rows):
        return [*header, ""]
    names = [row[0].strip() for row in rows]
    if len(set(names)) < len(names) or "" in names or any(map(is_picture_name, names)):
        return header
    notes.append("each row has one cell more than the header; the first names the row, as R writes")
    return ["", *header]


def _find_header_below(header: Sequence[str], rows: Sequence[list[str]]) -> list[str]:
    """Return the names of the columns where they stand in a row below; else nothing.

    `Pictures of 2024,,`, `image,labels,notes`, `a.jpg,cat,`: a column that is called image there
    has names of pictures below it.
    """
    if any(simplify_name(name) in _IMAGE_NAMES for name in header):
        return []
    for number, row in enumerate(rows[:_MANY_ROWS]):
        below = [cells for cells in rows[number + 1 :] if len(cells) == len(row)]
        if any(map(is_picture_name, row)):
            return []
        for index, cell in enumerate(row):
            if simplify_name(cell) in _IMAGE_NAMES and below:
                named = sum(is_picture_name(cells[index]) for cells in below)
                if 2 * named >= len(below):
                    return [cell.strip() for cell in row if cell.strip()]
    return []
