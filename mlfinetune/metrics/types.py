"""Types of evaluation, from logits to numbers.

    ScoreTable + DecisionRule -> MetricTable, Facts -> Evaluation
    probabilities of one image                      -> Prediction

Frozen dataclasses. Shapes: N images, L labels. Field names are keys of metrics.json and of
checkpoints.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics.implies import Pairs, raise_parents
from mlfinetune.metrics.logits import find_limits

ThresholdHow = Literal["fixed", "global", "per_label", "precision"]
CalibrationHow = Literal["none", "temperature", "platt"]
EvalViews = Literal["plain", "mirror"]
"""Versions of a picture whose logits are averaged: itself alone, or its mirror image too."""
FittedOn = Literal["nothing", "the same images", "other images"]
Interval = tuple[float, float]


def is_top(interval: Interval | None, value: float | None) -> bool:
    """Return whether the interval lies below its number, and was extended up to it.

    That happens to mAP where many labels have few positives: by chance it is then too high.
    """
    return interval is not None and value is not None and interval[0] < value == interval[1] < 1


def describe_need(positives: int, groups: int | None) -> str:
    """Return `16 positives or more for it`; of groups each counts once."""
    kind = "positive" if groups is None else "group with a positive"
    plural = "positives" if groups is None else "groups with a positive"
    return f"{positives} {kind if positives == 1 else plural} or more for it"


@dataclass(frozen=True)
class ScoreTable:
    """Logits and targets of every image of a set.

    Attributes:
        names: N image names, in manifest order.
        logits: (N, L) float32.
        targets: (N, L) int8 in {1, 0, -1}.
        labels: names of the L columns.
        calibration: how the logits were calibrated; `none`: they are the model's own; None: not
            known, because an older version wrote the scores.npz.
        groups: (N,) number of each image's group, as `data.group_by` says; None: no groups. Images
            of one group, such as those of one patient, are no evidence on their own.
    """

    names: tuple[str, ...]
    logits: NDArray[np.float32]
    targets: NDArray[np.int8]
    labels: LabelSpace
    calibration: CalibrationHow | None = "none"
    groups: NDArray[np.int64] | None = None


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
        labels_scored: number of labels with a positive and a negative; mAP is their mean.
        ap: protocol of every AP: sklearn, voc_interpolated or voc_11point.
    """

    averages: dict[str, float | None]
    per_label: tuple[LabelMetrics, ...]
    images: int
    labels_scored: int
    ap: str = "sklearn"

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as metrics.json has them.

        `labels_given` is the number of labels that macro_precision averages over.
        """
        names = ("AP", "AUROC", "F1", "precision", "recall", "threshold", "positives", "negatives")
        return {
            **self.averages,
            "ap": self.ap,
            "images": self.images,
            "labels": len(self.per_label),
            "labels_scored": self.labels_scored,
            "labels_given": sum(row.precision is not None for row in self.per_label),
            "per_label": {
                row.label: {name: getattr(row, name) for name in names} for row in self.per_label
            },
        }


@dataclass(frozen=True)
class DecisionRule:
    """Calibration and thresholds: a logit becomes a probability, and a label is present or not.

    Attributes:
        how: kind of thresholds.
        thresholds: (L,) calibrated probabilities from which a label counts as present; 1: never.
        calibration: kind of calibration.
        slope, intercept: (L,) calibrated logit = slope * logit + intercept.
        review: (low, high), the band of calibrated probabilities that people should review;
            None: no review was configured.
        implies: columns of children and parents (`data.implies`).
    """

    how: ThresholdHow
    thresholds: tuple[float, ...]
    calibration: CalibrationHow
    slope: tuple[float, ...]
    intercept: tuple[float, ...]
    review: tuple[float, float] | None = None
    implies: Pairs = ()

    @classmethod
    def plain(cls, labels: int, threshold: float = 0.5) -> "DecisionRule":
        """Make the rule of one threshold for all labels, without calibration."""
        return cls("fixed", (threshold,) * labels, "none", (1.0,) * labels, (0.0,) * labels)

    def with_threshold(self, threshold: float) -> "DecisionRule":
        """Return the rule with one threshold for all labels; its calibration stays."""
        return replace(self, how="fixed", thresholds=(threshold,) * len(self.thresholds))

    @property
    def limits(self) -> NDArray[np.float64]:
        """(L,) float64 thresholds to compare probabilities with; infinity: never."""
        return find_limits(np.array(self.thresholds, np.float64))

    def calibrate(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return calibrated logits for the model's own; (N, L) both, no parent below its child."""
        if self.calibration == "none":
            return raise_parents(logits, self.implies)
        lines = zip(logits.T, self.slope, self.intercept, strict=True)
        out = logits.copy()
        for column, (values, slope, intercept) in enumerate(lines):
            out[:, column] = slope * values.astype("float64") + intercept
        return raise_parents(out, self.implies)


# ---- facts ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelIntervals:
    """One label's 95 % intervals; None where the number is undefined."""

    label: str
    AP: Interval | None
    AUROC: Interval | None
    F1: Interval | None


