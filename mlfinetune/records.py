"""Every noun that crosses a door, on one page.

    Manifest -> Batch -> logits -> StepRecord
                         logits -> ScoreTable -> MetricTable
    Checkpoint = weights + LabelSpace + TransformSpec + Decision + config

Frozen dataclasses; array and tensor types are named for the reader and the type checker
alone, so that nothing here loads numpy or torch. Shapes: B images in a batch, N images in
a set, L labels, S pixels on a side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mlfinetune.errors import DataError, listing
from mlfinetune.names import Location, located

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from mlfinetune.data.targets import Targets

POSITIVE, NEGATIVE, UNKNOWN = 1, 0, -1
"""The three states of a target. UNKNOWN is masked in the loss and in every metric."""


@dataclass(frozen=True)
class LabelSpace:
    """The labels, in column order."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def column(self) -> dict[str, int]:
        """Label -> its column."""
        return {name: i for i, name in enumerate(self.names)}


@dataclass(frozen=True)
class Manifest:
    """The examples of one split.

    Attributes:
        root: the folder, or the URL, that names are relative to.
        names: N paths as the user wrote them, relative to `root`.
        targets: (N, L) in {1, 0, -1}.
        labels: what the L columns mean.
    """

    root: Location
    names: tuple[str, ...]
    targets: Targets
    labels: LabelSpace

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Where example `index` lies."""
        return located(self.root, self.names[index])

    def take(self, rows: list[int]) -> Manifest:
        """The examples `rows`, in that order."""
        names = tuple(self.names[row] for row in rows)
        return Manifest(self.root, names, self.targets.take(rows), self.labels)


@dataclass(frozen=True)
class TransformSpec:
    """How a decoded picture becomes the model's input; stored in every checkpoint.

    Attributes:
        image_size: S, the side of the square that the model sees, in pixels.
        resize: evaluation: `squash` the whole picture to the square, `crop` its centre, or `pad`.
        max_pixels: a picture with more is refused before it is decoded.
        mean, std: of the training set of the pretrained weights, for RGB in [0, 1].
        crop_scale: training: bounds of the area share that a random resized crop keeps.
        horizontal_flip: training: probability of a mirror image.
        color_jitter: training: strength of brightness, contrast and saturation jitter, 0 to 1.
        rand_augment: training: number of RandAugment operations a picture.
    """

    image_size: int
    resize: str
    max_pixels: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_scale: tuple[float, float] = (1.0, 1.0)
    horizontal_flip: float = 0.0
    color_jitter: float = 0.0
    rand_augment: int = 0


@dataclass(frozen=True)
class Failure:
    """A picture that could not be decoded, and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class Batch:
    """Decoded pictures with their targets; undecodable ones stand in `failures` instead.

    Attributes:
        images: (B, 3, S, S) uint8; or (B, F) float32, a frozen backbone's features.
        targets: (B, L) int8 in {1, 0, -1}; (B, 0) where there are none (prediction).
        indices: (B,) int64, the pictures' places in their manifest or input order.
        together: the indices of all that is looked at in this step, where several processes each
            have a share; empty: this batch is all.
    """

    images: torch.Tensor
    targets: torch.Tensor
    indices: torch.Tensor
    failures: tuple[Failure, ...] = ()
    together: tuple[int, ...] = ()

    @property
    def everyone(self) -> tuple[int, ...]:
        """The indices of the batch in all processes."""
        return self.together or tuple(self.indices.tolist())

    def require_all(self, name_of: Callable[[int], str]) -> None:
        """Raise a DataError that names the pictures that could not be decoded, if any."""
        if self.failures:
            faults = [f"{name_of(failure.index)}: {failure.reason}" for failure in self.failures]
            raise DataError(
                f"{len(faults)} unreadable in one batch; repair them or take them out\n"
                f"{listing(faults)}"
            )

    def pin_memory(self) -> Batch:
        """In page-locked memory; DataLoader asks a batch for it by this name."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, known to be finite, or skipped.

    Attributes:
        epoch: from 0.
        step: optimizer steps since the start, from 0.
        loss: mean over the known targets of the batch.
        grad_norm: before clipping.
        rates: `lr` and `head_lr` of the step, or the `l2` that the head was solved with.
        images: pictures in the batch, in all processes.
        settled: no later step has been taken; always so at the end of an epoch.
        paused: settled because some process asked for it.
        skipped: why the step was not taken, with its pictures; empty where it was.
    """

    epoch: int
    step: int
    loss: float
    grad_norm: float
    rates: dict[str, float]
    images: int
    settled: bool
    paused: bool = False
    skipped: str = ""


@dataclass(frozen=True)
class Position:
    """Where training stands, between two steps.

    Attributes:
        step: optimizer steps that were taken.
        loss_sum, images: of the epoch that is under way, its loss an image times its images;
            0 once it has been validated.
        last: `grad_norm` and rates of the step before.
        skipped: steps before this one, in a row, that were not taken.
    """

    step: int = 0
    loss_sum: float = 0.0
    images: int = 0
    last: dict[str, float] = field(default_factory=dict)
    skipped: int = 0

    def after(self, record: StepRecord) -> Position:
        """One step further."""
        if record.skipped:
            return replace(self, step=record.step + 1, skipped=self.skipped + 1)
        return Position(
            record.step + 1,
            self.loss_sum + record.loss * record.images,
            self.images + record.images,
            {"grad_norm": record.grad_norm, **record.rates},
        )

    def epoch(self, steps: int) -> int:
        """The epoch, from 0, that is under way or comes next; `steps` an epoch."""
        return (self.step - 1 if self.images else self.step) // steps


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
class Verdict:
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
    decision: Decision
    facts: dict[str, Any]


@dataclass(frozen=True)
class Decision:
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
    def plain(cls, labels: int, threshold: float = 0.5) -> Decision:
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
class Checkpoint:
    """All that predicting needs, in one file.

    Attributes:
        weights: state dict of the whole model, on the CPU.
        labels: column order of the head.
        transform: how pictures become input.
        backbone: torchvision's name of the network.
        decision: how its logits become labels.
        config: the resolved config of the run, as plain containers.
        data_digest: SHA-256 over names and targets of the validation data.
        epoch: epochs that had been trained.
        versions: of mlfinetune, torch and torchvision, when it was written.
    """

    weights: dict[str, torch.Tensor]
    labels: LabelSpace
    transform: TransformSpec
    backbone: str
    decision: Decision
    config: dict[str, Any]
    data_digest: str
    epoch: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Prediction:
    """One row of predict's output: (L,) float64 probabilities, or the reason there are none."""

    name: str
    probabilities: NDArray[np.float64] | None
    error: str | None = None
