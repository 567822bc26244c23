"""Types of evaluation, from logits to numbers.

    ScoreTable + DecisionRule -> MetricTable -> Evaluation
    probabilities of one image            -> Prediction

Frozen dataclasses. Shapes: N images, L labels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import LabelSpace


@dataclass(frozen=True)
class ScoreTable:
    """What the model said of every image of a set.

    Attributes:
        names: N image names, in manifest order.
        logits: (N, L) float32.
        targets: (N, L) int8 in {1, 0, -1}.
        labels: what the L columns mean.
    """

    names: tuple[str, ...]
    logits: NDArray[np.float32]
    targets: NDArray[np.int8]
    labels: LabelSpace


@dataclass(frozen=True)
class LabelMetrics:
    """One label's numbers; None where the known targets leave a number undefined."""

    label: str
    positives: int
    negatives: int
    AP: float | None
    AUROC: float | None
    precision: float | None
    recall: float | None
    F1: float | None
    threshold: float


@dataclass(frozen=True)
class MetricTable:
    """The numbers of one ScoreTable.

    Attributes:
        averages: name -> value in [0, 1] (coverage: [0, L]), None where undefined.
        per_label: in label order.
        images: N.
        labels_scored: labels with a positive and a negative, those that mAP averages over.
        ap: the protocol of every AP: sklearn, voc_interpolated or voc_11point.
    """

    averages: dict[str, float | None]
    per_label: tuple[LabelMetrics, ...]
    images: int
    labels_scored: int
    ap: str = "sklearn"

    def to_dict(self) -> dict[str, Any]:
        """The content of metrics.json."""
        fields = ("AP", "AUROC", "F1", "precision", "recall", "threshold", "positives", "negatives")
        return {
            **self.averages,
            "ap": self.ap,
            "images": self.images,
            "labels": len(self.per_label),
            "labels_scored": self.labels_scored,
            "per_label": {
                row.label: {name: getattr(row, name) for name in fields} for row in self.per_label
            },
        }


@dataclass(frozen=True)
class DecisionRule:
    """What makes a probability and a yes or no of a logit; fitted on validation.

    Attributes:
        how: of the thresholds: fixed, global, per_label or precision.
        thresholds: (L,) calibrated probabilities from which a label counts as present; 1: never.
        calibration: none, temperature or platt.
        slope, intercept: (L,) calibrated logit = slope * logit + intercept.
        review: calibrated probabilities from the first to the second are for people to look at;
            None: nobody asked for that.
    """

    how: str
    thresholds: tuple[float, ...]
    calibration: str
    slope: tuple[float, ...]
    intercept: tuple[float, ...]
    review: tuple[float, float] | None = None

    @classmethod
    def plain(cls, labels: int, threshold: float = 0.5) -> "DecisionRule":
        """One threshold for all labels, logits as they are."""
        return cls("fixed", (threshold,) * labels, "none", (1.0,) * labels, (0.0,) * labels)

    def calibrated(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, L) -> (N, L)."""
        if self.calibration == "none":
            return logits
        lines = zip(logits.T, self.slope, self.intercept, strict=True)
        out = logits.copy()
        for at, (column, slope, intercept) in enumerate(lines):
            out[:, at] = slope * column.astype("float64") + intercept
        return out


@dataclass(frozen=True)
class Evaluation:
    """A ScoreTable judged: what a folder of results says.

    Attributes:
        scores: its logits calibrated.
        table: the numbers, at the decision's thresholds.
        decision: what they were judged by.
        facts: what else metrics.json says, as plain containers: what fitted the thresholds,
            `cross_fitted` numbers, `intervals`, `calibration`, `review`.
    """

    scores: ScoreTable
    table: MetricTable
    decision: DecisionRule
    facts: dict[str, Any]


@dataclass(frozen=True)
class Prediction:
    """One row of predict's output: (L,) float64 probabilities, or the reason there are none."""

    name: str
    probabilities: NDArray[np.float64] | None
    error: str | None = None
