"""The sigmoid of logits, in float64."""

import numpy as np
from numpy.typing import NDArray


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """sigmoid(logits) in float64, without overflow, the same shape."""
    e = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1.0, e) / (1.0 + e)
