"""Optimism of a mAP by which a candidate was chosen, and which is then reported.

    scores of each candidate -> try_candidate -> Trial
    Trials                   -> estimate_selection -> Selection

The best of many candidates is partly the luckiest one on these images: its mAP is too high by the
luck of the winner. Candidates are drawn again on the same resamples of the images. Their mAPs
scatter in each resample about their means, with the correlations that common images give. That
scatter is added to the candidates' mAPs, the highest is chosen, and its scatter is its luck; the
mean over resamples is the optimism (Efron & Tibshirani, 1993, chapter 17).

The mAPs themselves scatter already: taken as they are, the candidates would seem further apart than
they are, and luck too small. So they are first drawn toward their mean by the share of their
variance that is scatter (James & Stein, 1961). benchmarks/selection.py compares the estimate with
the truth of simulated and real data.

Only the mAPs of the resamples are kept of a candidate, not its scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlfinetune.metrics.bootstrap import find_groups, rank_labels, resample
from mlfinetune.metrics.types import ScoreTable, Selection

RESAMPLES, FEWEST = 100, 20
"""Number of resamples, and the fewest that are worth it."""
DRAWN = 10**8
"""(image, label) pairs that resampling may draw for a candidate. Tables of more than 5 million
pairs get no estimate: it would take long, and luck falls with the number of images."""
SEED = 0


@dataclass(frozen=True)
class Trial:
    """A candidate's mAP, and its mAPs on B resamples of the images, the same for all candidates.

    Attributes:
        mAP: None where it is undefined.
        resampled: empty where mAP is undefined, or the table too large.
        epoch: of the candidate; 0: before the first one.
        l2, iterations: of the solver; None: an epoch.
        slope: factor that calibrates its logits; None: it was not fitted.
    """

    mAP: float | None
    resampled: tuple[float, ...] = ()
    epoch: int = 0
    l2: float | None = None
    iterations: int | None = None
    slope: float | None = None


def try_candidate(scores: ScoreTable, mean_ap: float | None) -> Trial:
    """Measure a candidate on resamples of its images.

    Args:
        scores: (N, L) of the candidate; images of one group are drawn together.
        mean_ap: its mAP.
    """
    resamples = min(RESAMPLES, DRAWN // max(1, scores.logits.size))
    if mean_ap is None or resamples < FEWEST:
        return Trial(mean_ap)
    ranked = rank_labels(scores, [0.5] * len(scores.labels))
    (drawn,) = resample([ranked], find_groups(scores), resamples, SEED, "sklearn")
    return Trial(mean_ap, tuple(drawn.averages()["mAP"].tolist()))


def estimate_selection(trials: Sequence[Trial | None]) -> Selection:
    """Estimate by how much the highest mAP of the trials is too high.

    The optimism is None where a trial is unknown, and 0 for a single candidate.
    """
    known = [trial for trial in trials if trial is not None and trial.resampled]
    if len(known) < len(trials) or not known:
        return Selection(len(trials), None)
    resampled = np.array([trial.resampled for trial in known]).T  # (B, C)
    resampled = resampled[np.isfinite(resampled).all(axis=1)]
    if len(known) == 1 or len(resampled) < FEWEST:
        return Selection(len(trials), 0.0 if len(known) == 1 else None)
    scatter = resampled - resampled.mean(axis=0)
    scatter -= scatter.mean(axis=1, keepdims=True)  # what all candidates share moves no choice
    own = np.array([trial.mAP for trial in known], float)
    noise = float((scatter**2).sum() / (len(scatter) - 1) / (len(own) - 1))
    spread = float(own.var(ddof=1))
    kept = max(0.0, 1 - noise / spread) if spread else 0.0
    chosen = (kept * (own - own.mean()) + scatter).argmax(axis=1)
    return Selection(len(trials), float(scatter[np.arange(len(scatter)), chosen].mean()))


def describe_selection(selection: Selection | None) -> str:
    """Say how optimistic the mAP is for having chosen; an empty text where nothing was chosen."""
    if selection is None or selection.candidates < 2:
        return ""
    best = f"best of {selection.candidates} by this mAP"
    if selection.optimism is None:
        return f"{best}: somewhat too high for that"
    if selection.optimism < 0.0005:
        return f"{best}: less than 0.001 too high for that"
    return f"{best}: about {selection.optimism:.3f} too high for that"
