"""Tasks of Label Studio, exported as JSON, JSON-MIN or CSV, become rows of a JSON list.

    {"data": {"image": "/data/upload/1/1a2b3c4d-a.jpg"}, "annotations": [{"result": [
        {"from_name": "tag", "type": "choices", "value": {"choices": ["cat"]}}]}]}     JSON
    {"image": "/data/upload/1/1a2b3c4d-a.jpg", "tag": {"choices": ["cat"]}, "annotation_id": 7, ...}
    annotation_id,annotator,image,lead_time,tag     a row of CSV: the values of JSON-MIN as text
    -> {"image": "/data/upload/1/1a2b3c4d-a.jpg", "tag": ["cat"]}

A task of several annotations gives its ground truth, or else the newest. A task that was skipped,
or has no annotation, gives no row: nobody has said what it shows. One that was submitted without a
label gives an empty one, for `data.empty_labels`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlfinetune.data.readers.cells import quote_names
from mlfinetune.data.readers.column_names import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    OTHER_LABEL_NAMES,
    find_split,
    simplify_name,
)
from mlfinetune.data.readers.column_sample import is_picture_name
from mlfinetune.data.table import SourceOptions
from mlfinetune.errors import DataError
from mlfinetune.text import pluralize, quote_yaml

Task = dict[str, Any]

_LISTS = ("annotations", "completions")
"""Keys of a task's annotations, now and in old versions."""
_PREDICTIONS = "predictions"
"""Key of what a model proposes: a task with these alone is not annotated."""
_KINDS = {
    "choices", "taxonomy", "labels", "rectanglelabels", "polygonlabels", "ellipselabels",
    "keypointlabels", "brushlabels", "bitmasklabels",
}  # fmt: skip
"""Types of results that name labels; of a region it is a label of the picture."""
_ABOUT = {
    "id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement",
    "inner_id", "total_annotations", "cancelled_annotations", "project", "comment_count", "history",
}  # fmt: skip
"""Keys of JSON-MIN that describe the annotation."""


@dataclass(frozen=True)
class Tasks:
    """Rows of an export.

    Attributes:
        rows: number of a task in the file, from 1, and its row.
        options: with the columns of pictures and labels.
        notes: counts of what gave no row, as lines for the user.
    """

    rows: list[tuple[int, Task]]
    options: SourceOptions
    notes: tuple[str, ...]


def is_export(content: Any) -> bool:
    """Tell whether parsed JSON is an export of Label Studio: a list of tasks, or one task."""
    first = content[0] if isinstance(content, list) and content else content
    return isinstance(first, dict) and (_is_task(first) or _is_flat_task(first))


def read_tasks(content: Any, options: SourceOptions) -> Tasks:
    """Return the rows of an export.

    Args:
        content: for which `is_export` holds.
        options: `label_column` may name controls of the labeling interface; `folder_labels: path`
            makes each level of a taxonomy a label, `leaf` the last one.

    Raises:
        DataError: `label_column` names a control that the export lacks; of JSON-MIN it is not sure
            which keys are controls.
    """
    tasks = content if isinstance(content, list) else [content]
    if _is_flat_task(tasks[0]):
        return _read_flat(tasks, options)
    wanted, column, counts = set(options.label_column), _name_column(tasks), Counter[str]()
    _require_controls(options.label_column, _list_controls(tasks))
    rows: list[tuple[int, Task]] = []
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, dict) or not _is_task(task):
            rows.append((number, task))  # a fault of its own
            continue
        annotation = _choose_annotation(task, counts)
        if annotation is None:
            continue
        data = {k: v for k, v in task["data"].items() if not isinstance(v, list | dict)}
        labels = _collect_labels(annotation, wanted, options.folder_labels)
        rows.append((number, {**data, column: list(dict.fromkeys(labels))}))
    return Tasks(rows, _set_columns(options, rows, (column,)), _describe(counts))


def _list_controls(tasks: Sequence[Any]) -> list[str]:
    """Return the names of the controls whose results name labels."""
    names = dict[str, None]()
    for task in tasks:
        if isinstance(task, dict) and _is_task(task):
            for result in iterate_results(task):
                if isinstance(result.get("from_name"), str) and _names_labels(result):
                    names[result["from_name"]] = None
    return list(names)


