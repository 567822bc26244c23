"""Sigmoid, its inverse, and the conversion of thresholds from probabilities to logits.

    logits                     -> sigmoid     -> probabilities
    probabilities              -> logit       -> logits
    thresholds (probabilities) -> find_cuts   -> float32 logits, to compare logits with
    thresholds (probabilities) -> find_limits -> probabilities, to compare probabilities with

A threshold of 1 means never: find_cuts and find_limits both give infinity for it.
"""

import numpy as np
from numpy.typing import NDArray


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-logits)) in float64, without overflow; the shape stays."""
    e = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1.0, e) / (1.0 + e)


def logit(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(p / (1 - p)), the inverse of the sigmoid: -inf for 0, inf for 1."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(probabilities / (1 - probabilities)))


def find_cuts(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the float32 logits from which labels count as present.

    A label is present where `logits >= cuts`. Logits decide, not probabilities, because
    probabilities are equal where they saturate.

        find_cuts([0.0, 0.5, 1.0])  ->  [-inf, 0, inf]: always, from an even chance on, never

    Args:
        thresholds: probabilities in [0, 1], of any shape.
    """
    return logit(thresholds).astype(np.float32)


def find_limits(thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities from which labels count as present: infinity for a threshold of 1.

    The sigmoid of a large logit is exactly 1.0 in float64. A label whose threshold is 1 is never
    predicted, so 1.0 must not reach it.
    """
    return np.where(thresholds >= 1, np.inf, thresholds)
