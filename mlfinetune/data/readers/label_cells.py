"""Labels added to a cell of a list, or taken out; the other labels of the cell stay as they stand.

cell `cat | dog`, delimiter `|`    + fox -> `cat | dog | fox`     - cat -> `dog`
cell `["cat", "dog"]`              + fox -> `["cat", "dog", "fox"]`
"""

import ast
import json
from collections.abc import Collection
from typing import Any

from mlfinetune.data.readers.containers import LIST_KEYS, looks_quoted, may_be_list, read_labels
from mlfinetune.errors import DataError


def add_label(cell: str, label: str, delimiter: str | None, printed: str = "") -> str:
    """Return the cell with one label more, behind the others.

    Args:
        cell: of a list of labels, which does not have the label.
        label: the new one.
        delimiter: the sign between labels; None: the cell holds one label at most.
        printed: a list in the form to write, as the cell or others of the table hold it.

    Raises:
        DataError: a label that holds the delimiter; a second label without one; a list in a form
            that is not written.
    """
    if is_container(cell):
        return _print_like(printed or cell, [*_parse(cell), label])
    if delimiter is not None and delimiter in label:
        raise DataError(f"the label {label!r} holds {delimiter!r}, which separates the labels")
    if not cell.strip():
        return label
    if printed and delimiter is None:
        return _print_like(printed, [cell.strip(), label])
    if delimiter is None:
        raise DataError(f"no sign separates labels, and {label!r} would be the second of its cell")
    parts = cell.split(delimiter)
    while len(parts) > 1 and not parts[-1].strip():  # `cat|` stays so: `cat|fox|`
        parts.pop()
    head = delimiter.join(parts)
    tail = cell[len(head) :]
    last = parts[-1]
    spaced = [part for part in parts[1:] if part.strip()]
    before = spaced[0][: len(spaced[0]) - len(spaced[0].lstrip())] if spaced else ""
    after = last[len(last.rstrip()) :]
    if len(parts) > 1 and parts[0].endswith(" ") and not after and delimiter != " ":
        head += parts[0][len(parts[0].rstrip()) :]
    return f"{head}{delimiter}{before}{label}{after}{tail}"


def remove_labels(cell: str, labels: Collection[str], delimiter: str | None) -> str:
    """Return the cell without these labels; a cell without any label is empty.

    Raises:
        DataError: a list in a form that is not written.
    """
    if is_container(cell):
        items = _parse(cell)
        return _print_like(cell, [item for item in items if item not in labels])
    parts = cell.split(delimiter) if delimiter else [cell]
    kept = [part for part in parts if part.strip() not in labels]
    if len(kept) == len(parts):
        return cell
    if not any(map(str.strip, kept)):
        return ""
    text = (delimiter or "").join(kept)
    if kept[0] is not parts[0]:
        text = text.lstrip()
    return text.rstrip() if kept[-1] is not parts[-1] else text


def is_container(cell: str) -> bool:
    """Return whether a cell prints a list, such as `["cat"]`."""
    text = cell.strip()
    return bool(text) and may_be_list(text) and looks_quoted(text)


def _parse(cell: str) -> list[str]:
    """Return the labels of a list that `_print_like` can write.

    Raises:
        DataError: it has another form.
    """
    value = _load(cell)
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in LIST_KEYS:
        value = next(iter(value.values()))
    if isinstance(value, list | tuple | set) and all(isinstance(item, str) for item in value):
        return list(read_labels(list(value)))
    if isinstance(value, str | None):
        return list(read_labels([value]))
    raise DataError(f"the list {cell.strip()[:60]!r} is in a form that is not written")


def _load(cell: str) -> Any:
    """Return the value of a list in JSON or Python.

    Raises:
        DataError: it is neither.
    """
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(cell.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    if cell.strip() == "set()":
        return set()
    raise DataError(f"the list {cell.strip()[:60]!r} is in a form that is not written")


def _print_like(cell: str, labels: list[str]) -> str:
    """Return the labels as a list in the form of the cell: JSON or Python, with its key."""
    text, value = cell.strip(), _load(cell)
    if isinstance(value, tuple):
        return repr(tuple(labels))
    if isinstance(value, set):
        return "{" + ", ".join(map(repr, labels)) + "}" if labels else "set()"
    wanted: Any = {next(iter(value)): labels} if isinstance(value, dict) else labels
    try:
        json.loads(text)
    except ValueError:
        return repr(wanted)
    between = "," if "," in text and ", " not in text else ", "
    separators = (between, ": " if '": ' in text else ":")
    return json.dumps(wanted, ensure_ascii=text.isascii(), separators=separators)