def iterate_results(task: Task) -> Iterator[Task]:
    """Yield the results of all annotations of a task."""
    for name in _LISTS:
        for annotation in task.get(name) or ():
            results = annotation.get("result") if isinstance(annotation, dict) else None
            yield from (x for x in results or () if isinstance(x, dict))


def _names_labels(result: Task) -> bool:
    kind = result.get("type")
    return isinstance(kind, str) and kind in _KINDS


def _require_controls(wanted: Sequence[str], controls: Sequence[str]) -> None:
    """Raise a DataError where `data.label_column` names a control that the export lacks."""
    for name in wanted:
        if name not in controls:
            raise DataError(
                f"no control '{name}' (data.label_column); controls of this export: "
                f"{quote_names(controls) or 'none'}"
            )


def _is_task(value: Task) -> bool:
    has_list = any(isinstance(value.get(name), list) for name in (*_LISTS, _PREDICTIONS))
    return has_list and isinstance(value.get("data"), dict)


def _is_flat_task(value: Task) -> bool:
    return {"annotation_id", "annotator"} <= value.keys()


def _name_column(tasks: Sequence[Any]) -> str:
    """Return a name for the column of labels that no task's data has."""
    taken = {
        key for task in tasks if isinstance(task, dict) and _is_task(task) for key in task["data"]
    }
    return next(name for name in ("labels", "choices", "annotated labels") if name not in taken)


def _choose_annotation(task: Task, counts: Counter[str]) -> Task | None:
    """Return the annotation that counts; None: the task was skipped, or not annotated."""
    found = [one for name in _LISTS for one in task.get(name) or () if isinstance(one, dict)]
    kept = [one for one in found if not one.get("was_cancelled") and not one.get("skipped")]
    if not kept:
        counts["skipped" if found else "without an annotation"] += 1
        return None
    if len(kept) > 1:
        counts["several"] += 1
    return max(kept, key=lambda one: (bool(one.get("ground_truth")), _read_time(one)))


def _read_time(annotation: Task) -> str:
    """Return when it was written, as text that sorts by time."""
    return str(annotation.get("updated_at") or annotation.get("created_at") or "")


def _collect_labels(annotation: Task, wanted: set[str], folder_labels: str) -> Iterator[str]:
    for result in annotation.get("result") or ():
        if not isinstance(result, dict) or not _names_labels(result):
            continue
        if not wanted or result.get("from_name") in wanted:
            value = result.get("value")
            if isinstance(value, dict):
                yield from _read_value(value.get(result["type"]), folder_labels)


def _read_value(value: Any, folder_labels: str) -> Iterator[str]:
    """Yield labels: of `["cat"]` cat; of a taxonomy's `[["animal", "cat"]]` its leaf, or all."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, list):
            yield from (str(part) for part in (item if folder_labels == "path" else item[-1:]))
        elif item is not None:
            yield str(item)


def _describe(counts: Counter[str]) -> tuple[str, ...]:
    lines = [
        f"{pluralize(counts[kind], 'task')} of Label Studio {kind}: left out"
        for kind in ("skipped", "without an annotation")
        if counts[kind]
    ]
    if counts["several"]:
        count = pluralize(counts["several"], "task")
        lines.append(f"{count} with several annotations: the ground truth, or else the newest")
    return tuple(lines)


def _set_columns(
    options: SourceOptions, rows: Sequence[tuple[int, Any]], labels: tuple[str, ...]
) -> SourceOptions:
    """Return the options with the columns; a picture's is the first that names pictures."""
    row = next((row for _, row in rows if isinstance(row, dict)), {})
    known = [key for key in row if key.casefold() in IMAGE_COLUMNS]
    found = [key for key, value in row.items() if isinstance(value, str) and is_picture_name(value)]
    image = options.image_column or next(iter([*known, *found]), None)
    return replace(options, image_column=image, label_column=labels)


# ---- JSON-MIN ---------------------------------------------------------------------------


