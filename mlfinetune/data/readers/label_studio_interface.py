"""Names of a labeling interface of Label Studio, as an export shows them.

    export.json -> read_interface -> Interface -> predictions that fit the same interface

A prediction must name the tags of the interface that it is shown in, and choices that this has.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlfinetune.data.readers.column_names import IMAGE_COLUMNS
from mlfinetune.data.readers.column_sample import is_picture_name
from mlfinetune.data.readers.label_studio import find_controls, is_export, iterate_results
from mlfinetune.data.table import SourceOptions

_KINDS = ("choices", "taxonomy")
_MOST_BYTES = 2**28
"""Largest export that is looked at: it is parsed as a whole."""


@dataclass(frozen=True)
class Choice:
    """A label in the interface: the name of its `Choices` or `Taxonomy` tag, and its value there.

    Attributes:
        control: name of the tag.
        value: a choice; of a taxonomy the path that leads to the label.
    """

    control: str
    value: str | tuple[str, ...]


@dataclass(frozen=True)
class Interface:
    """Names of a labeling interface; the defaults are Label Studio's for image classification.

    Attributes:
        image: key of a task's data that holds the picture: `value="$image"`.
        to_name: name of the `Image` tag.
        from_name: name of the `Choices` tag.
        choices: label -> its choice, where the interface says it; of others the control is
            `from_name`, and the value is the label itself.
    """

    image: str = "image"
    to_name: str = "image"
    from_name: str = "choice"
    choices: Mapping[str, Choice] = field(default_factory=dict)

    def find_choice(self, label: str) -> Choice:
        """Return the choice of a label."""
        return self.choices.get(label) or Choice(self.from_name, label)


def read_interface(
    path: Path, image_column: str | None, controls: tuple[str, ...], renames: Mapping[str, str]
) -> Interface | None:
    """Return the names that an export in JSON shows; None: it is none, or shows no choices.

    JSON-MIN does not name the `Image` tag: it is called as in the template. Labels of regions are
    about a part of a picture, and are left out.

    Args:
        path: the file; it may be missing, or anything else.
        image_column: `data.image_column`: key of the picture.
        controls: `data.label_column`: controls whose labels are meant; (): all.
        renames: `data.rename_labels`: value in the interface -> label.
    """
    try:
        if path.suffix.lower() != ".json" or path.stat().st_size > _MOST_BYTES:
            return None
        content = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    if not is_export(content):
        return None
    tasks = [task for task in (content if isinstance(content, list) else [content]) if task]
    found = [row for row in _list_choices(tasks) if not controls or row[0] in controls]
    found = found or _list_texts(tasks, image_column, controls)
    if not found:
        return None
    choices: dict[str, Choice] = {}
    for control, _, value in found:
        label = value if isinstance(value, str) else value[-1]
        choices.setdefault(renames.get(label, label), Choice(control, value))
    defaults = Interface()
    return Interface(
        image=image_column or _find_image(tasks) or defaults.image,
        to_name=found[0][1] or defaults.to_name,
        from_name=found[0][0],
        choices=choices,
    )


def _list_choices(tasks: list[Any]) -> Iterator[tuple[str, str, str | tuple[str, ...]]]:
    """Yield control, `Image` tag (empty: not said) and value of each choice of an export."""
    for task in tasks:
        if not isinstance(task, dict):
            continue
        if "data" not in task:  # JSON-MIN
            for key, value in task.items():
                yield from ((key, "", each) for each in _read_values(value))
            continue
        for result in iterate_results(task):
            names = str(result.get("from_name")), str(result.get("to_name") or "")
            if result.get("type") in _KINDS:
                yield from ((*names, each) for each in _read_values(result.get("value")))


def _list_texts(
    tasks: list[Any], image_column: str | None, controls: tuple[str, ...]
) -> list[tuple[str, str, str | tuple[str, ...]]]:
    """Return the choices of JSON-MIN where each control has one, which is then a plain text."""
    rows = [task for task in tasks if isinstance(task, dict) and "data" not in task]
    keys = controls or find_controls(rows, SourceOptions(image_column=image_column))
    return [(key, "", row[key]) for key in keys for row in rows if isinstance(row.get(key), str)]


def _read_values(value: Any) -> Iterator[str | tuple[str, ...]]:
    """Yield the choices of `{"choices": ["cat"]}`, and every level of a taxonomy's paths.

    Of `{"taxonomy": [["animal", "cat"]]}`, and of JSON-MIN's `[["animal", "cat"]]`, they are
    (animal,) and (animal, cat).
    """
    if isinstance(value, dict) and isinstance(value.get("choices"), list):
        yield from (str(choice) for choice in value["choices"])
    paths = value.get("taxonomy") if isinstance(value, dict) else value
    for path in paths if isinstance(paths, list) else ():
        if isinstance(path, list) and path and all(isinstance(level, str) for level in path):
            yield from (tuple(path[:end]) for end in range(1, len(path) + 1))


def _find_image(tasks: list[Any]) -> str | None:
    """Return the key of the first picture."""
    for task in tasks:
        data = task.get("data", task) if isinstance(task, dict) else {}
        texts = {str(k): v for k, v in data.items() if isinstance(v, str)}
        known = [key for key in texts if key.casefold() in IMAGE_COLUMNS]
        if names := [*known, *(key for key, text in texts.items() if is_picture_name(text))]:
            return names[0]
    return None
