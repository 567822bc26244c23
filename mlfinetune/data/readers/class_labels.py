"""Hugging Face's ClassLabel: columns of numbers whose names stand in the metadata.

{"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}     1 -> dog, [0, 1] -> cat, dog
"""

import json
from typing import Any

from mlfinetune.data.readers.columns import Columns
from mlfinetune.data.table import Fault

Classes = dict[str, list[str]]
"""Column of a ClassLabel -> the names of its numbers."""


def read_class_names(metadata: dict[bytes, bytes]) -> Classes:
    """Return the names of ClassLabel features, or of lists of them, from Hugging Face metadata."""
    try:
        features = dict(json.loads(metadata[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):
        return {}
    classes = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else feature
        inner = inner[0] if isinstance(inner, list) and inner else inner
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and inner.get("names"):
            classes[column] = list(map(str, inner["names"]))
    return classes


def name_classes(names: list[str], cells: list[Any]) -> list[list[str]]:
    """Return the names of the ClassLabel numbers of each cell; -1 means no label.

    Numbers without a name are left out; `report_numbers` reports them.
    """
    numbers = (cell if isinstance(cell, list) else [cell] for cell in cells)
    return [[names[n] for n in row if n is not None and 0 <= n < len(names)] for row in numbers]


def report_numbers(
    columns: Columns, column: str, names: list[str], cells: list[Any], first: int
) -> None:
    """Add a fault for each cell with a number that has no name; `first` is its first row."""
    for row, cell in enumerate(cells, first):
        numbers = cell if isinstance(cell, list) else [cell]
        unknown = [n for n in numbers if n not in (None, -1) and not 0 <= n < len(names)]
        if unknown:
            text = f"{column} is {unknown[0]}; its labels have the numbers 0 to {len(names) - 1}"
            columns.faults.append(Fault(f"line {row + 1}", text, row))
