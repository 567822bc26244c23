"""Tasks of Label Studio with predictions: pictures with proposed labels, for people to correct.

    {"data": {"image": "photos/a.jpg"},
     "predictions": [{"model_version": "pets/best.safetensors sha256:1a2b3c4d5e6f", "score": 0.84,
       "result": [{"from_name": "choice", "to_name": "image", "type": "choices", "score": 0.84,
                   "value": {"choices": ["cat", "sofa"]}, "meta": {"scores": {"cat": 0.97, ...}}}]}]}

Format: https://labelstud.io/guide/predictions. A control has one result, which names all of its
labels. A picture without labels has an empty `result`: it shows nothing, which people confirm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Task = dict[str, Any]


@dataclass(frozen=True)
class Interface:
    """Names of a labeling interface; at first those of Label Studio's image classification.

    Attributes:
        image: key of a task's data that holds the picture: `value="$image"`.
        to_name: name of the `Image` tag.
        from_name: name of the `Choices` tag.
        controls: label -> name of its `Choices` tag, where there are several; a label that is not
            there has `from_name`.
    """

    image: str = "image"
    to_name: str = "image"
    from_name: str = "choice"
    controls: Mapping[str, str] = field(default_factory=dict)


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
    by_control: dict[str, list[int]] = {}
    for column in columns:
        control = names.controls.get(labels[column], names.from_name)
        by_control.setdefault(control, []).append(column)
    prediction: Task = {"model_version": model_version}
    if with_scores:
        prediction["score"] = min(p[c] for c in columns) if columns else round(1 - max(p), 6)
    results = []
    for control, chosen in by_control.items():
        result: Task = {"from_name": control, "to_name": names.to_name, "type": "choices"}
        result["value"] = {"choices": [labels[c] for c in chosen]}
        if with_scores:
            result["score"] = min(p[c] for c in chosen)
            result["meta"] = {"scores": {labels[c]: p[c] for c in chosen}}
        results.append(result)
    prediction["result"] = results
    return {"data": {names.image: image, **(data or {})}, "predictions": [prediction]}


def build_failed_task(image: str, error: str, interface: Interface | None = None) -> Task:
    """Return the task of a picture that could not be read: no prediction, the reason as `meta`."""
    key = (Interface() if interface is None else interface).image
    return {"data": {key: image}, "predictions": [], "meta": {"error": error}}