@dataclass(frozen=True)
class Intervals:
    """The 95 % intervals of one ScoreTable, by bootstrap.

    Attributes:
        averages: mAP, macro_AUROC, macro_F1 and micro_F1; None where undefined.
        per_label: in label order.
        resamples: number of resamples.
        groups: number of groups that were drawn; None: single images were.
    """

    averages: dict[str, Interval | None]
    per_label: tuple[LabelIntervals, ...]
    resamples: int
    groups: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the intervals as metrics.json has them."""
        names = ("AP", "AUROC", "F1")
        labels = {row.label: {name: getattr(row, name) for name in names} for row in self.per_label}
        drawn = {"resamples": self.resamples}
        if self.groups is not None:
            drawn["groups"] = self.groups
        return {**self.averages, **drawn, "per_label": labels}


@dataclass(frozen=True)
class CrossFittedRates:
    """Averages at thresholds that other images of the set fitted; None where undefined."""

    macro_precision: float | None
    macro_recall: float | None
    macro_F1: float | None
    micro_precision: float | None
    micro_recall: float | None
    micro_F1: float | None


@dataclass(frozen=True)
class ReliabilityBin:
    """The known pairs of one range of probability.

    Attributes:
        probability: mean probability.
        observed: share of positives.
        count: number of pairs.
    """

    probability: float
    observed: float
    count: int


@dataclass(frozen=True)
class CalibrationError:
    """Distance of probabilities from observed shares, over all known pairs.

    Attributes:
        ECE: expected calibration error, None without a known pair.
        Brier: mean squared error, None without a known pair.
        reliability: the curve, by rising probability.
        ECE_by_chance: ECE to expect of so few pairs if the probabilities were perfect; None
            without a known pair, and in files of an older version.
    """

    ECE: float | None
    Brier: float | None
    reliability: tuple[ReliabilityBin, ...]
    ECE_by_chance: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the errors as metrics.json has them: a bin is a list of its three numbers."""
        rows = [[row.probability, row.observed, row.count] for row in self.reliability]
        return {
            "ECE": self.ECE,
            "ECE_by_chance": self.ECE_by_chance,
            "Brier": self.Brier,
            "reliability": rows,
        }


@dataclass(frozen=True)
class CalibrationFacts:
    """Calibration errors before and after calibration.

    Attributes:
        how: kind of calibration.
        own: errors of the model's own probabilities.
        calibrated: errors of the calibrated ones; None without calibration.
    """

    how: CalibrationHow
    own: CalibrationError
    calibrated: CalibrationError | None

    def to_dict(self) -> dict[str, Any]:
        """Return the errors as metrics.json has them: `calibrated` only where there is one."""
        content = {"how": self.how, **self.own.to_dict()}
        if self.calibrated is not None:
            content["calibrated"] = self.calibrated.to_dict()
        return content


@dataclass(frozen=True)
class ReviewBand:
    """The band of probabilities between `low` and `high`, which people should review.

    Attributes:
        images: number of images with a probability in the band.
        pairs: number of (image, label) pairs in the band.
        wrong: number of wrong decisions among all known pairs.
        wrong_inside: number of wrong decisions in the band.
    """

    low: float
    high: float
    images: int
    pairs: int
    wrong: int
    wrong_inside: int


@dataclass(frozen=True)
class Selection:
    """The choice of the best of several candidates by their mAP on these very images.

    Attributes:
        candidates: number of epochs or solutions for the head that were compared.
        optimism: by how much the mAP of the chosen one is too high, because it was chosen by it;
            None where that is not known.
    """

    candidates: int
    optimism: float | None


@dataclass(frozen=True)
class WantedPrecision:
    """A wanted precision, and the labels for which it could not be shown.

    Attributes:
        wanted: the precision, in (0, 1).
        positives_needed: fewest positives of a label that can show it, all of them ranked first.
        never_given: labels that are never given, because the pictures that fitted the thresholds
            do not show it for them.
    """

    wanted: float
    positives_needed: int
    never_given: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Facts beside the numbers of an evaluation: their origin and their uncertainty.

    Attributes:
        threshold_source: kind of thresholds.
        fitted_on: images that fitted thresholds and calibration; `nothing`: neither was fitted.
        intervals: of the numbers.
        cross_fitted: rates to expect on other images; None unless fitted on the same images.
        calibration: how well the probabilities are calibrated.
        review: None where no review was configured.
        precision: None unless thresholds are of a wanted precision.
        selection: None unless a training run chose its result by the mAP of these images.
    """

    threshold_source: ThresholdHow
    fitted_on: FittedOn
    intervals: Intervals
    cross_fitted: CrossFittedRates | None
    calibration: CalibrationFacts
    review: ReviewBand | None
    precision: WantedPrecision | None = None
    selection: Selection | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as metrics.json has them; keys of what is None are left out."""
        content: dict[str, Any] = {
            "threshold_source": self.threshold_source,
            "fitted_on": self.fitted_on,
            "intervals": self.intervals.to_dict(),
        }
        if self.cross_fitted is not None:
            content["cross_fitted"] = asdict(self.cross_fitted)
        content["calibration"] = self.calibration.to_dict()
        if self.review is not None:
            content["review"] = asdict(self.review)
        if self.selection is not None:
            content["selection"] = asdict(self.selection)
        if self.precision is not None:
            never = list(self.precision.never_given)
            content["wanted_precision"] = {**asdict(self.precision), "never_given": never}
        return content


# ---- results ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """Everything that an evaluation says of a ScoreTable.

    Attributes:
        scores: with calibrated logits, where the decision calibrates.
        table: the numbers, at the decision's thresholds.
        decision: the calibration and thresholds that were used.
        facts: their origin, intervals, calibration errors, review.
    """

    scores: ScoreTable
    table: MetricTable
    decision: DecisionRule
    facts: Facts


@dataclass(frozen=True)
class Prediction:
    """One row of predict's output: (L,) float64 probabilities, or the reason there are none."""

    name: str
    probabilities: NDArray[np.float64] | None
    error: str | None = None
