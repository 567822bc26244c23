"""Precision, recall and F1 from counts: of labels, of images, of all pairs.

A group is a label or an image. Without a positive nothing is defined; with one, precision is 0
where nothing was predicted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rates = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Counts:
    """(G,) each, of the known pairs of G groups: predicted rightly, predicted, positive."""

    tp: NDArray[np.int64]
    said: NDArray[np.int64]
    positives: NDArray[np.int64]

    def of(self, group: int) -> Rates:
        """Precision, recall and F1 of one group."""
        tp, said, positives = (int(x[group]) for x in (self.tp, self.said, self.positives))
        if not positives:
            return None, None, None
        return tp / said if said else 0.0, tp / positives, 2 * tp / (said + positives)

    def micro(self) -> Rates:
        """Precision, recall and F1 of all groups' pairs pooled."""
        return Counts(*(x.sum(keepdims=True) for x in (self.tp, self.said, self.positives))).of(0)

    def macro(self) -> Rates:
        """Mean precision, recall and F1 over the groups with a positive."""
        there = self.positives > 0
        tp, said, positives = self.tp[there], self.said[there], self.positives[there]
        precision = tp / np.maximum(said, 1)
        return mean(precision), mean(tp / positives), mean(2 * tp / (said + positives))


def mean(values: NDArray[np.float64]) -> float | None:
    """The mean, whatever the order of the values, to the last bit; None of nothing."""
    return math.fsum(values.tolist()) / len(values) if len(values) else None


def harmonic(a: float | None, b: float | None) -> float | None:
    """2ab / (a + b); 0 of zeros, None where either is."""
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a + b else 0.0
