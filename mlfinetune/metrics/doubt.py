"""Doubts about given tags: how much scores speak against them, comparable over labels.

    logits, targets (N, L) -> measure_doubt -> (N, L), in logits; -inf where nothing is known

Three things make the numbers of two labels comparable (benchmarks/suspects.py measures each):

- The logits are calibrated by label on these very tags, whatever the model's own calibration: of a
  rare label, or with a loss that weighs labels, a probability of 0.4 may be a near certainty.
- Pictures with another tag, and those without, are calibrated apart: a picture without any lacks
  one more probably. Where most tags are the only one of their picture, all are calibrated together:
  of the few that have company, calibration would learn that nothing else is ever there.
- A missing tag is doubted by the probability that the label is there. A wrong tag is doubted by how
  far that probability lies below the label's share of tags: a share of each label's tags is wrong,
  so that a rare label has few wrong ones, although its probabilities are low everywhere.
"""

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN
from mlfinetune.metrics.calibration import fit

Doubt = NDArray[np.float32]
LEAST_TOGETHER = 0.5
"""Share of the tags that stand beside another one from which they are calibrated apart."""


def measure_doubt(logits: NDArray[np.float32], targets: NDArray[np.int8]) -> Doubt:
    """Return how much the scores speak against each given tag, (N, L).

    tag         doubt
    not given   log-odds of the label, calibrated: above 0 it is there more likely than not
    given       log-odds of the label's share of tags, minus its calibrated log-odds
    unknown     -inf

    Args:
        logits: (N, L) scores, of any calibration; best of a model that has not seen the pictures.
        targets: (N, L) in {1, 0, -1}, the given tags.
    """
    is_given = targets == POSITIVE
    has_others = is_given.sum(axis=1, keepdims=True) > is_given
    together = has_others[is_given].mean() < LEAST_TOGETHER if is_given.any() else True
    parts = (np.ones_like(has_others),) if together else (has_others, ~has_others)
    doubt = np.empty(logits.shape, np.float32)
    for part in parts:
        apart = np.where(part, targets, np.int8(UNKNOWN))
        doubt[part] = fit(logits, apart, "platt").apply(logits)[part]
    # Half a tag more of either kind: a label without tags, or with all of them, has a share too.
    given, absent = is_given.sum(axis=0) + 0.5, (targets == NEGATIVE).sum(axis=0) + 0.5
    share = np.log(given / absent).astype(np.float32)
    doubt[is_given] = (share - doubt)[is_given]
    doubt[targets == UNKNOWN] = -np.inf
    return doubt
