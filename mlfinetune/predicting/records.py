"""Records of what a tagger found in pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mlfinetune.errors import ImageError
from mlfinetune.metrics.types import Prediction
from mlfinetune.runs.predictions import LabelSelector


@dataclass(frozen=True)
class TaggedImage:
    """Labels and probabilities of one picture, or the reason why there are none.

    Attributes:
        image: the picture's path or URL, as it was given; of one in memory its place: `images[2]`.
        labels: those over their thresholds, in the tagger's order; with `top`, the most probable
            first.
        scores: label -> its probability, calibrated where the checkpoint is, for all labels.
        review: labels whose probability lies in the checkpoint's review band; [] without one.
        error: the reason why the picture could not be read; None: it could.
    """

    image: str
    labels: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    review: list[str] = field(default_factory=list)
    error: str | None = None


def tag_image(prediction: Prediction, selector: LabelSelector) -> TaggedImage:
    """Return the record of a prediction, with the labels that are selected."""
    p = prediction.probabilities
    if p is None:
        return TaggedImage(prediction.name, error=prediction.error)
    names = selector.labels.names
    review = selector.select_review(prediction) if selector.reviews else ()
    return TaggedImage(
        prediction.name,
        _name_columns(selector(prediction), names),
        dict(zip(names, p.tolist(), strict=True)),
        _name_columns(review, names),
    )


def require_read(prediction: Prediction) -> Prediction:
    """Return a prediction that has probabilities.

    Raises:
        ImageError: the picture could not be read.
    """
    if prediction.error is not None:
        raise ImageError(prediction.name, prediction.error)
    return prediction


def _name_columns(columns: Sequence[int], names: Sequence[str]) -> list[str]:
    return [names[column] for column in columns]
