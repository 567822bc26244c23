"""Hold out a share of the examples so that every label keeps its share.

Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011), by the package of that name.
"""

import numpy as np
from numpy.typing import NDArray

from mlfinetune.records import POSITIVE


def stratified_split(
    targets: NDArray[np.int8], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows to hold out, a function of the arguments alone.

    Args:
        targets: (N, L) in {1, 0, -1}, N at least 2; positives alone are stratified.
        fraction: share of rows to hold out, in (0, 1); at least one row stays on each side.
        seed: decides ties.

    Returns:
        Sorted indices of the training rows and of the held-out rows.
    """
    # Here, because it loads scikit-learn, for a second in which predict would only wait.
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    n = len(targets)
    held_out = min(max(round(n * fraction), 1), n - 1)
    positive = targets == POSITIVE
    none = ~positive.any(axis=1, keepdims=True)  # rows without a label are spread evenly too
    columns = np.hstack([positive, none, ~none]).astype(np.int8)
    splitter = MultilabelStratifiedShuffleSplit(
        n_splits=1, test_size=held_out, random_state=seed % 2**32
    )
    train, val = next(splitter.split(np.zeros(n), columns))
    return np.sort(train), np.sort(val)
