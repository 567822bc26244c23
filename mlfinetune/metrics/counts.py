"""Precision, recall and F1 from counts: of labels, of images, of all pairs.

A group is a label or an image. In a group without a positive, all three are undefined. With a
positive but no prediction, precision is 0/0: undefined too. Recall and F1 are then 0.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rates = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Counts:
    """Counts of the known pairs of G groups.

    Attributes:
        tp: (G,) positives that were predicted.
        predicted: (G,) pairs that were predicted.
        positives: (G,) pairs that are positive.
    """

    tp: NDArray[np.int64]
    predicted: NDArray[np.int64]
    positives: NDArray[np.int64]

    def rates(self, group: int) -> Rates:
        """Return precision, recall and F1 of one group."""
        counts = (self.tp, self.predicted, self.positives)
        tp, predicted, positives = (int(count[group]) for count in counts)
        if not positives:
            return None, None, None
        precision = tp / predicted if predicted else None
        return precision, tp / positives, 2 * tp / (predicted + positives)

    def micro(self) -> Rates:
        """Return precision, recall and F1 of all groups' pairs pooled."""
        counts = (self.tp, self.predicted, self.positives)
        return Counts(*(count.sum(keepdims=True) for count in counts)).rates(0)

    def macro(self) -> Rates:
        """Return mean precision, recall and F1 over the groups with a positive.

        Precision is the mean over those of them that have a prediction too.
        """
        used = self.positives > 0
        tp, predicted, positives = self.tp[used], self.predicted[used], self.positives[used]
        given = predicted > 0
        precision = mean(tp[given] / predicted[given])
        return precision, mean(tp / positives), mean(2 * tp / (predicted + positives))

    def literature_precision(self) -> float | None:
        """Return CP: as papers count it, precision is 0 in a group without a prediction."""
        used = self.positives > 0
        return mean(self.tp[used] / np.maximum(self.predicted[used], 1))


def mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean; None if there are no values. Their order does not change any bit of it."""
    return math.fsum(values.tolist()) / len(values) if len(values) else None


def harmonic_mean(a: float | None, b: float | None) -> float | None:
    """Return 2ab / (a + b): 0 if both are 0, None if either is None."""
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a + b else 0.0
