"""Tasks of Label Studio with predictions: pictures with proposed labels, for people to correct.

    {"data": {"image": "photos/a.jpg"},
     "predictions": [{"model_version": "pets/best.safetensors sha256:1a2b3c4d5e6f", "score": 0.84,
       "result": [{"from_name": "choice", "to_name": "image", "type": "choices", "score": 0.84,
                   "value": {"choices": ["cat", "sofa"]},
                   "meta": {"scores": {"cat": 0.97, "sofa": 0.84}}}]}]}

Format: https://labelstud.io/guide/predictions. A control has one result, which names all of its
labels. A picture without labels has an empty `result`, which people confirm or correct.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config import Config
from mlfinetune.data.readers.label_studio_interface import Interface, read_interface

Task = dict[str, Any]
_DIGITS = 12
"""Digits of a checkpoint's SHA-256 in the name of a model."""


def find_interface(config: Config) -> tuple[Interface, str]:
    """Return the interface of the export that a run was trained on, and a line that says so.

    Where the run had another kind of table, or the export is gone, it is Label Studio's template.
    """
    data = config.data
    column = data.label_column
    controls = (column,) if isinstance(column, str) else tuple(column or ())
    about = data.image_column, controls, data.rename_labels
    tables = data.train if isinstance(data.train, tuple) else (data.train,)
    read = ((table, read_interface(table, *about)) for table in tables if isinstance(table, Path))
    shown = ((found, f"as in {table}") for table, found in read if found is not None)
    interface, source = next(shown, (Interface(), "Label Studio's template"))
    controls = tuple(dict.fromkeys(choice.control for choice in interface.choices.values()))
    names = ", ".join(f"control {name!r}" for name in controls or (interface.from_name,))
    return interface, (
        f"interface: data.{interface.image}, image {interface.to_name!r}, {names} ({source})"
    )


def name_model(checkpoint: str) -> str:
    """Return the `model_version` for what `name_checkpoint` returns: a part of its digest."""
    name, mark, digest = checkpoint.partition("sha256:")
    return name + mark + digest[:_DIGITS]


def build_task(
    image: str,
    labels: Sequence[str],
    probabilities: NDArray[np.floating],
    columns: Sequence[int],
    model_version: str,
    interface: Interface | None = None,
    with_scores: bool = True,
    data: Mapping[str, str | float] | None = None,
) -> Task:
    """Return a task whose prediction proposes labels.

    Args:
        image: path or URL of the picture, as Label Studio shall find it.
        labels: names of the L labels.
        probabilities: (L,) in [0, 1].
        columns: the proposed labels.
        model_version: name of the model, which Label Studio filters by.
        interface: names of the labeling interface; None: Label Studio's template.
        with_scores: write scores. The score of a prediction is the lowest probability of its
            labels; without a label, one minus the highest probability. So the least sure pictures
            come first where Label Studio sorts by score.
        data: more keys of the task's data, shown as columns in Label Studio.
    """
    names = Interface() if interface is None else interface
    p = [round(float(x), 6) for x in probabilities]
    by_control: dict[tuple[str, str], list[int]] = {}
    for column in columns:
        choice = names.find_choice(labels[column])
        kind = "choices" if isinstance(choice.value, str) else "taxonomy"
        by_control.setdefault((choice.control, kind), []).append(column)
    prediction: Task = {"model_version": model_version}
    if with_scores:
        prediction["score"] = min(p[c] for c in columns) if columns else round(1 - max(p), 6)
    results = []
    for (control, kind), chosen in by_control.items():
        result: Task = {"from_name": control, "to_name": names.to_name, "type": kind}
        result["value"] = {kind: _list_values([names.find_choice(labels[c]).value for c in chosen])}
        if with_scores:
            result["score"] = min(p[c] for c in chosen)
            result["meta"] = {"scores": {labels[c]: p[c] for c in chosen}}
        results.append(result)
    prediction["result"] = results
    return {"data": {names.image: image, **(data or {})}, "predictions": [prediction]}


def _list_values(values: Sequence[str | tuple[str, ...]]) -> list[str | list[str]]:
    """Return choices as they are, and paths of a taxonomy without those that others go through."""
    inside = {value[:end] for value in values for end in range(1, len(value))}
    return [
        value if isinstance(value, str) else list(value)
        for value in values
        if isinstance(value, str) or value not in inside
    ]


def build_failed_task(image: str, error: str, interface: Interface | None = None) -> Task:
    """Return the task of a picture that could not be read: no prediction, the reason as `meta`."""
    key = (Interface() if interface is None else interface).image
    return {"data": {key: image}, "predictions": [], "meta": {"error": error}}
