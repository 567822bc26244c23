"""Ids of COCO's images and categories: the index of each entry, found by number or by text.

categories      category_id    index
3 dog, 4 cat    3              0
                "3"            0: read as text, since that is unambiguous; a note counts it
                "dog"          none: one fault for all annotations that have text here
                7              none: a fault for this annotation
"""

import os
import re
from reprlib import repr as shown
from typing import Any

from mlfinetune.data.table import Fault

_PLURALS = {"image": "images", "category": "categories"}


class EntryIds:
    """Ids of the entries of one list -> index of the entry's name; -1 for one without a name.

    Attributes:
        kind: `image` or `category`.
        names: the names.
    """

    def __init__(self, kind: str, indices: dict[Any, int], names: list[str]) -> None:
        self.kind = kind
        self.names = names
        self._indices = indices
        self._example = next(iter(indices), None)
        by_text = {_format_id(entry_id): index for entry_id, index in indices.items()}
        types = {isinstance(entry_id, str) for entry_id in indices}
        is_clear = len(by_text) == len(indices) and len(types) == 1
        self._by_text = by_text if is_clear else {}
        self._matched = 0  # ids of annotations that were found as text
        self._strange: list[Any] = [0, None]  # number of ids of the other type; the first of them

    def find(self, entry_id: Any) -> int | None:
        """Return the index of the entry that an annotation names, or None."""
        if not is_id(entry_id):
            return None
        index = self._indices.get(entry_id)
        if index is None and self._is_other_type(entry_id):
            index = self._by_text.get(_format_id(entry_id))
            self._matched += index is not None
        return index

    def describe_miss(self, entry_id: Any) -> str:
        """Return the fault of an id that was not found; of the other type it is counted: no text.

        `build_fault` reports those.
        """
        if is_id(entry_id) and self._is_other_type(entry_id):
            if not self._strange[0]:
                self._strange[1] = entry_id
            self._strange[0] += 1
            return ""
        return describe_value(f"{self.kind}_id", entry_id, f"matches no {self.kind}")

    def build_fault(self) -> list[Fault]:
        """Return the one fault of all ids that `describe_miss` counted, if there are any."""
        count, example = self._strange
        if not count:
            return []
        plural = _PLURALS[self.kind]
        return [
            Fault(
                "annotations",
                f"{count:,} have {self.kind}_id as {_name_type(example)}, such as "
                f"{shown(example)}; the ids of {plural} are {_name_type(self._example)}, such as "
                f"{shown(self._example)}: write these",
            )
        ]

    def describe_match(self) -> list[str]:
        """Return a note where ids were found as text."""
        if not self._matched:
            return []
        own = _name_type(self._example)
        other = "numbers" if own == "text" else "text"
        count = f"{self._matched:,} annotation{'' if self._matched == 1 else 's'}"
        return [
            f"{self.kind}_id is {other} in {count}, and {own} in {_PLURALS[self.kind]}: matched"
        ]

    def find_repeated_names(self) -> list[Fault]:
        """Return a fault for each entry whose name, taken as a path, another one has too."""
        faults, first = [], dict[str, Any]()
        for entry_id, index in self._indices.items():
            if index < 0:
                continue
            name = self.names[index]
            other = first.setdefault(os.path.normpath(name), entry_id)
            if other is not entry_id:
                text = f"ids {shown(other)} and {shown(entry_id)} have one file_name, {shown(name)}"
                faults.append(Fault(_PLURALS[self.kind], text, index))
        return faults

    def _is_other_type(self, entry_id: Any) -> bool:
        """Return whether an id is text and all ids of the entries are numbers, or vice versa."""
        return bool(self._by_text) and isinstance(entry_id, str) != isinstance(self._example, str)


def index_entries(entries: list[Any], kind: str, key: str, faults: list[Fault]) -> EntryIds:
    """Return the ids and names of a list; adds to `faults`.

    Args:
        entries: the JSON list of images or categories.
        kind: `image` or `category`, for the messages.
        key: the key of the name. An entry without a name has the index -1.
        faults: gets the bad entries.
    """
    indices, names = dict[Any, int](), list[str]()
    for number, entry in enumerate(entries, 1):
        entry_id, name = (
            (entry.get("id"), entry.get(key)) if isinstance(entry, dict) else (None, None)
        )
        error = ""
        if not is_id(entry_id):
            error = describe_value("id", entry_id, "is not a number or a string")
        elif entry_id in indices:
            error = describe_value("id", entry_id, "is repeated")
        elif not isinstance(name, str) or not name.strip() or re.search("[\ud800-\udfff]", name):
            indices[entry_id] = -1
            error = describe_value(key, name, "is not a name")
        else:
            indices[entry_id] = len(names)
            names.append(name)
        if error:
            faults.append(Fault(f"{kind} {number}", error))
    return EntryIds(kind, indices, names)


def describe_value(key: str, value: Any, error: str) -> str:
    """Return `no image_id`, or `image_id 8 matches no image`."""
    return f"no {key}" if value is None else f"{key} {shown(value)} {error}"


def is_id(value: Any) -> bool:
    """Return whether a JSON value can be an id: a number or a string, but not true or false."""
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _format_id(entry_id: Any) -> str:
    """Return an id as text: 3 and 3.0 are `3`."""
    if isinstance(entry_id, float) and entry_id.is_integer():
        entry_id = int(entry_id)
    return str(entry_id).strip()


def _name_type(entry_id: Any) -> str:
    return "text" if isinstance(entry_id, str) else "numbers"
