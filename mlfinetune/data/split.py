"""Hold out a share of the examples so that every label keeps its share.

    iterative stratification -> which rows are held out, label by label, rarest first
    trim                     -> exactly as many as were asked for

Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011), by the package of that name. It
gives each label its share, not the whole its size: of 400 images with 200 labels of two images
each it holds out 2 where 80 were asked for, and none of the labels of one image each.
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
        fraction: share of rows to hold out, in (0, 1), rounded to a row, at least one on each
            side.
        seed: decides ties.

    Returns:
        Sorted indices of the training rows and of the held-out rows.
    """
    # Here, because it loads scikit-learn, for a second in which predict would only wait.
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    n = len(targets)
    size = min(max(round(n * fraction), 1), n - 1)
    positive = targets == POSITIVE
    none = ~positive.any(axis=1, keepdims=True)  # rows without a label are spread evenly too
    columns = np.hstack([positive, none, ~none]).astype(np.int8)
    splitter = MultilabelStratifiedShuffleSplit(
        n_splits=1, test_size=size, random_state=seed % 2**32
    )
    _, val = next(splitter.split(np.zeros(n), columns))
    held_out = np.zeros(n, bool)
    held_out[val] = True
    _trim(held_out, columns, size, np.random.default_rng(seed))
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _trim(
    held_out: NDArray[np.bool_], columns: NDArray[np.int8], size: int, rng: np.random.Generator
) -> None:
    """Move rows in or out, those first that leave the labels nearest their shares.

    The cost is the sum over labels of (held out - wanted)^2 / positives; a row that holds the
    last training positive of a label moves out only where no other is left.
    """
    positives = columns.sum(axis=0, dtype=np.float64)
    wanted, weight = positives * (size / len(columns)), 1 / np.maximum(positives, 1)
    now = columns[held_out].sum(axis=0, dtype=np.float64)
    for row in np.flatnonzero(held_out):  # no label is held out whole
        if (now >= positives)[columns[row] > 0].any():
            held_out[row] = False
            now -= columns[row]
    while missing := size - int(held_out.sum()):
        step = 1 if missing > 0 else -1
        now = columns[held_out].sum(axis=0, dtype=np.float64)
        movable = np.flatnonzero(held_out == (step < 0))
        costs = columns[movable] @ (weight * (1 + 2 * step * (now - wanted)))
        order = movable[np.lexsort([rng.random(len(movable)), costs])]
        moved: list[int] = []
        for row in order:  # an eighth of the way, then the costs are counted anew
            if len(moved) == -(-abs(missing) // 8):
                break
            if step < 0 or (positives - now > columns[row])[columns[row] > 0].all():
                moved.append(row)
                now += step * columns[row]
        held_out[moved or order[:1]] = step > 0