def _read_flat(tasks: Sequence[Any], options: SourceOptions) -> Tasks:
    """Return the rows of JSON-MIN, where each annotation is an object with its task's data."""
    newest: dict[object, tuple[int, Any]] = {}
    repeated: set[object] = set()
    for number, task in enumerate(tasks, 1):
        known = isinstance(task, dict) and isinstance(task.get("id"), int | str)
        key = task["id"] if known else ("row", number)
        if key in newest:
            repeated.add(key)
            if _read_time(task) < _read_time(newest[key][1]):
                continue
        newest[key] = (number, task)
    kept = sorted(newest.values(), key=lambda pair: pair[0])
    found = [task for _, task in kept]
    columns = {key for task in found if isinstance(task, dict) for key in task.keys() - _ABOUT}
    _require_controls(options.label_column, sorted(columns))
    controls = options.label_column or find_controls(found, options)
    rows = [(number, _flatten_row(task, controls, options)) for number, task in kept]
    counts = Counter({"several": len(repeated)})
    if not controls:  # the columns are looked at as those of any table
        return Tasks(rows, options, _describe(counts))
    return Tasks(rows, _set_columns(options, rows, tuple(controls)), _describe(counts))


def find_controls(tasks: Sequence[Any], options: SourceOptions) -> tuple[str, ...]:
    """Return the keys that hold labels; none where that is not sure.

    A control of one choice has text, as the task's data may have. A text that several rows share,
    or in a key such as `choice`, may be either.

    Raises:
        DataError: some keys hold choices, and others may.
    """
    values: dict[str, list[Any]] = {}
    for task in tasks:
        if isinstance(task, dict):
            for key, value in task.items():
                if key not in _ABOUT:
                    values.setdefault(key, []).append(value)
    nested = [key for key, found in values.items() if any(map(_is_nested, found))]
    named = {options.image_column, options.split_column, options.group_by, *nested}
    texts = [key for key, found in values.items() if key not in named and _are_words(found)]
    if not nested:
        return tuple(texts) if len(texts) == 1 else ()
    shared = [
        key for key in texts if len(set(values[key])) < len(values[key]) or _is_label_name(key)
    ]
    if shared:
        raise DataError(
            f"{quote_names(nested)} hold choices, and {quote_names(shared)} may: name the controls "
            f"that hold labels, data.label_column: [{', '.join(map(quote_yaml, nested))}]"
        )
    return tuple(nested)


def _is_label_name(key: str) -> bool:
    name = simplify_name(key)
    return name in LABEL_COLUMNS or name in OTHER_LABEL_NAMES


def _are_words(values: Sequence[Any]) -> bool:
    """Return whether values are texts that name no pictures, and not all are splits."""
    texts = [value for value in values if isinstance(value, str) and not is_picture_name(value)]
    return len(texts) == len(values) and not all(map(find_split, texts))


def _is_nested(value: Any) -> bool:
    """Tell whether a value is `{"choices": [...]}`, a taxonomy's paths, or labels of regions."""
    if isinstance(value, dict):
        return bool(_KINDS & value.keys())
    first = value[0] if isinstance(value, list) and value else None
    is_path = isinstance(first, list) and all(isinstance(level, str) for level in first)
    return is_path or (isinstance(first, dict) and bool(_KINDS & first.keys()))


def _flatten_row(task: Any, controls: Sequence[str], options: SourceOptions) -> Any:
    """Return a row with plain lists of labels, without what describes the annotation."""
    if not isinstance(task, dict):
        return task
    row = {key: value for key, value in task.items() if key not in _ABOUT}
    for name in controls:
        row[name] = list(dict.fromkeys(_read_cell(row.get(name), options.folder_labels)))
    return row


def _read_cell(value: Any, folder_labels: str) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            for kind in _KINDS & item.keys():
                yield from _read_value(item[kind], folder_labels)
        else:
            yield from _read_value([item], folder_labels)


# ---- CSV --------------------------------------------------------------------------------


def is_export_header(header: Sequence[str]) -> bool:
    """Tell whether a table has the columns that Label Studio writes beside the annotations."""
    return {"annotation_id", "annotator", "lead_time"} <= set(header)


def read_table_rows(
    header: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], options: SourceOptions
) -> Tasks:
    """Return the rows of a CSV export, which holds the values of JSON-MIN as text.

    Args:
        header: for which `is_export_header` holds.
        rows: line number and cells of each row.
        options: as `read_tasks` takes them.

    Raises:
        DataError: as `read_tasks`.
    """
    tasks = [
        {key: _parse_cell(cell) for key, cell in zip(header, cells, strict=False) if cell.strip()}
        for _, cells in rows
    ]
    read = _read_flat(tasks, options)
    return replace(read, rows=[(rows[number - 1][0], row) for number, row in read.rows])


def _parse_cell(text: str) -> Any:
    """Return the choices, paths or regions that a cell prints; any other text as it is."""
    if not text.startswith(("{", "[")):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if _is_nested(value) else text
